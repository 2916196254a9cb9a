"""Samples of all ranks in one batch: what each of the processes runs, beside one that has the whole batch."""

import contextlib
import copy
import functools
import itertools
import json
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import batchformer as bf
import stand_ins
from batchformer import ranks
from rank import join, leave
from tolerances import assert_near

WIDTH, CLASSES, POSITIONS, WHOLE, BANK = 16, 5, 4, 12, 9
SPLITS = {2: [(6, 6), (7, 5), (1, 11), (0, 12)], 3: [(4, 4, 4), (5, 7, 0), (1, 2, 9)]}


def run(rank: int, works: Sequence[str], world_size: int, folder: Path) -> None:
    """Each of the works as one of the ranks; a file tells what it raised, if anything."""
    outcomes = {}
    for work in works:
        join(rank, world_size, folder / work)
        torch.manual_seed(0)
        outcomes[work] = None
        try:
            WORKS[work](rank, world_size)
        except Exception:
            outcomes[work] = traceback.format_exc()
        dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))
    leave()


class Net(nn.Module):
    """Features or tokens of samples, related to each other, and their classes."""

    def __init__(self, related: nn.Module) -> None:
        super().__init__()
        self.stem, self.related, self.fc = nn.Linear(6, WIDTH), related, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of both streams."""
        features = self.stem(x)
        if isinstance(self.related, bf.BatchFormer):
            return self.fc(self.related(features)[0])
        layout = self.related.layout
        axes = {"NLC": (0, 1, 2), "LNC": (1, 0, 2), "NCHW": (0, 2, 1)}[layout]
        tokens = features.permute(axes)
        tokens = tokens.unflatten(2, (2, 2)) if layout == "NCHW" else tokens
        both = self.related(tokens)
        both = both.flatten(2) if layout == "NCHW" else both
        return self.fc(both.permute(axes).mean(1))


class Case(NamedTuple):
    """A model and the sum of its losses over samples, as a mean of none would be none."""

    model: nn.Module
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor]


def of_net(related: nn.Module) -> Case:
    """Around one of the modules."""
    for parameter in related.parameters():
        nn.init.normal_(parameter, std=0.3)

    def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), bf.duplicate(y), reduction="sum")

    return Case(Net(related).double(), loss_of)


def of_classifier(**options: Any) -> Case:
    """A classifier of features."""
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).double()
    criterion = bf.attach(model, before="2", dropout=0.0, **options).wrap(
        nn.CrossEntropyLoss(reduction="sum")
    )

    def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return criterion(net(x), y)

    return Case(model, loss_of)


def of_ride(**options: Any) -> Case:
    """Three experts that share one module."""
    model = stand_ins.Ride().double()
    attachment = bf.attach(model, "ride", dropout=0.0, **options)
    criterion = attachment.wrap(lambda logits, y: F.cross_entropy(logits, y, reduction="sum"))

    def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = net(x)["logits"]
        return sum(criterion(each, y) * (1 + number) for number, each in enumerate(logits.unbind(1)))

    return Case(model, loss_of)


def of_detr(**options: Any) -> Case:
    """Two layers of its encoder, in layout LNC."""
    model = stand_ins.Detr().double()
    bf.attach(model, "detr", after=[0, 2], shared=False, wrapped=False, dropout=0.0, **options)

    def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        images = x.reshape(len(x), 3, 16, 16)
        outputs = net(stand_ins.Nested(images, torch.zeros(len(x), 16, 16, dtype=torch.bool)))
        logits = outputs["pred_logits"].transpose(1, 2)  # [2N, classes, queries]
        labels = bf.duplicate(y)[:, None].expand(-1, stand_ins.QUERIES)
        return F.cross_entropy(logits, labels, reduction="sum") + outputs["pred_boxes"].square().sum()

    return Case(model, loss_of)


def of_deit(**options: Any) -> Case:
    """timm's, of two small blocks."""
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=WIDTH, depth=2, num_heads=2, num_classes=CLASSES
    ).double()
    attachment = bf.attach(model, "deit", after=[0], outputs="originals", dropout=0.0, **options)
    criterion = attachment.wrap(lambda logits, y: F.cross_entropy(logits, y, reduction="sum"))

    def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return criterion(net(x.reshape(len(x), 3, 8, 8)), y)

    return Case(model, loss_of)


