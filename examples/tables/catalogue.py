"""All tables, for the program; a run imports the module of its own table alone."""

from examples.tables import (
    classification,
    compositional,
    contrastive,
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
    contrastive.TABLE,
    domains.TABLE,
    compositional.TABLE,
    few_shot.TABLE,
    classification.TABLE,
    larger_batches.TABLE,
)
