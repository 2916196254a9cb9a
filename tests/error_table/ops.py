"""Rows of the ops under the modules: what the core checks, and which derivatives there are."""

import torch
from torch.autograd import forward_ad

import batchformer as bf
from error_table.mistakes import (
    ACTIVATION,
    HEADS,
    NOT_DENSE,
    NOT_FLOATING,
    OTHER_DEVICE,
    OTHER_DTYPE,
    PROBABILITY,
)
from error_table.modules import LAYER, TOKENS, X
from error_table.row import Mistake, Row
from reference import ALL, NOTHING

PARAMETERS = bf.ops.Parameters(*(parameter.detach() for parameter in LAYER._parameters_of_op()))
CONFIG = LAYER._config()._replace(dropout=(0.0,) * 4)
_, SAVED = torch.ops.batchformer.encoder_layer(TOKENS, *PARAMETERS, None, None, None, *CONFIG, ALL)


def op(x=TOKENS, seed=None, parameters=PARAMETERS, needs=NOTHING, keys=(None, None), **config):
    """The op itself, whose contract the core checks."""
    return torch.ops.batchformer.encoder_layer(x, *parameters, *keys, seed, *CONFIG._replace(**config), needs)


def backward(grad_y=TOKENS, x=TOKENS, saved=SAVED, needs=ALL):
    return torch.ops.batchformer.encoder_layer_backward(
        grad_y, x, *PARAMETERS, None, None, None, *CONFIG, saved, needs
    )


def parameters(**changed):
    return PARAMETERS._replace(**changed)


OF_QUERIES = PARAMETERS._replace(
    in_proj_weight=PARAMETERS.in_proj_weight[:16], in_proj_bias=PARAMETERS.in_proj_bias[:16]
)
KEYS_VALUES = torch.randn(9, 5, 32)


def with_keys(keys_values=KEYS_VALUES, key_count=None, **more):
    return op(keys=(keys_values, key_count), **({"parameters": OF_QUERIES} | more))


HALF = {
    name: tensor if name.startswith("norm") else tensor.bfloat16()
    for name, tensor in PARAMETERS._asdict().items()
}


def freed(tensor):
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


def with_tangent():
    with forward_ad.dual_level():
        op(forward_ad.make_dual(TOKENS, torch.ones_like(TOKENS)))


def _gradient_with_a_graph():
    x = TOKENS.clone().requires_grad_()
    return torch.autograd.grad(LAYER(x).square().sum(), x, create_graph=True)[0]


GRADIENT = _gradient_with_a_graph()

NOT_TOKENS = Mistake(
    "The op is called by hand, with an input that has no axis for positions or another width.",
    "Pass `[N, L, C]`, for plain features `x.unsqueeze(1)`; or call a module, which does so.",
)
NOT_THE_PARAMETERS = Mistake(
    "A parameter was replaced by one of another size, or two layers' parameters are mixed.",
    "Take all from one layer, in the order of `bf.ops.Parameters`.",
)
NO_SEED = Mistake(
    "The op is called by hand, and its dropout needs a seed that is a tensor.",
    "Pass `torch.randint(2**63 - 1, ())`, or call `bf.ops.encoder_layer`, which draws one.",
)
NO_BIAS = Mistake(
    "A gradient is asked for of a bias that the layer was made without.",
    "Ask for those that exist: `needs = [p is not None and p.requires_grad for p in (x, *parameters)]`.",
)
NOT_THE_KEYS = Mistake(
    "The op is called by hand with keys and values of other positions, another width or dtype.",
    "Project them with the last two thirds of `in_proj_weight`: `[K, L, 2C]`, for x `[N, L, C]`.",
)
FREED = Mistake(
    "The storage was freed, as by `tensor.untyped_storage().resize_(0)` in code that shards or offloads.",
    "Bring it back before the call: in FSDP, call the module that was wrapped, not one inside it.",
)
NO_COUNT = Mistake(
    "The op is called by hand, with a number of keys that is no tensor on the CPU, or too large.",
    "Pass `torch.tensor(count)` with a count from 1 to K, or None if all keys count.",
)
NOT_ITS_BACKWARD = Mistake(
    "The backward is called by hand with a gradient or saved tensors that are not of the same forward.",
    "Pass what `torch.ops.batchformer.encoder_layer` gave for the same input, configuration and needs.",
)
NO_FORWARD_MODE = Mistake(
    "Forward-mode AD reaches the op or its backward; the layer itself leaves such calls to torch.",
    "Call the layer, not the op; for a tangent of the backward use `torch.nn.TransformerEncoderLayer`.",
)
NO_SECOND_DERIVATIVE = Mistake(
    "A gradient is differentiated again, as gradient penalties and some meta-learning do.",
    "Use `torch.nn.TransformerEncoderLayer`: `theirs.load_state_dict(ours.state_dict())`.",
)

