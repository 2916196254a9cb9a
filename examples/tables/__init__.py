"""The tables of the papers in miniature: each system without BatchFormer, with it, and with controls."""

from examples.tables import (
    compositional,
    detection,
    domains,
    few_shot,
    larger_batches,
    long_tailed,
    panoptic,
)

TABLES = (
    long_tailed.TABLE,
    detection.TABLE,
    panoptic.TABLE,
    domains.TABLE,
    compositional.TABLE,
    few_shot.TABLE,
    larger_batches.TABLE,
)
