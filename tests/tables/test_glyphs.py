"""The letters drawn from fonts: which there are, that all faces have them, and how they are varied."""

import unicodedata
from pathlib import Path

import pytest
import torch
from fontTools.ttLib import TTFont
from matplotlib import get_data_path

from examples.glyphs.alphabet import CYRILLIC, FACES, FAMILIES, GREEK, LATIN, PLAIN
from examples.glyphs.instances import AUGMENTATION, Affine, affine, augment, instances, thickness
from examples.glyphs.rendering import glyphs

EVERY = tuple(letter.text for letter in LATIN) + tuple(GREEK + CYRILLIC)


def drawn(seed=0):
    """Each Latin letter in each face, varied: `[1696, 1, 24, 24]`."""
    return instances(latin().flatten(0, 1), torch.Generator().manual_seed(seed))


def latin():
    return glyphs(tuple(letter.text for letter in LATIN))


def test_there_are_as_many_letters_and_faces_as_are_said():
    assert (len(LATIN), len(GREEK), len(CYRILLIC), len(FACES), len(FAMILIES)) == (106, 56, 64, 16, 4)
    assert len(set(EVERY)) == len(EVERY) == 226
    assert sum(letter.diacritic == PLAIN for letter in LATIN) == 26
    assert all(len(text) == 1 for text in EVERY)


def test_a_letter_is_composed_of_what_it_says():
    for letter in LATIN:
        parts = unicodedata.normalize("NFD", letter.text)
        assert parts[0] == letter.base
        assert len(parts) == 1 + (letter.diacritic != PLAIN)
    assert len({(letter.base, letter.diacritic) for letter in LATIN}) == 106
    assert not {letter.text for letter in LATIN} & set("ďľťģ")  # drawn with another mark than their name says


@pytest.mark.parametrize("face", FACES)
def test_a_face_has_every_letter(face):
    path = Path(get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    with TTFont(path, lazy=True) as font:
        characters = font.getBestCmap()
        assert not {text for text in EVERY if ord(text) not in characters}


def test_no_drawing_is_empty_and_none_reaches_far_over_the_edge():
    drawings = glyphs(EVERY)
    assert drawings.shape == (226, 16, 48, 48)
    assert drawings.dtype == torch.float32
    assert (drawings.min(), drawings.max()) == (0, 1)
    ink = drawings.sum((-1, -2))
    assert ink.min() > 30
    edge = torch.ones(48, 48, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    on_edge = (drawings * edge).sum((-1, -2)) / ink
    assert (on_edge > 0.02).float().mean() < 0.01  # of 3,616 drawings
    assert on_edge.max() < 0.1


def test_no_two_letters_are_drawn_alike_in_a_face():
    for face in latin().unbind(1):
        distances = torch.cdist(face.flatten(1), face.flatten(1)) + 1e9 * torch.eye(106)
        assert distances.min() > 0.5


def test_a_diacritic_leaves_its_letter_where_it_is():
    by_text = {letter.text: place for place, letter in enumerate(LATIN)}
    drawings = latin()
    for marked in "àéôũå":
        base = unicodedata.normalize("NFD", marked)[0]
        lower = slice(24, 36)  # above the baseline, below the mark
        torch.testing.assert_close(
            drawings[by_text[marked], :, lower], drawings[by_text[base], :, lower], atol=0.35, rtol=0
        )


def test_drawings_are_made_once():
    assert latin() is latin()


def test_images_are_the_same_for_a_seed_and_differ_between_seeds():
    first = drawn()
    assert first.shape == (1696, 1, 24, 24)
    assert torch.equal(first, drawn())
    assert not torch.equal(first, drawn(1))
    torch.rand(3)
    assert torch.equal(first, drawn())  # independent of other random draws


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    augment(drawn(), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_in_range_and_show_their_letter():
    images = drawn()
    assert images.isfinite().all()
    assert ((images > 0) & (images < 1)).float().mean() > 0.8
    assert (images.min(), images.max()) > (torch.tensor(-0.8), torch.tensor(0.9))
    assert images.max() < 2
    assert images.flatten(1).std(1).min() > 0.03


def test_an_affine_map_of_nothing_is_the_identity():
    still = Affine(turn=0.0, scale=0.0, shear=0.0, shift=0.0)
    pictures = latin()[:8, 0][:, None]
    torch.testing.assert_close(affine(pictures, torch.Generator(), still), pictures, atol=1e-4, rtol=0)


@pytest.mark.parametrize("most", [Affine(), AUGMENTATION])
def test_a_shift_is_no_larger_than_its_bound(most):
    only = Affine(turn=0.0, scale=0.0, shear=0.0, shift=most.shift)
    dot = torch.zeros(500, 1, 48, 48)
    dot[..., 22:26, 22:26] = 1
    moved = affine(dot, torch.Generator().manual_seed(0), only)
    places = torch.arange(48.0) - 23.5
    for along in (2, 3):
        centre = (moved.sum(along)[:, 0] * places).sum(1) / moved.sum((1, 2, 3))
        assert centre.abs().max() <= most.shift * 24 + 0.01
        assert centre.abs().max() > most.shift * 24 * 0.9


def test_thickness_goes_from_the_erosion_to_the_dilation():
    pictures = latin()[:50, 0][:, None]
    varied = thickness(pictures, torch.Generator().manual_seed(0))
    change = varied.sum((1, 2, 3)) - pictures.sum((1, 2, 3))
    assert change.min() < 0 < change.max()
    assert (varied.min(), varied.max()) == (0, 1)
