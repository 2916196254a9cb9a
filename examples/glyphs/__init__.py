"""Letters from the fonts that matplotlib brings, drawn once and varied at random; nothing to download.

226 letters in 16 faces of four families: 26 Latin letters, 80 of these with a diacritic, Greek and Cyrillic.
"""