OP = (
    Row(lambda: op(X), ValueError, "x: expected shape [N, L, 16], got [6, 16]", *NOT_TOKENS),
    Row(
        lambda: op(TOKENS.to_sparse()),
        TypeError,
        "x: expected a dense tensor (torch.strided), got layout torch.sparse_coo",
        *NOT_DENSE,
    ),
    Row(
        lambda: op(X, batch_first=True), ValueError, "x: expected shape [L, N, 16], got [6, 16]", *NOT_TOKENS
    ),
    Row(
        lambda: op(torch.randn(6, 5, 8)),
        ValueError,
        "x: expected shape [N, L, 16], got [6, 5, 8]",
        *NOT_TOKENS,
    ),
    Row(
        lambda: op(TOKENS[:0]),
        ValueError,
        "x: expected shape [N, L, 16] with at least one sample and one position, got [0, 5, 16]",
        "The op is called by hand with an empty input, which the layer leaves to torch.",
        "Call the layer, or skip the call if `x.numel() == 0`.",
    ),
    Row(
        lambda: op(TOKENS.to(torch.complex64)),
        TypeError,
        "x: expected a dtype of float16, bfloat16, float32 or float64, got complex64",
        *NOT_FLOATING,
    ),
    Row(
        lambda: op(parameters=parameters(out_proj_weight=torch.randn(16, 17))),
        ValueError,
        "out_proj_weight: expected shape [C, C], got [16, 17]",
        *NOT_THE_PARAMETERS,
    ),
    Row(
        lambda: op(freed(TOKENS)),
        RuntimeError,
        "x: expected memory for its 480 elements, got a storage that has been freed",
        *FREED,
    ),
    Row(
        lambda: op(parameters=parameters(linear1_bias=freed(PARAMETERS.linear1_bias))),
        RuntimeError,
        "linear1_bias: expected memory for its 16 elements, got a storage that has been freed",
        *FREED,
    ),
    Row(
        lambda: with_keys(freed(KEYS_VALUES)),
        RuntimeError,
        "keys_values: expected memory for its 1440 elements, got a storage that has been freed",
        *FREED,
    ),
    Row(
        lambda: backward(freed(TOKENS)),
        RuntimeError,
        "grad_y: expected memory for its 480 elements, got a storage that has been freed",
        *FREED,
    ),
    Row(
        lambda: op(TOKENS.to(torch.uint16)),
        TypeError,
        "x: expected a dtype of float16, bfloat16, float32 or float64, got another",
        *NOT_FLOATING,
    ),
    Row(
        lambda: with_keys(KEYS_VALUES[:, :4]),
        ValueError,
        "keys_values: expected shape [K, 5, 32] with at least one key, got [9, 4, 32]",
        *NOT_THE_KEYS,
    ),
    Row(
        lambda: with_keys(KEYS_VALUES[:0]),
        ValueError,
        "keys_values: expected shape [K, 5, 32] with at least one key, got [0, 5, 32]",
        *NOT_THE_KEYS,
    ),
    Row(
        lambda: with_keys(batch_first=True),
        ValueError,
        "keys_values: expected shape [6, K, 32] with at least one key, got [9, 5, 32]",
        *NOT_THE_KEYS,
    ),
    Row(
        lambda: with_keys(KEYS_VALUES.double()),
        ValueError,
        "keys_values: expected dtype float32 as in_proj_weight has, got float64",
        *NOT_THE_KEYS,
    ),
    Row(
        lambda: with_keys(KEYS_VALUES.to("meta")),
        ValueError,
        "keys_values: expected device cpu as x has, got meta",
        *OTHER_DEVICE,
    ),
    Row(
        lambda: with_keys(parameters=PARAMETERS),
        ValueError,
        "in_proj_weight: expected shape [16, 16], got [48, 16]",
        "The op is called by hand with keys and values, and with the projection of all three.",
        "Pass the first third of `in_proj_weight` and `in_proj_bias`, that of the queries.",
    ),
    Row(
        lambda: with_keys(key_count=torch.tensor([3.0])),
        ValueError,
        "key_count: expected a 0-d int64 tensor on cpu, got dtype float32 and shape [1] on cpu",
        *NO_COUNT,
    ),
    Row(
        lambda: with_keys(key_count=torch.tensor(3, dtype=torch.uint16)),
        ValueError,
        "key_count: expected a 0-d int64 tensor on cpu, got dtype another and shape [] on cpu",
        *NO_COUNT,
    ),
    Row(
        lambda: with_keys(key_count=torch.tensor(10)),
        ValueError,
        "key_count: expected from 1 to the 9 of keys_values, got 10",
        *NO_COUNT,
    ),
    Row(
        lambda: with_keys(key_count=torch.tensor(0)),
        ValueError,
        "key_count: expected from 1 to the 9 of keys_values, got 0",
        *NO_COUNT,
    ),
    Row(
        lambda: op(keys=(None, torch.tensor(3))),
        ValueError,
        "key_count: expected None without keys_values, got a tensor",
        *NO_COUNT,
    ),
    Row(
        lambda: op(needs=(*NOTHING[:-1], True)),
        ValueError,
        "needs: expected False for keys_values, which is None, got True",
        *NO_BIAS,
    ),
    Row(lambda: op(nhead=3), ValueError, "nhead: expected a divisor of the width 16, got 3", *HEADS),
    Row(lambda: op(nhead=-1), ValueError, "nhead: expected a divisor of the width 16, got -1", *HEADS),
    Row(
        lambda: op(dropout=(0.0, 2.0, 0.0, 0.0), seed=torch.tensor(1)),
        ValueError,
        "dropout of hidden: expected a probability from 0 to 1, got 2",
        *PROBABILITY,
    ),
    Row(
        lambda: op(dropout=(float("nan"), 0.0, 0.0, 0.0), seed=torch.tensor(1)),
        ValueError,
        "dropout of attention: expected a probability from 0 to 1, got NaN",
        *PROBABILITY,
    ),
    Row(
        lambda: op(dropout=(0.5,) * 4),
        ValueError,
        "seed: expected a 0-d int64 tensor as dropout is on, got None",
        *NO_SEED,
    ),
    Row(
        lambda: op(dropout=(0.5,) * 4, seed=torch.tensor([1.0])),
        ValueError,
        "seed: expected a 0-d int64 tensor, got dtype float32 and shape [1]",
        *NO_SEED,
    ),
    Row(
        lambda: op(dropout=(0.5,) * 4, seed=torch.tensor(1, dtype=torch.uint64)),
        ValueError,
        "seed: expected a 0-d int64 tensor, got dtype another and shape []",
        *NO_SEED,
    ),
    Row(
        lambda: op(activation="tanh"),
        ValueError,
        "activation: expected 'relu' or 'gelu', got 'tanh'",
        *ACTIVATION,
    ),
    Row(
        lambda: op(parameters=parameters(linear2_weight=torch.randn(16, 7))),
        ValueError,
        "linear2_weight: expected shape [16, 16], got [16, 7]",
        *NOT_THE_PARAMETERS,
    ),
    Row(
        lambda: op(parameters=parameters(in_proj_bias=torch.randn(16))),
        ValueError,
        "in_proj_bias: expected shape [48], got [16]",
        *NOT_THE_PARAMETERS,
    ),
    Row(
        lambda: op(parameters=parameters(norm1_weight=None)),
        TypeError,
        "norm1_weight: expected a tensor, got None",
        "A layer without a weight, as `LayerNorm(elementwise_affine=False)`, was taken apart for the op.",
        "Pass ones: `torch.ones(C)`; only a bias may be None.",
    ),
    Row(
        lambda: op(parameters=parameters(norm2_weight=torch.randn(16).double())),
        ValueError,
        "norm2_weight: expected dtype float32 as in_proj_weight has, got float64",
        *OTHER_DTYPE,
    ),
    Row(
        lambda: op(parameters=parameters(linear1_bias=torch.zeros(16, dtype=torch.uint16))),
        ValueError,
        "linear1_bias: expected dtype float32 as in_proj_weight has, got another",
        *OTHER_DTYPE,
    ),
    Row(
        lambda: op(TOKENS.half(), parameters=parameters(**HALF)),
        ValueError,
        "x: expected dtype bfloat16 as in_proj_weight has, got float16",
        *OTHER_DTYPE,
    ),
    Row(
        lambda: op(parameters=parameters(**HALF | {"norm1_weight": torch.ones(16).bfloat16()})),
        ValueError,
        "norm1_weight: expected dtype float32 as x has, got bfloat16",
        "A norm of the layer was cast to half precision, under autocast.",
        "Cast the whole layer, or nothing: autocast casts the linears itself.",
    ),
    Row(
        lambda: op(parameters=parameters(norm1_bias=torch.zeros(16, device="meta"))),
        ValueError,
        "norm1_bias: expected device cpu as x has, got meta",
        *OTHER_DEVICE,
    ),
    Row(
        lambda: op(parameters=parameters(linear1_bias=None), needs=ALL),
        ValueError,
        "needs: expected False for linear1_bias, which is None, got True",
        *NO_BIAS,
    ),
)

