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
    outputs: str = "both"  # what the model returns in training: rows of both streams, or "originals"
    optional: tuple[str, ...] = ()  # paths of places that may be skipped
    wrapped: bool = True  # whether criteria are told of the streams, or the script doubles its targets
    pairings: str = "all"
    as_published: bool = False
    module: dict[str, Any] = field(default_factory=dict)  # arguments of BatchFormer and BatchFormerV2