def both(make: Callable[..., Case], *arguments: Any, **options: Any) -> tuple[Case, Case]:
    """A case that gathers, and the same one without."""
    ours = make(*arguments, gather_distributed=True, **options)
    alone = make(*arguments, **options)
    alone.model.load_state_dict(ours.model.state_dict())
    return ours, alone


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name. None of a parameter is zeros there."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        whole = getattr(parameter.grad, "full_tensor", lambda grad=parameter.grad: grad)()
        found[name] = whole.clone()
    return found


def compare(
    ours: Case, alone: Case, forward: nn.Module, x: Tensor, y: Tensor, samples: Sequence[int], rank: int
) -> None:
    """Loss and gradients of a step of all ranks equal those of one process that has all samples.

    DDP takes the mean over ranks: with each rank's mean loss times n * size / N it is the mean over all.
    """
    size, start = len(samples), sum(samples[:rank])
    own = slice(start, start + samples[rank])
    for case in (ours, alone):
        case.model.zero_grad()
    leaf, part = x.clone().requires_grad_(), x[own].clone().requires_grad_()
    total = alone.loss_of(alone.model, leaf, y) / len(x)
    total.backward()
    loss = ours.loss_of(forward, part, y[own]) * size / len(x)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    actual = gradients(ours.model) | {"loss": mean / size, "x": part.grad / size}
    expected = gradients(alone.model) | {"loss": total.detach(), "x": leaf.grad[own]}
    assert_near(actual, expected, torch.float64)


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    """The whole one, the same on all ranks."""
    return torch.randn(WHOLE, *shape, dtype=torch.float64), torch.randint(CLASSES, (WHOLE,))


# The modules


def modules() -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
    """Those whose gradients are compared."""
    return {
        "post-norm": (bf.BatchFormer, {}),
        "pre-norm, two layers": (bf.BatchFormer, {"norm_first": True, "num_layers": 2}),
        "without bias": (bf.BatchFormer, {"bias": False}),
        "uniform": (bf.BatchFormer, {"attend": "uniform"}),
        "GELU, recomputed": (bf.BatchFormer, {"activation": "gelu", "recompute": True}),
        "NLC": (bf.BatchFormerV2, {}),
        "LNC, pre-norm": (bf.BatchFormerV2, {"layout": "LNC", "norm_first": True, "num_layers": 2}),
        "NCHW, GELU, pre-norm": (
            bf.BatchFormerV2,
            {"layout": "NCHW", "activation": "gelu", "norm_first": True},
        ),
        "torch's path on some": (bf.BatchFormer, {"norm_first": True}),
        "torch's path on all, recomputed": (bf.BatchFormerV2, {"layout": "LNC", "recompute": True}),
    }


def of_module(name: str, **options: Any) -> Case:
    """A net around one of them. A hook inside calls for torch's own operations instead of ours."""
    kind, own = modules()[name]
    module = kind(WIDTH, dropout=0.0, **own, **options)
    if name.startswith("torch's path") and (dist.get_rank() % 2 or "on all" in name):
        module.encoder.linear1.register_forward_hook(lambda *_: None)
    return of_net(module)


def equal_one_process(rank: int, world_size: int) -> None:
    """The modules with DDP around them; those that remember, over the steps."""
    for name, (kind, _) in modules().items():
        for size in (0, BANK):
            ours, alone = both(of_module, name, memory_bank_size=size)
            # With buckets as small as they get, DDP's collectives come between those of the gather.
            forward = DistributedDataParallel(ours.model, bucket_cap_mb=1e-6)
            for samples in SPLITS[world_size]:
                x, y = batch(6) if kind is bf.BatchFormer else batch(POSITIONS, 6)
                with named(f"{name}, bank of {size}, {samples}"):
                    compare(ours, alone, forward, x, y, samples, rank)


@contextlib.contextmanager
def named(what: str) -> Any:
    """What failed, in front of the assertion."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def equal_one_process_attached(rank: int, world_size: int) -> None:
    """The same of attached models."""
    makers = {"ride": (of_ride, 8), "detr": (of_detr, 3 * 16 * 16), "deit": (of_deit, 3 * 8 * 8)}
    for name, (make, elements) in makers.items():
        for options in ({"memory_bank_size": BANK}, {"num_layers": 2}):
            ours, alone = both(make, **options)
            forward = DistributedDataParallel(ours.model)
            # DETR itself takes no empty batch.
            splits = [split for split in SPLITS[world_size] if name != "detr" or 0 not in split]
            for samples in splits:
                x, y = batch(elements)
                with named(f"{name}, {options}, {samples}"):
                    compare(ours, alone, forward, x, y, samples, rank)


def train_in_a_static_graph(rank: int, world_size: int) -> None:
    """DDP's static_graph, and gradients of two batches that are accumulated without and then with it."""
    ours, alone = both(of_module, "pre-norm, two layers", memory_bank_size=BANK)
    forward = DistributedDataParallel(ours.model, static_graph=True)
    for _ in range(3):
        compare(ours, alone, forward, *batch(6), SPLITS[world_size][0], rank)
    ours, alone = both(of_module, "post-norm", memory_bank_size=BANK)
    forward = DistributedDataParallel(ours.model)
    samples = WHOLE // world_size
    own = slice(rank * samples, (rank + 1) * samples)
    for step in range(2):
        x, y = batch(6)
        (alone.loss_of(alone.model, x, y) / WHOLE).backward()
        with forward.no_sync() if step == 0 else contextlib.nullcontext():
            (ours.loss_of(forward, x[own], y[own]) / samples).backward()
    assert_near(gradients(ours.model), gradients(alone.model), torch.float64)


