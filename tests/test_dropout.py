"""Dropout: the op against the plain reading under the same masks, and the masks as random numbers."""

import itertools

import pytest
import torch

import batchformer as bf
from devices import skip_what_is_refused
from reference import ALL, SITES, layer_forward, layers, multiplier, multipliers, results
from tolerances import assert_near


def op_with_seed(layer: bf.TransformerEncoderLayer, seed: int):
    """The layer as a function whose dropout seed is given instead of drawn."""
    parameters, config = layer._parameters_of_op(), layer._config()

    def forward(x):
        seed_tensor = torch.tensor(seed, device=x.device)
        return torch.ops.batchformer.encoder_layer(x, *parameters, None, None, seed_tensor, *config, ALL)[0]

    return forward


def set_dropout(layer: torch.nn.TransformerEncoderLayer, p: dict[str, float]) -> None:
    layer.self_attn.dropout = p["attention"]
    layer.dropout.p, layer.dropout1.p, layer.dropout2.p = p["hidden"], p["residual1"], p["residual2"]


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(
    "p",
    [
        {"attention": 0.5, "hidden": 0.5, "residual1": 0.5, "residual2": 0.5},
        {"attention": 0.1, "hidden": 0.25, "residual1": 0.8, "residual2": 0.0},
        {"attention": 1.0, "hidden": 0.3, "residual1": 0.3, "residual2": 0.3},
        {"attention": 0.0, "hidden": 1.0, "residual1": 0.0, "residual2": 0.0},
    ],
    ids=["halves", "mixed", "no attention", "no hidden"],
)
def test_output_and_gradients_are_the_plain_reading_under_the_same_masks(
    norm_first, batch_first, activation, p, device, path
):
    n, l, c, f, heads, seed = 7, 5, 24, 37, 4, -123456789
    _, layer = layers(
        c, heads, f, 0.0, activation, batch_first=batch_first, norm_first=norm_first, dtype=torch.float64
    )
    layer.to(device)
    set_dropout(layer, p)
    shape = (l, n, c) if batch_first else (n, l, c)
    x, grad_y = torch.randn(2, *shape, dtype=torch.float64, device=device)
    skip_what_is_refused(layer, x)
    masks = {site: mask.to(device) for site, mask in multipliers(seed, p, n, l, c, f, heads).items()}
    function = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]

    def plain(x):
        tokens = x.transpose(0, 1) if batch_first else x
        weights = dict(layer.named_parameters())
        options = {"norm_first": norm_first, "activation": function, "multipliers": masks}
        y = layer_forward(tokens, weights, heads, **options)
        return y.transpose(0, 1) if batch_first else y

    op = op_with_seed(layer, seed)
    assert_near(results(op, layer, x, grad_y), results(plain, layer, x, grad_y), torch.float64)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize(
    ("n", "l", "heads"), [(300, 1, 2), (1031, 1, 1), (131, 5, 4), (4, 160, 4), (33, 17, 2), (128, 5, 1)]
)
def test_blocks_and_tiles_of_any_size_draw_the_same_masks(n, l, heads, norm_first, batch_first):
    c, f, seed, p = 12, 17, 99, dict.fromkeys(SITES, 0.3)
    options = {"batch_first": batch_first, "norm_first": norm_first, "dtype": torch.float64}
    _, layer = layers(c, heads, f, 0.0, **options)
    set_dropout(layer, p)
    x, grad_y = torch.randn(2, *((l, n, c) if batch_first else (n, l, c)), dtype=torch.float64)
    masks = multipliers(seed, p, n, l, c, f, heads)

    def plain(x):
        tokens = x.transpose(0, 1) if batch_first else x
        weights = dict(layer.named_parameters())
        y = layer_forward(tokens, weights, heads, norm_first=norm_first, multipliers=masks)
        return y.transpose(0, 1) if batch_first else y

    op = op_with_seed(layer, seed)
    assert_near(results(op, layer, x, grad_y), results(plain, layer, x, grad_y), torch.float64)


def test_the_mask_does_not_depend_on_strides():
    layer = bf.TransformerEncoderLayer(24, 4, 24, 0.5)
    x = torch.randn(7, 5, 24)
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert strided.stride() != x.stride()
    op = op_with_seed(layer, 3)
    torch.testing.assert_close(op(strided), op(x))


