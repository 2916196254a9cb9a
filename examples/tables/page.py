"""Writes docs/tables.md and its pictures from the results in docs/tables: `python -m examples.tables.page`.

The table in docs/does-it-help.md is written anew, too. Nothing is computed. `--from results/tables` first
copies what `python -m examples.tables` wrote there.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.tables.catalogue import TABLES
from examples.tables.figures import draw_differences, draw_relations
from examples.tables.in_short import rewritten
from examples.tables.record import as_document, read_record, related_run, write_record
from examples.tables.report import NONE, difference_rows, difference_text, mean_rows
from examples.tables.results import Result, Results
from examples.tables.sentences import p_value, sentences
from examples.tables.statistics import Difference
from examples.tables.summary import Summary, numbers, summarise
from examples.tables.table import CPU, Table

DOCS = Path(__file__).parents[2] / "docs"

INTRODUCTION = """\
# The tables in miniature

Systems that the papers train, made small enough for two cores, are trained without BatchFormer, with it,
and with controls, all on the same seeds; those that are not trained yet are named. The figures are of these
miniatures, on letters drawn from fonts; they say nothing about the papers' data sets. Each table also shows
what the papers report, marked as theirs, and how its baselines were tuned: lightly, a few settings on one
other seed, and some not at all.

![Letters in sixteen faces, as they are drawn and as they are varied](glyphs.png)

- baseline: the system as it is
- BatchFormer: with the module, as `bf.attach` puts it in
- uniform: each sample attends equally to all. It mixes samples and passes gradients between them as
  BatchFormer does, so BatchFormer - uniform is what comes from choosing which samples to attend to
- alone: each sample attends to itself. It relates nothing, but is no control of equal noise: dropout on
  its one key drops a head's value whole or doubles it, where that on N keys averages out
- softened, where it is there: no module; a second stream of features under dropout of 0.5, of whose labels
  a tenth is the mean label of the batch

All is the mean accuracy over the classes; Many, Medium and Few are the thirds of the classes with the most
to the fewest training images. Calibrated: after adding to the logits the multiple of the log prior, or in
few-shot recognition the constant for the new letters, that is best on validation images.

A difference is taken seed by seed. Intervals are of 95 %, by Student's t with n - 1 degrees of freedom,
each for itself; p is corrected by Holm over all primary columns, systems and comparisons of one table, not
over the tables, and `*` marks what holds at 5 %. Columns that are not primary have no p. Bounds that
intervals exclude are no proof that two arms are equal.

`make tables` trains all of them; the fresh seeds of two systems take `--first-seed 6`.
`python -m examples.tables.page` writes this page from the results in `docs/tables`, which were computed one
table at a time, on the machines and from the commits that are named below each.
"""


def main(arguments: list[str] | None = None, tables: Iterable[Table] | None = None) -> int:
    """Exit status, 0."""
    tables = tuple(TABLES.values()) if tables is None else tuple(tables)
    parser = argparse.ArgumentParser(prog="python -m examples.tables.page", description=__doc__.split(":")[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help="(default: docs of the checkout)")
    parser.add_argument("--from", dest="source", type=Path, help="take over results, as results/tables")
    options = parser.parse_args(arguments)
    folder = options.docs / "tables"
    if options.source is not None:
        taken = take_over(options.source, folder, tables)
        if not taken:
            names = ", ".join(table.name for table in tables)
            parser.error(f"--from: expected full results of a table ({names}) in {options.source}, got none")
    found = [table for table in tables if record_path(folder, table).exists()]
    if not found:
        parser.error(f"--docs: no results in {folder}; --from takes over those of python -m examples.tables")
    texts, summaries = [], []
    for table in tables:
        if table not in found:
            texts.append(announced(table))
            continue
        results = read_record(record_path(folder, table))
        summaries.append(summarise(table, results))
        texts.append(section(summaries[-1], results, folder))
    page = options.docs / "tables.md"
    page.write_text("\n".join([INTRODUCTION, overview(summaries), *texts]), encoding="utf-8")
    in_short = options.docs / "does-it-help.md"
    if in_short.exists():  # not where the page of some results is written elsewhere
        in_short.write_text(rewritten(in_short.read_text(encoding="utf-8"), summaries), encoding="utf-8")
    print(f"{page}: {', '.join(table.name for table in found)}")
    return 0


def take_over(source: Path, folder: Path, tables: Iterable[Table]) -> list[Table]:
    """Add the results of tables that have any, without those of --quick, to those in the folder of the docs.

    A table that takes hours may be computed one system at a time, with changes to the code of other systems
    in between. So a system without new results keeps its old ones if their settings are still the table's; a
    system with new results keeps only old ones of the same code, versions and device. The page names all
    commits.
    """
    taken = []
    for table in tables:
        results = Results(source, table)
        found = results.at_full_length()
        if found:
            folder.mkdir(parents=True, exist_ok=True)
            path = record_path(folder, table)
            anew = {result.job.system: result.job.device for result in found}
            before = read_record(path) if path.exists() else []
            kept = [
                each
                for each in before
                if results.fits(each, also_code=each.job.system in anew)
                and each.job.device == anew.get(each.job.system, each.job.device)
            ]
            merged = {result.job: result for result in kept + found}
            write_record(path, as_document(table, sorted(merged.values(), key=lambda each: each.job.seed)))
            taken.append(table)
    return taken


def record_path(folder: Path, table: Table) -> Path:
    """Where the results of a table are kept."""
    return folder / f"{table.name}.json"


def overview(summaries: Iterable[Summary]) -> str:
    """What holds in each system, and how far its baseline is from having converged, one row each."""
    rows = []
    for summary in summaries:
        column = summary.table.primary[0]
        for system in summary.systems:
            primary = [each for each in summary.primary if each.system == system]
            holding = [f"{each.contrast} {each.mean:+.1f} ({each.column})" for each in primary if each.holds]
            longer = [e for e in summary.convergence if (e.system, e.column) == (system, column)]
            rows.append(
                [
                    summary.table.title,
                    system,
                    numbers(each.count for each in primary) if primary else NONE,
                    "; ".join(holding) or "nothing",
                    f"{column} {difference_text(longer[0], ' (')})" if longer else NONE,
                ]
            )
    head = ["table", "system", "seeds", "holds after Holm, points", "twice the steps add to the baseline"]
    return f"## Overview\n\n{_markdown(head, rows)}\n"


def announced(table: Table) -> str:
    """The part of the page on a table that has no results yet."""
    command = f"`make tables TABLE={table.name}`"
    blocks = [f"## {table.title}", f"Not computed yet for this page; {command} trains it.", *papers(table)]
    return "\n\n".join(blocks) + "\n"


def papers(table: Table) -> list[str]:
    """The papers' own figures, if there are any, under a heading."""
    heading = "### The papers' own figures, on other data and models"
    return [heading, table.paper.strip()] if table.paper else []


