"""The plain reading: the layer in a few lines of float64 PyTorch, and its dropout masks in NumPy.

Written apart from the package, from the papers: Vaswani et al. (2017) for the layer, Steele, Lea and Flood
(2014) for SplitMix64.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import batchformer as bf

# Which gradients an op is asked for: of x, of twelve parameters, and of keys and values that a call brings.
ALL, NOTHING = (*(True,) * 13, False), (False,) * 14
SITES = {"attention": 1, "hidden": 2, "residual1": 3, "residual2": 4}
GAMMA = np.uint64(0x9E3779B97F4A7C15)


def layer_forward(
    x: Tensor,
    weights: Mapping[str, Tensor],
    nhead: int,
    *,
    norm_first: bool = False,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    multipliers: Mapping[str, Tensor] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """y [N, L, C] of x [N, L, C]; `weights` is a state_dict, `multipliers` the scaled masks by site."""
    samples, positions, channels = x.shape
    width = channels // nhead
    keep = multipliers or {}

    def drop(site: str, value: Tensor) -> Tensor:
        return value * keep[site] if site in keep else value

    def linear(name: str, value: Tensor) -> Tensor:
        weight, bias = weights[name + "weight"], weights.get(name + "bias")
        return value @ weight.T if bias is None else value @ weight.T + bias

    def norm(name: str, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        scaled = (
            centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * weights[f"{name}.weight"]
        )
        bias = weights.get(f"{name}.bias")
        return scaled if bias is None else scaled + bias

    def attention(value: Tensor) -> Tensor:
        q, k, v = linear("self_attn.in_proj_", value).chunk(3, -1)  # [N, L, C] each
        q, k, v = (each.view(samples, positions, nhead, width) for each in (q, k, v))
        scores = torch.einsum("nlhd,mlhd->lhnm", q, k) / math.sqrt(width)
        probabilities = drop("attention", torch.softmax(scores, -1))  # [L, H, N, N]
        attended = torch.einsum("lhnm,mlhd->nlhd", probabilities, v).reshape(samples, positions, channels)
        return drop("residual1", linear("self_attn.out_proj.", attended))

    def feedforward(value: Tensor) -> Tensor:
        hidden = drop("hidden", activation(linear("linear1.", value)))
        return drop("residual2", linear("linear2.", hidden))

    if norm_first:
        x = x + attention(norm("norm1", x))
        return x + feedforward(norm("norm2", x))
    x = norm("norm1", x + attention(x))
    return norm("norm2", x + feedforward(x))


def of_queries(layer: bf.TransformerEncoderLayer) -> bf.ops.Parameters:
    """The parameters for keys and values that a call brings: the projection is that of the queries."""
    parameters = layer._parameters_of_op()
    bias = parameters.in_proj_bias
    channels = parameters.in_proj_weight.shape[1]
    return parameters._replace(
        in_proj_weight=parameters.in_proj_weight[:channels],
        in_proj_bias=None if bias is None else bias[:channels],
    )


def mix(state: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def multiplier(seed: int, site: str, p: float, shape: tuple[int, ...]) -> Tensor:
    """What dropout multiplies with at a site: 0, or 1 / (1 - p) for p rounded to a multiple of 1 / 65536."""
    threshold = round(65536 * p)
    if threshold == 65536:
        return torch.zeros(shape, dtype=torch.float64)
    count = math.prod(shape)
    site_offset = np.array([SITES[site]], dtype=np.uint64) * GAMMA  # arrays wrap around in silence
    start = mix(mix(np.array([seed], dtype=np.int64).view(np.uint64)) + site_offset)
    words = mix(start + np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * GAMMA)
    bits = words.astype("<u8").view("<u2")[:count].astype(np.int64)
    kept = torch.from_numpy(bits >= threshold).double() * (65536 / (65536 - threshold))
    return kept.view(shape)


def multipliers(
    seed: int,
    p: Mapping[str, float],
    samples: int,
    positions: int,
    channels: int,
    feedforward: int,
    nhead: int,
) -> dict[str, Tensor]:
    """The masks of a whole layer, by site, as :func:`layer_forward` takes them."""
    shapes = {
        "attention": (positions, nhead, samples, samples),
        "hidden": (samples, positions, feedforward),
        "residual1": (samples, positions, channels),
        "residual2": (samples, positions, channels),
    }
    return {site: multiplier(seed, site, p[site], shape) for site, shape in shapes.items()}


def layers(
    *arguments: object, **options: object
) -> tuple[nn.TransformerEncoderLayer, bf.TransformerEncoderLayer]:
    """Torch's layer and ours with the same weights, norms and biases away from their initial 1 and 0."""
    theirs = nn.TransformerEncoderLayer(*arguments, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    ours = bf.TransformerEncoderLayer(*arguments, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def results(
    layer: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, grad_y: Tensor
) -> dict[str, Tensor]:
    """Output and all gradients by name, for the gradient `grad_y` of the output; x and module stay clean."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = layer(x)
    y.backward(grad_y)
    grads = {f"grad of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {"output": y.detach(), "grad of x": x.grad, **grads}


def unfused_attention() -> contextlib.AbstractContextManager[None]:
    """The softmax as it stands, for references.

    Torch's fused one takes the exponential of a difference to a rounded log-sum-exp, and with scores of 1e20
    that makes 6e44 of a gradient of 7, in float64, too.
    """
    return sdpa_kernel(SDPBackend.MATH)


def exact_results(layer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """What `results` would be without rounding: those of torch's layer in float64."""
    layer = copy.deepcopy(layer).double()
    with unfused_attention():
        return results(layer, layer, x.double(), grad_y.double())