def observe(site: str, p: float, n: int = 64, l: int = 4) -> torch.Tensor:
    """What the layer multiplies with at one site, drawn by the module itself, read off its output.

    The layer is set up so that the site's input is constant and what follows passes it on: x is 0 but for
    attention, where x is the identity and the probabilities are all 1 / N.
    """
    c = n
    layer = bf.TransformerEncoderLayer(c, 1, c, 0.0, norm_first=True, dtype=torch.float64)
    set_dropout(layer, dict.fromkeys(SITES, 0.0) | {site: p})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        if site == "attention":
            layer.norm1.weight.fill_(1)
            layer.self_attn.in_proj_weight[2 * c :] = torch.eye(c)
            layer.self_attn.out_proj.weight.copy_(torch.eye(c))
        elif site == "hidden":
            layer.linear1.bias.fill_(1)
            layer.linear2.weight.copy_(torch.eye(c))
        else:
            bias = layer.self_attn.out_proj.bias if site == "residual1" else layer.linear2.bias
            bias.fill_(1)
        if site != "attention":
            return layer(torch.zeros(n, l, c, dtype=torch.float64)).flatten()
        x = torch.eye(n, dtype=torch.float64).unsqueeze(1).expand(n, l, c)
        normed = layer.norm1(torch.eye(n, dtype=torch.float64))
        attended = (layer(x) - x).transpose(0, 1)  # [L, N, C] = mask [L, N, N] / N @ normed
        # The rows of `normed` sum to 0, so masks are known up to a constant a row, which the smallest is.
        masks = torch.linalg.lstsq(normed.T.expand(l, -1, -1), attended.transpose(1, 2)).solution * n
        masks = masks.transpose(1, 2)
        return (masks - masks.min(dim=2, keepdim=True).values).flatten()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("p", [0.5, 0.1, 0.9])
def test_the_share_dropped_and_the_mean_are_those_of_p(site, p):
    mask = observe(site, p)
    kept = mask > 0.5
    scale = 65536 / (65536 - round(65536 * p))
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], scale))
    assert mask[~kept].abs().max() < 1e-6
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs((~kept).double().mean().item() - p) < 4 * deviation
    assert abs(mask.mean().item() - 1) < 4 * deviation * scale


@pytest.mark.parametrize("site", SITES)
def test_elements_and_samples_are_independent(site):
    n, l = 64, 4
    signs = torch.where(observe(site, 0.5, n, l) > 0.5, 1.0, -1.0)
    bound = 4.5 / signs.numel() ** 0.5
    for lag in [*range(1, 17), n, 2 * n, 3 * n, l * n, 2 * l * n]:
        correlation = (signs[:-lag] * signs[lag:]).sum().item() / (signs.numel() - lag)
        assert abs(correlation) < bound * (signs.numel() / (signs.numel() - lag)) ** 0.5, f"lag {lag}"


def test_sites_and_calls_are_independent():
    draws = {(site, call): observe(site, 0.5) for site in SITES for call in range(3)}
    signs = {key: torch.where(mask > 0.5, 1.0, -1.0) for key, mask in draws.items()}
    for (key, first), (other, second) in itertools.combinations(signs.items(), 2):
        correlation = (first * second).mean().item()
        assert abs(correlation) < 4.5 / first.numel() ** 0.5, f"{key} and {other}"


def test_neighbouring_seeds_and_patterns_of_sixteen_bits_are_as_random_as_they_look():
    count = 1 << 16
    for p in (0.5, 0.25):
        words = torch.stack([multiplier(seed, "hidden", p, (count,)) > 0 for seed in range(8)])
        correlations = torch.corrcoef(words.double()).fill_diagonal_(0).abs()
        assert correlations.max() < 4.5 / count**0.5
    bits = (multiplier(11, "attention", 0.5, (16 * count,)) > 0).view(count, 16).long()
    patterns = (bits * 2 ** torch.arange(16)).sum(1)
    counts = torch.bincount(patterns >> 4, minlength=4096).double()
    chi_square = ((counts - count / 4096).square() / (count / 4096)).sum().item()
    assert abs(chi_square - 4095) < 4.5 * (2 * 4095) ** 0.5


def test_the_same_torch_seed_gives_the_same_result_and_another_another(device):
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.5, device=device)
    x = torch.randn(5, 3, 16, device=device)
    first, again, other = (torch.manual_seed(seed) and layer(x) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(other, layer(x)), "the next call has to draw anew"


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropping_nothing_and_dropping_all_are_torchs(p):
    theirs, ours = layers(16, 4, 16, p, dtype=torch.float64)
    x, grad_y = torch.randn(2, 5, 3, 16, dtype=torch.float64)
    assert_near(results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y), torch.float64)


def test_dropping_all_of_what_is_no_number_leaves_none(path):
    theirs, ours = layers(16, 4, 16, 1.0)
    x = torch.randn(5, 3, 16)
    x[0, 1] = torch.inf
    assert torch.equal(ours(x).isnan(), theirs(x).isnan())
    assert ours(x).isnan().any()


def test_evaluation_drops_nothing_and_draws_nothing():
    theirs, ours = layers(16, 4, 16, 0.5, dtype=torch.float64)
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    state = torch.get_rng_state()
    assert_near({"y": ours.eval()(x)}, {"y": theirs.eval()(x)}, torch.float64)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dropout_module_in_evaluation_is_off_by_itself():
    theirs, ours = layers(16, 4, 16, 0.5, dtype=torch.float64)
    for layer in (theirs, ours):
        for module in (layer.self_attn, layer.dropout, layer.dropout1, layer.dropout2):
            module.eval()
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    assert_near({"y": ours(x)}, {"y": theirs(x)}, torch.float64)
