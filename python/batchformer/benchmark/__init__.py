"""How fast the encoder layer is beside torch's own and beside its bare matrix products.

Run `python -m batchformer.benchmark --help`.
"""
