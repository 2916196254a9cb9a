"""Scenes of letters: the annotations match what was drawn."""

import pytest
import torch

from examples.glyphs.scenes import CANVAS, LETTERS, MOST, STUFF, Scenes, scenes
from examples.tables.draws import generator


@pytest.fixture(scope="module")
def drawn() -> Scenes:
    return scenes(120, generator(0, "scenes"))


def test_the_same_draws_give_the_same_scenes(drawn: Scenes):
    again, other = (scenes(120, generator(seed, "scenes")) for seed in (0, 1))
    assert torch.equal(again.images, drawn.images)
    for one, two in zip(again.found, drawn.found, strict=True):
        assert all(torch.equal(*pair) for pair in zip(vars(one).values(), vars(two).values(), strict=True))
    assert not torch.equal(other.images, drawn.images)


def test_boxes_are_the_edges_of_masks_and_no_letter_meets_another(drawn: Scenes):
    for scene in drawn.found:
        assert 1 <= len(scene.labels) == len(scene.boxes) == len(scene.masks) <= MOST
        assert scene.masks.sum(0).max() == 1
        for box, mask in zip(scene.boxes, scene.masks, strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == torch.stack(edges).tolist()


def test_all_letters_all_numbers_of_them_and_all_stuff_occur(drawn: Scenes):
    assert torch.cat([scene.labels for scene in drawn.found]).unique().tolist() == [*range(len(LETTERS))]
    assert {len(scene.labels) for scene in drawn.found} == {*range(1, MOST + 1)}
    grounds = [scene.ground.unique().tolist() for scene in drawn.found]
    assert all(1 <= len(ground) <= 2 for ground in grounds)
    assert {stuff for ground in grounds for stuff in ground} == {*range(len(STUFF))}


def test_a_letter_is_brighter_than_its_rim_which_is_darker_than_the_ground(drawn: Scenes):
    brightest, darkest, grounds = [], [], []
    for image, scene in zip(drawn.images[:, 0], drawn.found, strict=True):
        grounds.append(image[~scene.masks.any(0)].median())
        for mask in scene.masks:
            brightest.append(image[mask].quantile(0.95))
            darkest.append(image[mask].quantile(0.05))
    assert torch.stack(darkest).mean() < torch.stack(grounds).mean() - 0.2
    assert torch.stack(brightest).mean() > torch.stack(grounds).mean() + 0.2


def test_what_is_not_a_letter_is_ground(drawn: Scenes):
    """Where two plain sides meet only noise varies, and stripes vary more than it."""
    spread: dict[int, list[torch.Tensor]] = {stuff: [] for stuff in range(len(STUFF))}
    for image, scene in zip(drawn.images[:, 0], drawn.found, strict=True):
        for stuff, spreads in spread.items():
            seen = (scene.ground == stuff) & ~scene.masks.any(0)
            if seen.sum() > CANVAS:
                spreads.append(image[seen].std())
    plain, stripes, checks = (torch.stack(spreads).mean() for spreads in spread.values())
    assert plain < 0.7 * stripes
    assert plain < 0.7 * checks
