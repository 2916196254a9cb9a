"""Tensors as lines of Python: their values, and how they lie in memory."""

import math
import random

# Not finite. Where only a square is not, rows of torch's layer are finite and wrong, and no measure;
# tests/test_exactness.py says what ours gives.
SPECIAL = {
    "float64": ("nan", "inf", "-inf"),
    "float32": ("nan", "inf", "-inf"),
    "bfloat16": ("nan", "inf", "-inf"),
    "float16": ("nan", "inf", "-inf"),
}
LARGE = {
    "float64": ("1e10", "1e30"),
    "float32": ("1e4", "1e10", "1e15"),
    "bfloat16": ("300.",),
    "float16": ("30.",),
}
SMALL = {
    "float64": ("1e-20", "1e-310"),
    "float32": ("1e-20", "1e-40"),
    "bfloat16": ("1e-20", "1e-40"),
    "float16": ("1e-6",),
}
CONSTANTS = ("0.0", "0.1", "7.3", "-1e3", "1e4")


def values(rng: random.Random, shape: tuple[int, ...], dtype: str, *, finite: bool) -> tuple[str, str]:
    """An expression, and a statement to follow it, mostly empty."""
    normal = f"torch.randn({list(shape)}, dtype=torch.{dtype})"
    kind = rng.choices(
        (
            "normal",
            "constant",
            "constant rows",
            "offset",
            "scaled",
            "large element",
            "special",
            "special many",
        ),
        (70, 4, 5, 4, 6, 5, 5, 1),
    )[0]
    if math.prod(shape) == 0 or (finite and "special" in kind):
        kind = "normal"
    index = rng.randrange(max(1, math.prod(shape)))
    if kind == "constant":
        return f"torch.full({shape}, {rng.choice(CONSTANTS)}, dtype=torch.{dtype})", ""
    if kind == "constant rows":
        c = rng.choice(CONSTANTS)
        which = rng.choice(("[0]", "[-1]", "[:, 0]", "[..., :]"))
        return normal, f"{{name}}{which} = {c}"
    if kind == "offset":
        return f"{normal} + {rng.choice(('10', '300', '-300'))}", ""
    if kind == "scaled":
        return f"{normal} * {rng.choice(LARGE[dtype] + SMALL[dtype])}", ""
    if kind == "large element":
        return normal, f"{{name}}.view(-1)[{index}] = {rng.choice(LARGE[dtype])}"
    if kind.startswith("special"):
        value = rng.choice(SPECIAL[dtype])
        step = "" if kind == "special" else f"::{rng.randint(1, 7)}"
        return normal, f'{{name}}.view(-1)[{index}{step}] = float("{value}")'
    return normal, ""


def is_special(statement: str) -> bool:
    return "float(" in statement


def layout(rng: random.Random, name: str, shape: tuple[int, ...]) -> str:
    """An expression that gives the tensor of that name other strides, or the name alone."""
    kind = rng.choices(
        ("contiguous", "permuted", "expanded", "sliced", "narrowed", "offset", "odd ones", "channels last"),
        (50, 15, 6, 7, 7, 5, 10, 5),
    )[0]
    axis = rng.randrange(len(shape))
    if kind == "permuted":
        order = rng.sample(range(len(shape)), len(shape))
        back = tuple(order.index(each) for each in range(len(shape)))
        return f"{name}.permute{tuple(order)}.contiguous().permute{back}"
    if kind == "expanded" and math.prod(shape):
        start = ":, " * axis + ":1"
        return f"{name}[{start}].expand{shape}"
    if kind == "sliced":
        return f"torch.stack([{name}, {name}], -1)[..., 0]"
    if kind == "narrowed":
        start = rng.choice((0, shape[axis]))
        return f"torch.cat([{name}, {name}], {axis}).narrow({axis}, {start}, {shape[axis]})"
    if kind == "offset":
        return f"torch.cat([{name}.reshape(-1)[:1], {name}.reshape(-1)])[1:].view{shape}"
    if kind == "odd ones" and 1 in shape:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        odd = tuple(
            rng.choice((1, 2, 3, 7, 64)) if size == 1 else s for size, s in zip(shape, strides, strict=True)
        )
        return f"{name}.contiguous().as_strided({shape}, {odd})"
    if kind == "channels last" and len(shape) == 4:
        return f"{name}.contiguous(memory_format=torch.channels_last)"
    return name


def lines(
    rng: random.Random, name: str, shape: tuple[int, ...], dtype: str, *, finite: bool = False
) -> list[str]:
    """Statements that make a tensor of any values, or of finite ones, in any layout."""
    expression, statement = values(rng, shape, dtype, finite=finite)
    made = [f"{name} = {expression}"]
    if statement:
        made.append(statement.format(name=name))
    strided = layout(rng, name, shape)
    if strided != name:
        made.append(f"{name} = {strided}")
    return made
