"""Each function of the prelude against plain PyTorch, in the emulator and, as it stands, on a device."""

import math

import pytest
import torch
from harness import build, dropout_arguments, home, i32, i64, multiplier, u32, words
from torch import Tensor

TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "float": torch.float32}
TILES = 24


@pytest.fixture
def kernels(mode):
    return build("primitives", mode=mode)


def blocks(count: int) -> tuple[int]:
    return (-(-count // 256),)


def fragments(tile: Tensor, rows: int, columns: int, name: str) -> Tensor:
    """What 32 lanes hold of the tiles [TILES, rows, columns], in the order of the registers."""
    lane = torch.arange(32)
    group, place = lane // 4, lane % 4
    if name == "float":  # tf32: an element a register
        at = [(group + 8 * (r % 2), place + 4 * (r // 2)) for r in range(4)]
        if rows == 8:
            at = [(place + 4 * r, group) for r in range(2)]
        return torch.stack([tile[:, row, column] for row, column in at], -1).view(torch.int32)
    at = [(group + 8 * (r % 2), 2 * place + 8 * (r // 2)) for r in range(4)]
    if columns == 8:
        at = [(2 * place + 8 * r, group) for r in range(2)]
    pairs = []
    for row, column in at:
        second = (row + 1, column) if columns == 8 else (row, column + 1)
        pairs += [tile[:, row, column], tile[:, second[0], second[1]]]
    return torch.stack(pairs, -1).contiguous().view(torch.int32)


def accumulators(tile: Tensor) -> Tensor:
    """[TILES, 16, 8] as the 4 numbers that each lane holds."""
    lane = torch.arange(32)
    group, place = lane // 4, lane % 4
    at = [(group, 2 * place), (group, 2 * place + 1), (group + 8, 2 * place), (group + 8, 2 * place + 1)]
    return torch.stack([tile[:, row, column] for row, column in at], -1)


def product(kernels, mode: str, name: str, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    middle = a.shape[-1]
    left, right = fragments(a, 16, middle, name), fragments(b, middle, 8, name)
    given = [each.contiguous().to(home(mode)) for each in (left, right, accumulators(c))]
    d = torch.full((TILES, 32, 4), math.nan, device=home(mode))
    kernels.launch(f"product_{'tf32' if name == 'float' else name}", (TILES,), 32, 0, [*given, d], [d])
    return d.cpu()


@pytest.mark.parametrize("name", TYPES)
def test_a_product_of_whole_numbers_is_exact(kernels, mode, name):
    middle = 8 if name == "float" else 16
    a, b = (torch.randint(-9, 10, (TILES, *shape)).to(TYPES[name]) for shape in ((16, middle), (middle, 8)))
    c = torch.randint(-99, 100, (TILES, 16, 8)).float()
    assert torch.equal(
        product(kernels, mode, name, a, b, c), accumulators(c + a.double() @ b.double()).float()
    )


@pytest.mark.parametrize("name", TYPES)
def test_a_product_of_any_numbers_is_that_of_float64(kernels, mode, name):
    middle = 8 if name == "float" else 16
    a, b = (torch.randn(TILES, *shape).to(TYPES[name]) for shape in ((16, middle), (middle, 8)))
    if name == "float":
        a, b = (nearest_tf32(each) for each in (a, b))
    c = torch.randn(TILES, 16, 8)
    size = accumulators(c.abs() + a.double().abs() @ b.double().abs())
    error = product(kernels, mode, name, a, b, c) - accumulators(c + a.double() @ b.double())
    assert (error.abs() / size).max() < 1e-6  # tensor cores cut off what they cannot hold


@pytest.mark.parametrize("name", TYPES)
def test_a_product_hands_on_what_is_no_number(kernels, mode, name):
    middle = 8 if name == "float" else 16
    a, b = torch.ones(TILES, 16, middle), torch.ones(TILES, middle, 8)
    a[0, 3, 5], a[1, 4, 1], b[2, 7, 2] = math.inf, math.nan, -math.inf
    c = torch.zeros(TILES, 16, 8)
    expected = torch.einsum("tik,tkj->tij", a, b)  # matmul of a CPU may skip what is no number
    got = product(kernels, mode, name, a.to(TYPES[name]), b.to(TYPES[name]), c)
    assert torch.equal(got.nan_to_num(7.5), accumulators(expected).nan_to_num(7.5))


def test_matrices_come_by_rows_and_by_columns(kernels, mode):
    tiles = torch.randint(-(2**15), 2**15, (4, 8, 8), dtype=torch.int16)
    plain, transposed = (torch.zeros(32, 4, dtype=torch.int32, device=home(mode)) for _ in range(2))
    given = tiles.to(home(mode))
    kernels.launch("matrices", (1,), 32, 512, [given, plain, transposed], [plain, transposed])
    for got, expected in ((plain, tiles), (transposed, tiles.transpose(1, 2))):
        pairs = expected.contiguous().view(
            torch.int32
        )  # [matrix, row, pair]: lane 4 row + pair, register matrix
        assert torch.equal(got.cpu(), pairs.flatten(1).T)


def test_a_copy_is_there_when_it_was_waited_for_and_zero_where_nothing_is(kernels, mode):
    pieces = torch.randint(-(2**31), 2**31, (256, 4), dtype=torch.int32)
    there = torch.randint(0, 2, (256,), dtype=torch.int32)
    to = torch.full_like(pieces, 77).to(home(mode))
    given = [each.to(home(mode)) for each in (pieces, there)]
    kernels.launch("copies", (2,), 64, 2048, [*given, to], [to])
    assert torch.equal(to.cpu(), pieces * there[:, None])


def test_lanes_get_what_other_lanes_have(kernels, mode):
    x, y = torch.randint(0, 2**31, (32,), dtype=torch.int32), torch.randint(-99, 99, (32,)).float()
    out = torch.zeros(8, 32, dtype=torch.int32, device=home(mode))
    sums = torch.zeros(32, device=home(mode))
    kernels.launch("lanes", (1,), 32, 0, [x.to(home(mode)), y.to(home(mode)), out, sums], [out, sums])
    lane = torch.arange(32)
    votes = sum(int(value & 1) << i for i, value in enumerate(x.tolist()))
    expected = [
        x[(lane * 7 + 3) % 32],
        x[lane // 8 * 8 + 5],
        x[lane ^ 1],
        x[lane ^ 16] ^ (x[lane ^ 9] + (lane ^ 9)).int(),
        x[torch.where(lane + 3 < 32, lane + 3, lane)],
        x[torch.where(lane % 8 >= 3, lane - 3, lane)],
        torch.full((32,), votes - (votes >> 31 << 32), dtype=torch.int32),
        torch.ones(32, dtype=torch.int32),
    ]
    for got, wanted in zip(out.cpu(), expected, strict=True):
        assert torch.equal(got, wanted.int())
    assert torch.equal(sums.cpu(), y.sum().expand(32))


# Each kind on its own, so that a device that differs in one says in which.
def awkward(kind: str) -> Tensor:
    """Numbers in float32 that are hard to round, an even number of them."""
    bits = torch.arange(2**16, dtype=torch.int64) << 16
    if kind == "ties":  # half way between neighbours in bfloat16, in tf32 and in float16, and beside that
        half = torch.tensor([0x8000, 0x7FFF, 0x8001, 0x1000, 0x0FFF, 0x1001, 0x3000, 0x2FFF])
        bits = (bits[:, None] | half).flatten()
    elif kind == "any":
        bits = torch.randint(0, 2**32, (2**17,))
    elif kind == "small":  # denormal in float32, or in float16
        bits = torch.cat(
            [
                torch.randint(0, 2**23, (2**14,)),
                torch.randint(0x33000000 - 2**24, 0x38800000 + 2**20, (2**16,)),
            ]
        )
        bits = torch.cat([bits, bits + 2**31])
    elif kind == "large":  # about the largest of float16, and of float32
        bits = torch.cat([torch.arange(0x477FE000, 0x47800100, 13), torch.arange(0x7F7F0000, 0x7F800001, 8)])
        bits = torch.cat([bits, bits + 2**31])
    else:
        bits = torch.tensor([0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7FBFFFFF])
    numbers = (bits - (bits >> 31 << 32)).int().view(torch.float32)
    if kind not in ("any", "no number"):
        numbers = numbers[~numbers.isnan()]
    return numbers[: len(numbers) // 2 * 2]


KINDS = ["ties", "any", "small", "large", "no number"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_halves_are_rounded_to_the_nearest_and_ties_to_even(mode, name, kind):
    kernels = build("primitives", mode="fast" if mode == "check" else mode)
    x = awkward(kind)
    out = torch.zeros(len(x) // 2, dtype=torch.int32, device=home(mode))
    kernels.launch(f"round_{name}", blocks(len(out)), 256, 0, [x.to(home(mode)), i32(len(out)), out], [out])
    expected = x.to(TYPES[name]).view(torch.int16)
    expected[x.isnan()] = 0x7FFF
    assert torch.equal(out.cpu().view(torch.int16), expected)


def nearest_tf32(x: Tensor) -> Tensor:
    """x with 10 bits behind the point, ties away from zero, in exact arithmetic."""
    wide = x.double()
    exponent = torch.frexp(wide).exponent.clamp(min=-125)  # 2^(exponent - 1) <= |x|
    step = torch.ldexp(torch.ones_like(wide), exponent - 11)
    rounded = ((wide.abs() / step + 0.5).floor() * step).copysign(wide).float()
    return torch.where(x.isfinite(), rounded, x)


@pytest.mark.parametrize("kind", KINDS)
def test_tf32_is_rounded_to_the_nearest_and_ties_away_from_zero(mode, kind):
    kernels = build("primitives", mode="fast" if mode == "check" else mode)
    x = awkward(kind)
    out = torch.zeros(len(x), dtype=torch.int32, device=home(mode))
    kernels.launch("round_tf32", blocks(len(x)), 256, 0, [x.to(home(mode)), i32(len(x)), out], [out])
    got, expected = out.cpu().view(torch.float32), nearest_tf32(x)
    number, upper = ~x.isnan(), (x.view(torch.int32) & 0x007F_E000) != 0
    # A device makes infinities of what is no number by bits that are cut off alone.
    assert got[~number & (upper | (mode != "device"))].isnan().all()
    assert torch.equal(got[number].view(torch.int32), expected[number].view(torch.int32))


def test_powers_of_two_are_as_exact_as_the_softmax_needs(kernels, mode):
    x = torch.cat(
        [
            torch.linspace(-126, 128, 20_011)[:-1],
            -torch.rand(4096) * 20,
            torch.tensor([0.0, -0.0, 1e-40, 1, -1, -125, 127]),
        ]
    )
    beside = torch.tensor([-127.0, -150, -1e30, -math.inf, 128, math.inf, math.nan])
    given = torch.cat([x, beside])
    out = torch.zeros(len(given), device=home(mode))
    arguments = [given.to(home(mode)), i32(len(given)), out]
    kernels.launch("powers", blocks(len(given)), 256, 0, arguments, [out])
    got = out.cpu()
    expected = torch.exp2(x.double())
    assert ((got[: len(x)] - expected).abs() / expected).max() < 2**-22
    assert got[20_010 + 4096 : 20_010 + 4099].tolist() == [1, 1, 1]
    assert got[len(x) : -1].tolist() == [0, 0, 0, 0, math.inf, math.inf]
    assert got[-1].isnan()


@pytest.mark.parametrize("name", TYPES)
def test_every_element_is_its_own_number_and_comes_back(kernels, mode, name):
    bits = torch.arange(2**16, dtype=torch.int32)
    x = bits.to(torch.int16).view(TYPES[name]) if name != "float" else (bits * 65_537).view(torch.float32)
    wide, single = (torch.zeros(len(x), device=home(mode)) for _ in range(2))
    again = torch.zeros_like(x, device=home(mode))
    pieces = len(x) * x.element_size() // 16
    arguments = [x.to(home(mode)), i32(pieces), wide, single, again]
    kernels.launch(f"elements_{name}", blocks(pieces), 256, 0, arguments, [wide, single, again])
    whole = torch.int32 if name == "float" else torch.int16
    assert torch.equal(again.cpu().isnan(), x.isnan())
    assert torch.equal(again.cpu().view(whole)[~x.isnan()], x.view(whole)[~x.isnan()])
    for got in (wide.cpu(), single.cpu()):
        assert torch.equal(got.isnan(), x.isnan())
        assert torch.equal(got.nan_to_num(0.5), x.float().nan_to_num(0.5))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -123_456_789])
def test_a_million_words_are_those_of_the_definition(mode, seed):
    kernels, count = build("primitives", mode="fast" if mode == "check" else mode), 250_000
    for site in (1, 2, 3, 4):
        out = torch.zeros(count, dtype=torch.int64, device=home(mode))
        given = torch.tensor(seed, device=home(mode))
        kernels.launch("hash_words", (32,), 256, 0, [given, u32(site), i32(count), out], [out])
        assert torch.equal(out.cpu(), words(seed, site, count))


@pytest.mark.parametrize("first", [0, 4, 1, 6, 2**33 + 3])
@pytest.mark.parametrize("p", [0.5, 0.1, 1.0, 1e-9])
def test_dropout_keeps_the_elements_of_the_mask_wherever_it_begins(kernels, mode, first, p):
    x = torch.randn(256)
    out = torch.full_like(x, math.nan).to(home(mode))
    seed = torch.tensor(-123_456_789, device=home(mode))
    mask = multiplier(-123_456_789, 3, p, (256,), first)
    rest = [u32(3), i64(first), *dropout_arguments(p), i32(32), out]
    kernels.launch("dropped", (1,), 256, 0, [x.to(home(mode)), seed, *rest], [out])
    assert torch.equal(out.cpu(), torch.where(mask > 0, x * mask.float(), 0))