def train_with_checkpoints(rank: int, world_size: int) -> None:
    """Of both kinds, around the module: its backward gathers again."""
    for use_reentrant in (False, True):
        ours, alone = both(of_module, "LNC, pre-norm", memory_bank_size=BANK)
        module = ours.model.related
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=use_reentrant)
        forward = DistributedDataParallel(ours.model)
        for samples in SPLITS[world_size]:
            with named(f"use_reentrant={use_reentrant}, {samples}"):
                compare(ours, alone, forward, *batch(POSITIONS, 6), samples, rank)


def train_sharded(rank: int, world_size: int) -> None:
    """FSDP2: the model alone, with the module a unit of its own, and with each of its layers one."""
    for how in ("", "module", "module, layers"):
        ours, alone = both(of_deit, memory_bank_size=BANK, num_layers=2)
        mesh = init_device_mesh("cpu", (world_size,))
        module = ours.model.batchformer.inserted[0]
        units = [*ours.model.blocks]
        units += list(module.encoder.layers) if "layers" in how else []
        units += [module] if "module" in how else []
        for unit in (*units, ours.model):
            fully_shard(unit, mesh=mesh)
        for samples in (SPLITS[world_size][0], SPLITS[world_size][1]):
            with named(f"{how!r}, {samples}"):
                compare(ours, alone, ours.model, *batch(3 * 8 * 8), samples, rank)


