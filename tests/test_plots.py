"""The picture of relations: what is drawn where."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import batchformer as bf
from attach_nets import Net, X, Y

HEADS = torch.rand(2, 6, 6).softmax(-1).numpy()
LABELS = [2, 0, 2, 0, 1, 2]


def drawn(panel):
    """The matrix in a panel, as attention times N."""
    (picture,) = panel.get_images()
    return np.asarray(picture.get_array())


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_samples_are_sorted_by_class_and_the_share_on_the_own_class_is_in_the_title():
    figure = bf.plot_relations(HEADS, LABELS)
    order = [1, 3, 4, 0, 2, 5]
    own = np.equal.outer(LABELS, LABELS)
    for number, (panel, head) in enumerate(zip(figure.axes, HEADS, strict=False), start=1):
        np.testing.assert_allclose(drawn(panel), 6 * head[np.ix_(order, order)])
        share = 100 * (head * own).sum(1).mean()
        assert panel.get_title() == f"head {number}: {share:.1f} % on the own class"
        edges = sorted({line.get_ydata()[0] for line in panel.lines if line.get_ydata()[0] not in (0, 1)})
        assert edges == [1.5, 2.5]
        assert names(panel.xaxis) == ["0", "1", "2"]
        assert panel.get_xticks().tolist() == [0.5, 2, 4]
    assert names(figure.axes[0].yaxis) == ["0", "1", "2"]
    assert figure.get_suptitle() == "Relations of 6 samples; spread evenly: 38.9 % on the own class"
    assert figure.get_supxlabel() == "attended sample: its class"


@pytest.mark.parametrize(
    "labels", [LABELS, np.array(LABELS), torch.tensor(LABELS)], ids=["list", "array", "tensor"]
)
@pytest.mark.parametrize(
    "counts", [[7, 9, 9], {0: 7, 1: 9, 2: 9}, torch.tensor([7, 9, 9])], ids=["list", "dict", "tensor"]
)
def test_classes_come_from_the_most_frequent_to_the_rarest(labels, counts):
    figure = bf.plot_relations(HEADS, labels, counts=counts, class_names=["cat", "dog", "cow"], title="Six")
    order = [4, 0, 2, 5, 1, 3]
    np.testing.assert_allclose(drawn(figure.axes[0]), 6 * HEADS[0][np.ix_(order, order)])
    assert names(figure.axes[0].yaxis) == ["dog (9)", "cow (9)", "cat (7)"]
    assert figure.get_suptitle().startswith("Six; spread evenly")


def test_names_of_classes_may_be_the_labels():
    figure = bf.plot_relations(HEADS, ["cow", "cat", "cow", "cat", "dog", "cow"])
    assert names(figure.axes[0].yaxis) == ["cat", "cow", "dog"]


def test_without_labels_samples_stay_in_their_order():
    figure = bf.plot_relations(HEADS)
    np.testing.assert_allclose(drawn(figure.axes[1]), 6 * HEADS[1])
    assert [panel.get_title() for panel in figure.axes[:2]] == ["head 1", "head 2"]
    assert not figure.axes[0].lines
    assert figure.get_suptitle() == "Relations of 6 samples"


@pytest.mark.parametrize("heads", [1, 5, 8])
def test_every_head_has_a_panel_and_one_bar_explains_the_colours(heads):
    figure = bf.plot_relations(np.full((heads, 4, 4), 0.25), [0, 0, 1, 1])
    assert len(figure.axes) == heads + 1
    assert figure.axes[-1].get_ylabel() == "attention (1: spread evenly)"
    figure.draw_without_rendering()
    assert any(names(panel.xaxis) == ["0", "1"] for panel in figure.axes[:heads])


def test_a_hundred_classes_have_as_many_names_as_fit_and_no_lines():
    figure = bf.plot_relations(torch.rand(200, 200).softmax(-1), torch.arange(200) // 2)
    (panel, _) = figure.axes
    assert not panel.lines
    assert 10 < len(names(panel.xaxis)) <= 24


@pytest.mark.parametrize("sharpness", [0.1, 100.0])
def test_white_is_even_attention_however_sharp_it_is(sharpness):
    heads = (sharpness * torch.randn(1, 20, 20)).softmax(-1)
    panel, bar = bf.plot_relations(heads).axes
    (picture,) = panel.get_images()
    assert picture.norm(1.0) == pytest.approx(0.5)
    assert picture.norm.vmin >= 0
    assert 1 in np.round(bar.get_yticks(), 6)


def test_it_draws_into_the_panels_that_it_gets_and_leaves_their_figure_as_it_is():
    figure = Figure()
    panels = figure.add_subfigure(figure.add_gridspec(1, 1)[0]).subplots(1, 2)
    assert bf.plot_relations(HEADS, LABELS, axes=panels) is figure
    np.testing.assert_allclose(drawn(panels[0]).sum(), 6 * HEADS[0].sum(), rtol=1e-5)
    assert figure.get_suptitle() == ""


def test_nothing_is_kept_by_pyplot_and_no_setting_changes():
    before = dict(mpl.rcParams)
    assert isinstance(bf.plot_relations(HEADS, LABELS), Figure)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_it_takes_the_arguments_of_relations():
    attachment = bf.attach(Net(), before="fc")
    expected = bf.plot_relations(bf.relations(attachment, X), Y)
    figure = bf.plot_relations((attachment, X), Y)
    np.testing.assert_array_equal(drawn(figure.axes[3]), drawn(expected.axes[3]))
