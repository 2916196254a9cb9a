"""How to insert, in one value: what attach() was told."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """How to insert, as :func:`attach` was told."""

    before: Any = None  # paths of classifiers
    after: Any = None  # paths of blocks; for a preset the indices of its blocks
    layout: str | None = None
    dim: int | None = None
    shared: bool = True
    rejoin: bool = False
    pairings: str = "all"
    reproduce: bool = False
    module: dict[str, Any] = field(default_factory=dict)  # arguments of BatchFormer and BatchFormerV2
