"""How fast the encoder layer is, compared with torch's own and with its bare matrix products.

Run `python -m batchformer.benchmark --help`.
"""
