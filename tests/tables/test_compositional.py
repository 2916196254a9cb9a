"""Compositional zero-shot recognition: which pairs are unseen, and how pairs are scored."""

import pytest
import torch

from examples.glyphs.alphabet import DIACRITICS, LATIN, PLAIN
from examples.tables import compositional
from examples.tables.arms import ALONE, BASELINE, BATCHFORMER
from examples.tables.draws import generator
from examples.tables.letters import CLASSES
from examples.tables.network import WIDTH
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")


def job(arm: str, seed: int = 0) -> Job:
    return Job(compositional.SYSTEM, arm, seed, QUICK, changes=(("steps", 3),))


@pytest.mark.parametrize("seed", range(20))
def test_base_and_diacritic_of_an_unseen_letter_are_seen_in_others(seed: int):
    unseen = compositional.unseen_letters(generator(seed, "split")).tolist()
    seen = [letter for letter, new in zip(LATIN, unseen, strict=True) if not new]
    missing = [letter for letter, new in zip(LATIN, unseen, strict=True) if new]
    assert {letter.base for letter in missing} <= {letter.base for letter in seen}
    assert {letter.diacritic for letter in missing} == set(DIACRITICS)
    assert {letter.diacritic for letter in seen} == {PLAIN, *DIACRITICS}
    assert all(letter in seen for letter in LATIN if letter.diacritic == PLAIN)
    assert 0.2 < len(missing) / CLASSES < 0.35


def test_a_seed_draws_which_letters_are_unseen():
    first, again, other = (compositional.unseen_letters(generator(seed, "split")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_score_of_a_pair_is_that_of_its_base_plus_that_of_its_diacritic():
    pairs = compositional.Pairs()
    features = torch.randn(3, WIDTH)
    scores = pairs(features)
    embedded = pairs.embedding(features)
    bases, marks = pairs.bases(embedded), pairs.marks(embedded)
    assert scores.shape == (3, CLASSES)
    for row in range(3):
        for i, letter in enumerate(LATIN):
            base = compositional.BASES.index(letter.base)
            mark = compositional.MARKS.index(letter.diacritic)
            assert scores[row, i].item() == pytest.approx((bases[row, base] + marks[row, mark]).item())


def test_training_sees_no_unseen_letter_and_its_loss_leaves_their_scores_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    checked = []

    def fit(model, arm, attachment, criterion, images, recipe, seed):
        unseen = compositional.unseen_letters(generator(seed, "split"))
        assert set(images.y.tolist()) == set((~unseen).nonzero().flatten().tolist())
        scores = torch.randn(8, CLASSES, requires_grad=True)
        labels = images.y[:8]
        loss = criterion(scores, labels)
        loss.backward()
        seen_labels = (~unseen).cumsum(0)[labels] - 1
        assert torch.allclose(loss, torch.nn.functional.cross_entropy(scores[:, ~unseen], seen_labels))
        assert not scores.grad[:, unseen].any()
        assert scores.grad[:, ~unseen].all()
        checked.append(arm)

    monkeypatch.setattr(compositional, "fit", fit)
    compositional.train(job(BASELINE))
    assert checked == [BASELINE]


@pytest.mark.parametrize("arm", compositional.TABLE.arms)
def test_every_arm_gives_every_column(arm: str):
    outcome = compositional.train(job(arm))
    assert tuple(outcome.metrics) == compositional.TABLE.columns
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    assert (outcome.entropy is None) == (arm in (BASELINE, ALONE))


def test_one_seed_gives_the_same_numbers_every_time():
    assert compositional.train(job(BATCHFORMER, seed=3)) == compositional.train(job(BATCHFORMER, seed=3))


def test_no_best_is_less_than_what_the_scores_give_as_they_are():
    unseen = compositional.unseen_letters(generator(0, "split"))
    labels = torch.arange(CLASSES).repeat(3)
    scores = torch.randn(len(labels), CLASSES)
    scores[torch.arange(len(labels)), labels] += 2
    columns = compositional.columns(scores, labels, unseen)
    right = scores.argmax(1) == labels
    assert columns["Best seen"] >= 100 * right[~unseen[labels]].double().mean()
    assert columns["Best unseen"] >= 100 * right[unseen[labels]].double().mean()
    assert columns["AUC"] <= columns["Best seen"] * columns["Best unseen"] / 100
