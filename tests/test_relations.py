"""Who attends to whom."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import batchformer as bf


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_relations_are_the_probabilities_of_torchs_attention(norm_first, dtype):
    layer = nn.TransformerEncoderLayer(16, 4, 16, 0.5, norm_first=norm_first, dtype=dtype)
    x = torch.randn(9, 16, dtype=dtype)
    probabilities = bf.relations(layer, x)
    assert isinstance(probabilities, np.ndarray)
    assert probabilities.shape == (4, 9, 9)
    assert probabilities.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    exact = nn.TransformerEncoderLayer(16, 4, 16, norm_first=norm_first, dtype=torch.float64).eval()
    exact.load_state_dict(layer.state_dict())
    query = exact.norm1(x.double()) if norm_first else x.double()
    _, expected = exact.self_attn(query, query, query, average_attn_weights=False)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    np.testing.assert_allclose(probabilities, expected.detach().numpy(), rtol=tolerance)


def test_the_module_and_its_encoder_give_the_same_and_keep_their_state():
    module = bf.BatchFormer(16)
    x = torch.randn(9, 16, requires_grad=True)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(bf.relations(module, x), bf.relations(module.encoder, x))
    assert module.training
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_array_owns_its_memory():
    probabilities = bf.relations(bf.BatchFormerV2(16), torch.randn(9, 16))
    kept = probabilities.copy()
    bf.relations(bf.BatchFormerV2(16), torch.randn(9, 16))
    np.testing.assert_array_equal(probabilities, kept)
    probabilities[0, 0, 0] = 2.0


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (
            torch.randn(9, 16).double(),
            ValueError,
            "x: expected dtype float32 as in_proj_weight has, got float64",
        ),
        (torch.randn(9, 8), ValueError, "x: expected shape [N, 16], got [9, 8]"),
        (torch.randn(2, 9, 16), ValueError, "x: expected shape [N, 16], got [2, 9, 16]"),
        (
            torch.ones(9, 16).long(),
            TypeError,
            "x: expected a dtype of float16, bfloat16, float32 or float64",
        ),
        (torch.eye(16).to_sparse(), TypeError, "x: expected a dense tensor (torch.strided)"),
    ],
    ids=["dtype", "width", "rank", "integers", "sparse"],
)
def test_what_does_not_fit_the_layer_is_refused_before_the_norm(norm_first, x, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        bf.relations(bf.TransformerEncoderLayer(16, 4, norm_first=norm_first), x)


def test_a_layer_without_one_projection_of_queries_and_keys_is_refused():
    layer = nn.TransformerEncoderLayer(16, 4)
    layer.self_attn = nn.MultiheadAttention(16, 4, kdim=8, vdim=8)
    with pytest.raises(TypeError, match="expected self_attn with one in_proj_weight"):
        bf.relations(layer, torch.randn(9, 16))
