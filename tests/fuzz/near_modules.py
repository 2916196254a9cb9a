"""Calls of BatchFormer and BatchFormerV2 that are compared with their few lines of torch."""

import random
from dataclasses import replace

from fuzz import layers
from fuzz.call import Call, under
from fuzz.layers import Layer
from fuzz.near_layer import MODES, compared

TO_TOKENS = {
    "NC": "z.unsqueeze(1)",
    "NLC": "z",
    "LNC": "z.transpose(0, 1)",
    "NCHW": "z.flatten(2).transpose(1, 2)",
}
FROM_TOKENS = {
    "NC": "t.squeeze(1)",
    "NLC": "t",
    "LNC": "t.transpose(0, 1)",
    "NCHW": "t.transpose(1, 2).reshape(z.shape)",
}


def draw_module(rng: random.Random) -> Call:
    """A module in training, or `batchformer()` with an encoder of one's own."""
    layer = replace(layers.stacked(rng, layers.draw(rng)), batch_first=False)
    layer = replace(layer, samples=max(layer.samples, 1), positions=max(layer.positions, 1))
    layout = rng.choice(("NC", "NC", "NLC", "LNC", "NCHW"))
    attend, two_stream = rng.choice(("batch", "batch", "batch", "alone")), rng.random() < 0.8
    streams = 2 if layout != "NC" and two_stream and rng.random() < 0.2 else 1
    mode = rng.choice(MODES) if rng.random() < 0.15 else ""
    function = layout == "NC" and rng.random() < 0.2
    if function:
        attend, two_stream = "batch", True
        made = layers.ours(rng, layer)
        statement = "(y, _), module = bf.batchformer(x, None, encoder, True), encoder"
    else:
        made = _module(rng, layer, layout, attend, two_stream)
        arguments = ", streams=2" if streams == 2 else ""
        statement = (
            f"y = module(x{arguments})" if layout != "NC" else "y, targets = module(x, torch.arange(len(x)))"
        )
    shape, axis = _shape(rng, layer, layout, streams)
    y_shape = tuple(
        size * (2 if i == axis and two_stream and streams == 1 else 1) for i, size in enumerate(shape)
    )
    check = []
    if layout == "NC" and not function:
        check = [f"assert targets.tolist() == list(range(len(x))) * {2 if two_stream else 1}"]
    return compared(
        rng,
        "batchformer()" if function else "BatchFormer" if layout == "NC" else f"BatchFormerV2 {layout}",
        layer,
        shape,
        [*layers.theirs(rng, layer), *made],
        _plain(layout, axis, attend, two_stream, streams),
        [under(mode, statement), *check],
        mode=mode,
        y_shape=y_shape,
        one_key=attend == "alone",
    )


def _module(rng: random.Random, layer: Layer, layout: str, attend: str, two_stream: bool) -> list[str]:
    layers_of = f", num_layers={layer.layers}" if layer.layers > 1 else ""
    recompute = ", recompute=True" if rng.random() < 0.2 else ""
    options = f'attend="{attend}", two_stream={two_stream}{layers_of}{recompute}'
    made = f"bf.BatchFormer({layer.arguments('batch_first')}, {options})"
    if layout != "NC":
        made = f'bf.BatchFormerV2({layer.arguments("batch_first")}, layout="{layout}", {options})'
    return [
        f"module = {made}",
        "encoder = module.encoder",
        "encoder.load_state_dict(theirs.state_dict())",
        *layers.changes(rng, layer),
    ]


def _shape(rng: random.Random, layer: Layer, layout: str, streams: int) -> tuple[tuple[int, ...], int]:
    """Of x, and which axis is the batch."""
    n, l, c = streams * layer.samples, layer.positions, layer.channels
    if layout == "NC":
        return (n, c), 0
    if layout == "NLC":
        return (n, l, c), 0
    if layout == "LNC":
        return (l, n, c), 1
    rows = rng.choice([each for each in range(1, l + 1) if l % each == 0])
    return (n, c, rows, l // rows), 0


def _plain(layout: str, axis: int, attend: str, two_stream: bool, streams: int) -> list[str]:
    lines = ["def plain(layer, z):", "    first = z"]
    if streams == 2:
        lines.append(f"    first, z = z.chunk(2, {axis})")
    lines.append(f"    t = {TO_TOKENS[layout]}")
    related = "layer(t.reshape(1, -1, t.shape[-1])).reshape(t.shape)" if attend == "alone" else "layer(t)"
    lines.append(f"    t = {related}")
    related = FROM_TOKENS[layout]
    lines.append(
        f"    return torch.cat([first, {related}], {axis})" if two_stream else f"    return {related}"
    )
    return lines
