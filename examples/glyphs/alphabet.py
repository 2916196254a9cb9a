"""Which letters and which faces there are."""

import string
import unicodedata
from typing import NamedTuple

# Combining characters, and the letters that have them precomposed in every face.
DIACRITICS = {
    "grave": ("\u0300", "aeiouwy"),
    "acute": ("\u0301", "aceilnorsuwyz"),
    "circumflex": ("\u0302", "aceghijosuwy"),
    "tilde": ("\u0303", "ainou"),
    "macron": ("\u0304", "aeiou"),
    "breve": ("\u0306", "aegiou"),
    "dot above": ("\u0307", "cegz"),
    "diaeresis": ("\u0308", "aeiouwy"),
    "ring": ("\u030a", "au"),
    "double acute": ("\u030b", "ou"),
    "caron": ("\u030c", "cenrsz"),  # d, l and t with a caron (and g with a cedilla) have another mark
    "cedilla": ("\u0327", "cklnrst"),
    "ogonek": ("\u0328", "aeiu"),
}
PLAIN = "none"


class Letter(NamedTuple):
    """A Latin letter: the text that is drawn, its base letter and its diacritic."""

    text: str
    base: str
    diacritic: str


def _compose() -> tuple[Letter, ...]:
    letters = [Letter(base, base, PLAIN) for base in string.ascii_lowercase]
    for name, (combining, bases) in DIACRITICS.items():
        letters += [Letter(unicodedata.normalize("NFC", base + combining), base, name) for base in bases]
    return tuple(letters)


LATIN = _compose()  # 106
GREEK = "αβγδεζηθικλμνξοπρςστυφχψωάέήίόύώΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ"  # 56
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ"  # 64

# Files of matplotlib's mpl-data/fonts/ttf; its fonts for formulas (cm) and LastResort lack letters.
FAMILIES = {
    "Sans": tuple(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    "Mono": tuple(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    "Serif": tuple(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    "STIX": tuple(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
}
FACES = tuple(face for family in FAMILIES.values() for face in family)  # 16
