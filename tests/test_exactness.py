"""As exact as torch's own layer, finite where it is and right there; `exactness.py` has the whole grid."""

import pytest
import torch

import batchformer as bf
from exactness import INPUTS, shares
from reference import exact_results, layers, results
from tolerances import HALF, assert_near, assert_no_worse_than_twice, shares_of_bound, squared_errors

PROJECTIONS = ("grad of self_attn.in_proj_weight", "grad of self_attn.in_proj_bias")
pre_and_post = pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])


def assert_within_bound(shares_of_bound: dict[str, float]) -> None:
    assert {name: share for name, share in shares_of_bound.items() if not share <= 1} == {}


@pre_and_post
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("shape", [(7, 5, 24, 4), (33, 17, 40, 8), (200, 3, 17, 1), (1, 999, 8, 2)])
def test_float32_is_as_exact_as_torchs(shape, name, norm_first):
    assert_within_bound(shares(shape, norm_first, "gelu", name, 1.0))


@pre_and_post
@pytest.mark.parametrize("shape", [(2, 17821, 64, 4), (4, 30000, 8, 2)])
def test_sums_over_many_tokens_are_as_exact_as_torchs(shape, norm_first):
    """One chain of additions is 17 to 290 times less exact."""
    assert_within_bound(shares(shape, norm_first, "relu", "normal", 1.0))


@pre_and_post
@pytest.mark.parametrize("shape", [(128, 1, 5, 5), (129, 4, 15, 15), (36, 2, 1, 1)])
def test_heads_of_one_channel_are_as_exact_where_samples_are_alike(shape, norm_first):
    """One chain of as many additions as there are samples was ten times less exact."""
    assert_within_bound(shares(shape, norm_first, "gelu", "samples alike", 1.0, draws_of_small=6))


@pytest.mark.parametrize("name", ["one 1e15", "one 5e19", "tokens of 1e6"])
def test_large_scores_over_several_blocks_of_keys_are_as_exact_as_torchs(name):
    """Their log-sum-exp is rounded by more than the scores of a query differ."""
    assert_within_bound(shares((300, 2, 16, 2), False, "gelu", name, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("samples", [28, 150])
def test_samples_that_are_alike_leave_no_gradient_of_scores(samples, dtype):
    layer = bf.TransformerEncoderLayer(15, 3, 15, 0.0, dtype=dtype)
    x = torch.full((samples, 2, 15), -1e3, dtype=dtype)
    actual = results(layer, layer, x, torch.randn_like(x))
    assert [actual[name][:30].abs().max().item() for name in PROJECTIONS] == [0, 0]


@pre_and_post
@pytest.mark.parametrize("value", [0.1, 7.3, 1e6])
def test_tokens_of_one_value_have_the_mean_that_is_the_value(value, norm_first):
    theirs, ours = layers(1000, 4, 64, 0.0, "gelu", norm_first=norm_first)
    x, grad_y = torch.full((3, 2, 1000), value), torch.randn(3, 2, 1000)
    exact = exact_results(theirs, x, grad_y)
    runs = [results(layer, layer, x, grad_y) for layer in (ours, theirs)]
    for each in (*runs, exact):
        each["output"] -= x  # beside which the branches would be rounding errors
    assert_within_bound(shares_of_bound([(*runs, exact)]))


@pytest.mark.parametrize("channels", [8, 17, 32, 256])
def test_one_activation_of_5e19_comes_out_right(channels):
    """Its square overflows; with a reciprocal deviation of 0, the row would be the bias of the norm."""
    theirs, ours = layers(channels, 1, 16, 0.0, norm_first=True)
    x, grad_y = torch.randn(6, 3, channels), torch.randn(6, 3, channels)
    x[2, 1, 3] = 5e19
    exact = results(theirs.double(), theirs, x.double(), grad_y.double())
    actual = results(ours, ours, x, grad_y)
    for each in (actual, exact):
        each["output"][2, 1, 3] = 0  # beside which the others would be rounding errors
    assert_near(actual, exact, torch.float32)


@pre_and_post
@pytest.mark.parametrize("value", [1e20, 1e30, float("inf"), float("nan")])
def test_a_row_whose_squares_overflow_is_no_number(value, norm_first):
    theirs, ours = layers(16, 4, 16, 0.0, norm_first=norm_first)
    x = torch.randn(6, 3, 16)
    x[2, 1, 0] = value
    assert theirs(x)[2, 1].isnan().any()
    y = ours(x)
    assert y[2, 1].isnan().any()
    assert y[:, [0, 2]].isfinite().all()


@pre_and_post
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
def test_one_key_leaves_no_gradient_to_queries_and_keys(dtype, dropout, norm_first):
    layer = bf.TransformerEncoderLayer(32, 4, 32, dropout, norm_first=norm_first, dtype=dtype)
    for length in (1, 3, 150):
        x = torch.randn(1, length, 32, dtype=dtype)
        actual = results(layer, layer, x, torch.randn_like(x))
        assert [actual[name][:64].abs().max().item() for name in PROJECTIONS] == [0, 0]
        assert all(actual[name][64:].abs().max() > 0 for name in PROJECTIONS)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_control_trains_neither_queries_nor_keys(dropout):
    control = bf.BatchFormerV2(32, dropout=dropout, attend="alone")
    control(torch.randn(5, 40, 32)).sum().backward()
    in_proj = control.encoder.self_attn
    assert in_proj.in_proj_weight.grad[:64].abs().max() == 0
    assert in_proj.in_proj_bias.grad[:64].abs().max() == 0


@pytest.mark.parametrize("mean", [300, 1000])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_large_scores_are_as_exact_as_torchs_in_half_precision(dtype, mean):
    ours_squared: dict[str, float] = {}
    theirs_squared: dict[str, float] = {}
    for _ in range(4):
        theirs, ours = layers(32, 4, 32, 0.0, "gelu", dtype=dtype)
        x, grad_y = (torch.randn(16, 5, 32) + mean).to(dtype), torch.randn(16, 5, 32).to(dtype)
        exact = exact_results(theirs, x, grad_y)
        for layer, squared in ((ours, ours_squared), (theirs, theirs_squared)):
            for name, error in squared_errors(results(layer, layer, x, grad_y), exact).items():
                squared[name] = squared.get(name, 0.0) + error
    assert_no_worse_than_twice(ours_squared, theirs_squared)


@pytest.mark.parametrize("samples", [6, 300])
def test_an_attention_that_one_key_takes_whole_has_no_gradient_of_scores(samples):
    """Torch's is rounding noise here, too: the difference of two equal sums in different order."""
    layer = bf.TransformerEncoderLayer(32, 1, 32, 0.0)
    x = 1e6 * torch.randn(samples, 3, 32)
    actual = results(layer, layer, x, torch.randn_like(x))
    assert [actual[name][:64].abs().max().item() for name in PROJECTIONS] == [0, 0]
