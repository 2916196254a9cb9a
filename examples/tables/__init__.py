"""The tables of the papers in miniature: each system without BatchFormer, with it, and with controls."""