def tuning(table: Table) -> list[str]:
    """How the settings of the baselines were chosen, if it is told, under a heading."""
    return ["### How the baselines were tuned", table.tuned.strip()] if table.tuned else []


def section(summary: Summary, results: Sequence[Result], folder: Path) -> str:
    """The part of the page on one table; its pictures are drawn into the folder."""
    table = summary.table
    blocks = [f"## {table.title}"]
    said = sentences(summary)
    missing = [system for system in table.systems if system not in summary.systems]
    said += [f"Not computed yet for this page: {'; '.join(missing)}."] * bool(missing)
    elsewhere = dict.fromkeys(result.job.system for result in results if result.job.device != CPU)
    said += [f"Trained on a GPU: {'; '.join(elsewhere)}."] * bool(elsewhere)
    blocks.append("\n".join(f"- {sentence}" for sentence in said))
    picture = draw_differences(folder / f"{table.name}.png", summary)
    if picture:
        about = f"Paired differences of the arms in {' and in '.join(table.primary)}, with 95 % intervals"
        blocks.append(f"![{about}](tables/{picture.name})")
    for system in summary.systems:
        blocks += [f"### {table.title}: {system}", means(summary, system), differences(summary, system)]
    if summary.entropies:
        blocks += ["### Attention", entropies(summary)]
    related = draw_relations(folder / f"{table.name}-relations.png", table, results)
    if related:
        both = related_run(results).outcome.untrained_relations is not None
        about = f"Which samples of a batch attend to which, {'before and ' * both}after training"
        blocks.append(f"![{about}](tables/{related.name})")
    blocks += [*papers(table), *tuning(table), "### How it was computed", made(results)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def means(summary: Summary, system: str) -> str:
    """Means and standard errors in %, one row for each arm."""
    return _markdown(["mean ± standard error, %", "n", *summary.table.columns], mean_rows(summary, system))


def differences(summary: Summary, system: str) -> str:
    """Differences in points, one row for each comparison; those of the primary columns with p."""

    def text(each: Difference | None) -> str:
        if each is None:
            return NONE
        tested = each.column in summary.table.primary and each.count > 1
        return difference_text(each, " (", ".2f") + ")" + f"; p {p_value(each.corrected)}" * tested

    head = ["difference (95 % interval); p after Holm where primary", "n", *summary.table.columns]
    rows = difference_rows(summary, system, text)
    return _markdown(head, rows) if rows else ""


def entropies(summary: Summary) -> str:
    """Entropies of the attention, one row for each system."""
    arms = list(dict.fromkeys(each.arm for each in summary.entropies))
    rows = []
    for system in dict.fromkeys(each.system for each in summary.entropies):
        of_system = {each.arm: each for each in summary.entropies if each.system == system}
        rows.append([system, *(f"{of_system[arm].mean:.4f}" if arm in of_system else NONE for arm in arms)])
    return _markdown(["entropy over that of even attention", *arms], rows)


def made(results: Sequence[Result]) -> str:
    """When the results were computed, on which machine, with which versions, and how long it took."""
    hours = sum(result.seconds for result in results) / 3600
    return _markdown(
        ["", ""],
        [
            ["runs", str(len(results))],
            ["hours of computation, summed over the runs", f"{hours:.2f}"],
            ["date", _all(result.origin["date"] for result in results)],
            ["processor", _all(result.origin["processor"] for result in results)],
            ["cores", _all(result.origin["cores"] for result in results)],
            ["torch", _all(result.versions["torch"] for result in results)],
            ["batchformer", _all(result.versions["batchformer"] for result in results)],
            ["commit", _all(result.origin["commit"] for result in results)],
        ],
    )


def _all(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
