"""Prints the table of all cases."""

from rich.console import Console
from rich.progress import track
from rich.table import Table

from families.case import measure
from families.cases import CASES

HEADERS = (
    "model",
    "family",
    "place",
    "rows",
    "loss",
    "stock loss",
    "gradient in the module",
    "differ",
    "eval",
    "removed",
)


def main() -> None:
    """Run every case."""
    table = Table(*HEADERS)
    for name, case in track(CASES.items(), "models"):
        figures = measure(case)
        table.add_row(
            name,
            case.family,
            ", ".join(figures.places),
            str(figures.rows),
            f"{figures.loss:.6f}",
            f"{figures.stock_loss:.6f}",
            f"{figures.gradient:.1e}",
            f"{figures.grads_differ:.1e}",
            "equal" if figures.evaluation_is_stock else "DIFFERS",
            "equal" if figures.removed_is_stock else "DIFFERS",
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
