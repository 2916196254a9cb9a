"""The tables of the papers in miniature: each system without BatchFormer, with it, and with controls."""

from examples.tables import larger_batches, long_tailed

TABLES = (long_tailed.TABLE, larger_batches.TABLE)
