"""Swap-in: BatchFormer in a model that stays as it is, by hooks that can be taken out again."""