DERIVATIVES = (
    Row(
        lambda: backward(saved=SAVED[1:]),
        ValueError,
        f"saved: expected the {len(SAVED)} tensors that a forward with these needs leaves, got "
        f"{len(SAVED) - 1}",
        *NOT_ITS_BACKWARD,
    ),
    Row(
        lambda: backward(grad_y=TOKENS[:5]),
        ValueError,
        "grad_y: expected shape [6, 5, 16], got [5, 5, 16]",
        *NOT_ITS_BACKWARD,
    ),
    Row(
        lambda: backward(grad_y=TOKENS.double()),
        ValueError,
        "grad_y: expected dtype float32 as x has, got float64",
        *OTHER_DTYPE,
    ),
    Row(
        lambda: backward(grad_y=TOKENS.to("meta")),
        ValueError,
        "grad_y: expected device cpu as x has, got meta",
        *OTHER_DEVICE,
    ),
    Row(
        with_tangent,
        NotImplementedError,
        "batchformer::encoder_layer: forward-mode AD is not supported. torch.nn.TransformerEncoderLayer, "
        "whose state_dict is the same, has torch's support for it.",
        *NO_FORWARD_MODE,
    ),
    Row(
        lambda: GRADIENT.sum().backward(),
        RuntimeError,
        "batchformer::encoder_layer: a second derivative is not supported. For a gradient penalty use "
        "torch.nn.TransformerEncoderLayer, whose state_dict is the same.",
        *NO_SECOND_DERIVATIVE,
    ),
)
