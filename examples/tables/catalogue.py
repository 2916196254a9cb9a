"""All tables by their names. A table is imported when it is looked up: each needs packages of its own."""

import importlib
from collections.abc import Iterator, Mapping

from examples.tables.table import Table

NAMES = (
    "long_tailed",
    "detection",
    "panoptic",
    "contrastive",
    "domains",
    "compositional",
    "few_shot",
    "classification",
    "larger_batches",
)


class Catalogue(Mapping[str, Table]):
    """The tables of the modules of these names in `examples.tables`."""

    def __getitem__(self, name: str) -> Table:
        if name not in NAMES:
            raise KeyError(name)
        table: Table = importlib.import_module(f"examples.tables.{name}").TABLE
        return table

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


TABLES = Catalogue()
