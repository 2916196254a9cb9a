"""Letters from the fonts that matplotlib brings, drawn once and varied at random: a data set of no download.

226 letters in 16 faces of four families: 26 Latin letters and 80 of them with a diacritic, Greek and Cyrillic.
"""
