"""A small layer around a memory bank, and what it has to give, from lists of earlier inputs in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchformer.modules._memory import MemoryBank
from rank import join, leave

CHANNELS, POSITIONS = 6, 3


class Layer(nn.Module):
    """Samples attend to those of their batch and to the remembered, at each position, by today's weights."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS, dtype=dtype)
        self.project = nn.Linear(CHANNELS, 3 * CHANNELS, dtype=dtype)
        self.bank = MemoryBank(size)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.bank.look(x)
        if seen.enters:
            self.bank.enter(x)
        keys = torch.cat([x, seen.rows])
        mask = None
        if seen.count is not None:
            mask = torch.arange(len(keys))[None] < len(x) + seen.count  # [1, K]
        return x + self.attend(x, keys, mask)

    def attend(self, x: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        query = self.project(self.norm(x))[..., :CHANNELS]
        key, value = self.project(self.norm(keys))[..., CHANNELS:].chunk(2, -1)
        query, key, value = (each.transpose(0, 1).unsqueeze(1) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, mask)  # [L, 1, N, C]
        return attended.squeeze(1).transpose(0, 1)


def expected(layer: Layer, x: Tensor, earlier: list[Tensor]) -> Tensor:
    """Output of x [N, L, C] after the samples `earlier`, each [L, C], in plain loops over samples."""
    weight, bias = layer.project.weight.double(), layer.project.bias.double()

    def projected(sample: Tensor) -> tuple[Tensor, ...]:
        centred = sample - sample.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt()
        return ((scaled * layer.norm.weight + layer.norm.bias) @ weight.T + bias).chunk(3, -1)

    rows = []
    answers = [projected(sample) for sample in (*x, *(each.detach() for each in earlier))]
    for sample in x:
        query = projected(sample)[0]
        scores = torch.stack([(query * key).sum(-1) for _, key, _ in answers]) / CHANNELS**0.5  # [K, L]
        values = torch.stack([value for _, _, value in answers])  # [K, L, C]
        rows.append(sample + (scores.softmax(0).unsqueeze(-1) * values).sum(0))
    return torch.stack(rows)


def gradients(layer: Layer, *inputs: Tensor) -> list[Tensor]:
    """Of the parameters and of the inputs, which are then None again."""
    found = [*layer.parameters(), *inputs]
    grads = [each.grad for each in found]
    for each in found:
        each.grad = None
    return grads


def batch(samples: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(samples, POSITIONS, CHANNELS, dtype=dtype, requires_grad=True)


def train_under_ddp(rank: int, world_size: int, store: str) -> None:
    """Buffers are those of rank 0 after a step; the bank of each rank has its own samples."""
    join(rank, world_size, store)
    torch.manual_seed(0)
    layer = Layer(8)
    layer.register_buffer("rank", torch.tensor([rank]))
    wrapped = DistributedDataParallel(layer, broadcast_buffers=True)
    torch.manual_seed(rank + 1)
    batches = [batch(3) for _ in range(2)]
    for x in batches:
        wrapped(x).square().sum().backward()
    assert layer.rank.item() == 0, "buffers are broadcast"
    assert torch.equal(layer.bank.look(batch(1)).rows, torch.cat(batches[::-1]).detach())
    leave()
