"""Training steps of tiny layers that go through every kernel, for the sanitizer.

All layers, or those whose numbers are given.
"""

import sys
from typing import Any

import torch

import batchformer as bf
from device_steps.findings import say

CASES: list[tuple[tuple[int, int, int, int], torch.dtype, dict[str, Any]]] = [
    ((3, 5, 32, 2), torch.bfloat16, {}),
    ((17, 2, 48, 2), torch.float16, {"activation": "gelu"}),
    ((33, 2, 64, 2), torch.bfloat16, {"norm_first": True, "activation": "gelu"}),
    ((5, 4, 24, 2), torch.float32, {"batch_first": True}),
    ((70, 2, 64, 2), torch.bfloat16, {}),
    ((65, 1, 64, 2), torch.float32, {"norm_first": True}),
    ((130, 1, 128, 1), torch.float16, {}),
    ((20, 1, 1024, 2), torch.bfloat16, {}),  # heads too wide for one kernel
]


def main() -> None:
    numbers = map(int, sys.argv[1:]) if len(sys.argv) > 1 else range(len(CASES))
    for (n, l, c, h), dtype, options in map(CASES.__getitem__, numbers):
        torch.manual_seed(0)
        layer = bf.TransformerEncoderLayer(c, h, c, 0.5, device="cuda", dtype=dtype, **options)
        x = torch.randn(n, l, c, device="cuda", dtype=dtype, requires_grad=True)
        layer(x).backward(torch.randn_like(x))
        torch.cuda.synchronize()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
        assert x.grad.isfinite().all()
    say(str(bf.ops.path_counts()))


if __name__ == "__main__":
    main()