def train_compiled(rank: int, world_size: int) -> None:
    """A step of an attached model in one graph, in which the bank fills."""
    samples = WHOLE // world_size
    own = slice(rank * samples, (rank + 1) * samples)
    ours, alone = both(of_classifier, memory_bank_size=BANK, num_layers=2, norm_first=True)
    step = torch.compile(ours.loss_of, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(4):
        x, y = batch(6)
        for case in (ours, alone):
            case.model.zero_grad()
        expected = alone.loss_of(alone.model, x, y) / WHOLE
        expected.backward()
        loss = step(ours.model, x[own], y[own]) / samples
        loss.backward()
        sums = gradients(ours.model) | {"loss": loss.detach().clone()}
        for each in sums.values():
            dist.all_reduce(each)
        means = {name: each / world_size for name, each in sums.items()}
        assert_near(means, gradients(alone.model) | {"loss": expected.detach()}, torch.float64)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs <= 2, f"{graphs} graphs: compiled anew while the bank filled"


# What is refused


def raises(call: Callable[[], object], *patterns: str) -> None:
    """ValueError of ours, on every rank."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, patterns))):
        call()


def refuse_what_differs(rank: int, world_size: int) -> None:
    """On every rank, and the next step goes on."""
    del world_size
    features, tokens = torch.randn(3, WIDTH), torch.randn(3, 4 + rank, WIDTH)
    first, second = ({"nhead": 4, "norm_first": False}, {"nhead": 2, "norm_first": True})
    module = bf.BatchFormer(WIDTH, gather_distributed=True)
    v2 = bf.BatchFormerV2(WIDTH, gather_distributed=True)
    other = bf.BatchFormer(WIDTH, gather_distributed=True, **(first if rank else second))
    raises(lambda: v2(tokens), "positions", "4 on rank 0", "5 on rank 1")
    maps = bf.BatchFormerV2(WIDTH, layout="NCHW", gather_distributed=True)
    turned = torch.randn(3, WIDTH, 2 + rank, 3 - rank)
    raises(lambda: maps(turned), "height", "2 on rank 0", "3 on rank 1", "pad or resize all maps")
    raises(lambda: other(features), "nhead", "2 on rank 0", "4 on rank 1")
    # Of one rank alone.
    raises(lambda: module(features[:, : WIDTH - rank]), f"x: expected shape [N, {WIDTH}]", "rank 1")
    raises(lambda: module(features, torch.arange(3 + rank)), "y: expected 3 targets", "rank 1")
    raises(lambda: module(features.to([torch.float32, torch.float64][rank % 2])), "x: expected dtype float32")
    raises(lambda: module(features[:0]), "sample")
    with torch.set_grad_enabled(rank == 0):
        raises(lambda: module(features), "gradients", "none on rank 1")
    frozen = bf.BatchFormer(WIDTH, gather_distributed=True, num_layers=2)
    if rank == 0:  # the first layer's keys need no gradient there, so that nobody would scatter one
        frozen.encoder.layers[0].self_attn.in_proj_weight.requires_grad_(False)
        frozen.encoder.layers[0].self_attn.in_proj_bias.requires_grad_(False)
    raises(lambda: frozen(features), "gradients", "1 on rank 0", "0, 1 on rank 1")
    compiled = torch.compile(module, backend="eager") if rank == 0 else module
    raises(lambda: compiled(features), "torch.compile", "1 on rank 0", "0 on rank 1")
    remembering = bf.BatchFormer(WIDTH, gather_distributed=True, memory_bank_size=9)
    if rank == 0:  # as of a copy that another rank has not taken
        remembering._bank(None, 0).enter(torch.randn(2, 1, WIDTH))
    raises(lambda: remembering(features), "memory bank", "2 on rank 0", "0 on rank 1")
    # A place that one rank skips.
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES))
    bf.attach(model, before=["1", "2"], optional=["1"], gather_distributed=True, wrapped=False)
    x = torch.randn(3, 6)
    raises(lambda: (model if rank == 0 else _without_second(model))(x), "bank")
    module(features)[0].sum().backward()


def _without_second(model: nn.Module) -> nn.Module:
    model[1].forward = lambda x: x
    model[1]._forward_pre_hooks.clear()
    model[1]._forward_hooks.clear()
    return model


def draw_masks_of_their_own(rank: int, world_size: int) -> None:
    """Of dropout, with equal samples and equal random states; all is finite."""
    torch.manual_seed(0)
    x = torch.randn(3, POSITIONS, WIDTH)
    for layout, of_torch in itertools.product(("NLC", "LNC"), (False, True)):
        module = bf.BatchFormerV2(WIDTH, layout=layout, gather_distributed=True, memory_bank_size=BANK)
        if of_torch:  # a hook inside makes the layer run torch's path
            module.encoder.linear1.register_forward_hook(lambda *_: None)
        for _ in range(2):
            torch.manual_seed(1)
            leaf = (x if layout == "NLC" else x.transpose(0, 1)).clone().requires_grad_()
            y = module(leaf)
            y.square().sum().backward()
            assert y.isfinite().all()
            assert leaf.grad.isfinite().all()
            assert all(grad.isfinite().all() for grad in gradients(module).values())
            everyones = [torch.empty_like(y) for _ in range(world_size)]
            dist.all_gather(everyones, y.detach().contiguous())
            assert not torch.equal(everyones[rank], everyones[rank - 1])
            states = [torch.empty_like(torch.get_rng_state()) for _ in range(world_size)]
            dist.all_gather(states, torch.get_rng_state())
            assert torch.equal(states[rank], states[rank - 1]), "what is drawn next is the same on all ranks"


def stay_silent_in_evaluation(rank: int, world_size: int) -> None:
    """No collective, no bank; and a group of some ranks."""
    module = bf.BatchFormer(WIDTH, gather_distributed=True, memory_bank_size=BANK)
    ranks.HANDED.clear()
    module.eval()(torch.randn(3, WIDTH))
    assert not ranks.HANDED
    assert not module._banks
    if world_size == 3:
        some = [dist.new_group([0, 1]), dist.new_group([2])][rank // 2]
        case = of_classifier(gather_distributed=True, memory_bank_size=64, process_group=some)
        copied = copy.deepcopy(case.model)
        copied(torch.randn(3, 6, dtype=torch.float64))
        module = copied[2].batchformer.inserted[0]
        assert module.process_group is some
        (bank,) = module._banks.values()
        assert int(bank.count) == 3 * some.size()


WORKS: dict[str, Callable[[int, int], None]] = {
    work.__name__: work
    for work in (
        equal_one_process,
        equal_one_process_attached,
        train_in_a_static_graph,
        train_with_checkpoints,
        train_sharded,
        train_compiled,
        refuse_what_differs,
        draw_masks_of_their_own,
        stay_silent_in_evaluation,
    )
}
