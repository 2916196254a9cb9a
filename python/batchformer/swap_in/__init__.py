"""Swap-in: BatchFormer in a model whose code stays as it is, by hooks that can be removed again."""
