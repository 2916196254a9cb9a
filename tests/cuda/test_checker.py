"""The checker finds each kind of fault, says what it is and where, and has nothing against what is right."""

import re

import pytest
import torch
from harness import KernelError, Memory, SourceError, build, emulator_missing, i32

pytestmark = pytest.mark.skipif(emulator_missing() is not None, reason=str(emulator_missing()))

# x and y have 64 floats each, a block 64 threads, its shared memory 256 bytes (or what is said).
TWICE = """
extern "C" __global__ void __launch_bounds__(64) kernel(const float* x, float* y) {
  float* tile = (float*)shared_memory();
  int i = threadIdx.x, warp = i / 32;
  u64 state = (u64)i;
  %s
}
"""
SUM = "for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);"
COPY = "copy_async(shared_memory() + 16 * i, (const u8*)x + 16 * (i % 16), true);"

FAULTS = {
    "a read behind the end": ("y[i] = x[i + 1];", "thread 63 .* reads 4 bytes 0 bytes behind the end of x"),
    "a read before the beginning": ("y[i] = x[i - 2];", "thread 0 .* reads 4 bytes 8 bytes before x"),
    "a wide read over the end": (
        "if (i == 0) y[0] = ((const Words4*)(x + 60))[1].w[0];",
        "reads 4 bytes 0 bytes behind the end of x",
    ),
    "a write behind the end": (
        "y[2 * i] = 1;",
        "thread 32 .* writes 4 bytes 0 bytes behind the end of y",
    ),
    "a pointer into nothing": (
        "y[i] = *(const float*)0x123456789000;",
        "reads 4 bytes outside of every argument",
    ),
    "a null pointer": ("y[i] = ((const float*)nullptr)[i];", "reads 4 bytes through a null pointer"),
    "shared memory behind the launch's": (
        "tile[i + 8] = 1;",
        "thread 56 .* writes 4 bytes 0 bytes behind the end of shared memory",
    ),
    "an address that is not aligned": (
        "float v[4]; load(v, x + i % 8); y[i] = v[0] + v[1] + v[2] + v[3];",
        "thread 1 .* reads 16 bytes of x at an address that is no multiple of 16",
    ),
    "a matrix that is not aligned": (
        "u32 d[4]; tile[i] = 1; __syncwarp(); ldmatrix4(d, tile + 1); y[i] = (float)d[0];",
        "reads 16 bytes of shared memory at an address that is no multiple of 16",
    ),
    "a copy from an address that is not aligned": (
        "copy_async(tile + 4 * (i % 4), x + 1, i < 0);",
        "copies from an address that is no multiple of 16",
    ),
    "a write to an input": ("((float*)x)[i] = 1;", "thread 0 .* writes x, which is an input"),
    "a read of an output": ("y[i] += x[i];", "reads y, which nothing has written"),
    "a read of shared memory that nothing has written": (
        "if (i != 7) tile[i] = x[i]; __syncthreads(); y[i] = tile[i ^ 1];",
        "thread 6 .* reads shared memory, which nothing has written",
    ),
    "a matrix of rows that nothing has written": (
        "u32 d[4]; if (i < 4) tile[i] = 1; __syncwarp(); ldmatrix4(d, tile + i / 8 * 4); y[i] = (float)d[0];",
        "thread (8|16|24|31) .* reads shared memory, which nothing has written",
    ),
    "two threads that write one place": (
        "y[i / 2] = x[i];",
        "thread 1 .* writes y, which thread 0 writes, and nothing orders the two",
    ),
    "a missing barrier between warps": (
        "tile[i] = x[i]; __syncwarp(); y[i] = tile[63 - i];",
        "(reads shared memory, which thread [0-9]+ writes, and nothing orders the two|nothing has written)",
    ),
    "a missing barrier before the next round": (
        "for (int r = 0; r < 2; r++) { tile[i] = x[i]; __syncthreads(); y[i] = tile[63 - i]; }",
        "shared memory, which (another thread reads|thread [0-9]+ writes), and nothing orders the two",
    ),
    "a missing barrier of a warp": (
        "tile[i] = x[i]; y[i] = tile[i ^ 1];",
        "reads shared memory, which",
    ),
    "a shuffle in place of a barrier": (
        f"tile[i] = x[i]; float v = x[i]; {SUM} y[i] = tile[i ^ 1] + v;",
        "reads shared memory, which thread [0-9]+ writes, and nothing orders the two",
    ),
    "a barrier that a branch goes around": (
        "if (i != 40) __syncthreads(); y[i] = x[i];",
        "waits for ever at a barrier; 1 threads have ended",
    ),
    "two barriers for one": (
        "if (warp)\n __syncthreads();\n else\n __syncthreads();\n y[i] = x[i];",
        "meets threads of its block that are at another barrier, at given.cu",
    ),
    "a barrier that only some warps have": (
        "if (warp == 0) __syncthreads(); y[i] = x[i]; __syncthreads();",
        "waits for ever at a barrier|at another barrier",
    ),
    "lanes that have ended before a shuffle": (
        "if (i % 32 == 3) return; y[i] = __shfl_xor_sync(0xffffffffu, x[i], 1);",
        "waits for ever at a collective; 2 threads have ended",
    ),
    "lanes that meet in different shuffles": (
        "float v;\n if (i % 2)\n v = __shfl_xor_sync(0xffffffffu, x[i], 1);\n else\n"
        " v = __shfl_xor_sync(0xffffffffu, x[i], 1);\n y[i] = v;",
        "meets lanes of its warp that are in another collective, at given.cu",
    ),
    "a lane outside of its own mask": (
        "y[i] = __shfl_xor_sync(0x0000ffffu, x[i], 1);",
        "thread 16 .* is not in the mask of its own collective",
    ),
    "a shuffle from outside of the mask": (
        "float v = 0; if (i % 32 < 16) v = __shfl_xor_sync(0x0000ffffu, x[i], 16); y[i] = v;",
        "shuffles from a lane that is not in the mask",
    ),
    "a barrier of a part of a warp": (
        "if (i % 32 < 16) __syncwarp(0x0000ffffu); y[i] = x[i];",
        "orders a part of its warp alone, which the checker does not know",
    ),
    "a copy that nobody waits for": (COPY, "ends while a copy is under way that was not waited for"),
    "a read of a copy before the wait": (
        f"{COPY} copy_commit(); y[i] = tile[4 * i]; copy_wait<0>();",
        "thread 0 .* reads shared memory where a copy is under way that was not waited for",
    ),
    "a wait for too few groups": (
        f"{COPY} copy_commit(); copy_commit(); copy_wait<2>(); y[i] = tile[4 * i]; copy_wait<0>();",
        "reads shared memory where a copy is under way",
    ),
    "a group that was never closed": (
        f"{COPY} copy_wait<0>(); y[i] = tile[4 * i]; copy_commit(); copy_wait<0>();",
        "reads shared memory where a copy is under way",
    ),
    "a copy that others read without a barrier": (
        f"{COPY} copy_commit(); copy_wait<0>(); y[i] = tile[4 * (i ^ 1)];",
        "reads shared memory(, which thread [0-9]+ writes, and nothing orders| where a copy|, which nothing)",
    ),
    "a copy into what others still read": (
        f"tile[i] = x[i]; __syncthreads(); y[i] = tile[63 - i]; {COPY} copy_commit(); copy_wait<0>();",
        "writes shared memory, which another thread reads, and nothing orders the two",
    ),
    "a product of numbers that were not rounded": (
        "float d[4] = {}; u32 a[4] = {0x3f800001u, 0, 0, 0}; mma_tf32(d, a, a); y[i] = d[0];",
        "multiplies a number that was not rounded to tf32",
    ),
    "an index beyond an array of the thread's own": (
        "float own[4] = {1, 2, 3, 4}; for (int j = 0; j <= 4; j++) own[j] = x[j]; y[i] = own[i % 4];",
        "reaches beyond an array of its own",
    ),
    "a shift by all bits": ("y[i] = (float)(1u << (i + 1));", "shifts by more bits than there are"),
    "a division by zero": ("y[i] = (float)(64 / i);", "thread 0 .* divides by zero"),
    "a variable of another thread": (
        "float mine = x[i]; *(float**)(tile + 2 * (i % 2)) = &mine; __syncthreads();"
        " y[i] = **(float**)(tile + 2 * (1 - i % 2));",
        "(reads a variable of another thread|writes shared memory, which thread)",
    ),
}
CLEAN = {
    "plain": "y[i] = x[i];",
    "through shared memory": "tile[i] = x[i]; __syncthreads(); y[i] = tile[63 - i];",
    "twice through shared memory": "for (int r = 0; r < 2; r++) { __syncthreads(); tile[i] = x[i];"
    " __syncthreads(); y[i] = tile[63 - i]; }",
    "within a warp": "tile[i] = x[i]; __syncwarp(); y[i] = tile[i ^ 5]; __syncwarp(); tile[i ^ 5] = 1;",
    "a sum of lanes": "y[i] = sum_lanes(x[i]);",
    "a part of a warp": "y[i] = i % 32 < 16 ? __shfl_xor_sync(0x0000ffffu, x[i], 1) : x[i];",
    "a copy": f"{COPY} copy_commit(); copy_wait<0>(); __syncthreads(); y[i] = tile[4 * (i ^ 33)];",
    "one warp alone": "if (warp) { tile[i] = x[i]; __syncwarp(); y[i] = tile[i ^ 1]; }",
    "read by all, then written": "tile[i] = x[i]; __syncthreads(); float s = 0; for (int j = 0; j < 64; j++)"
    " s += tile[j]; __syncthreads(); tile[i] = s; y[i] = tile[i];",
}


def run(body: str, order: int = 0, blocks: int = 1, shared: int = 256) -> None:
    x, y = torch.arange(64.0), torch.zeros(64)
    shared = 1024 if "copy" in body else shared
    build(TWICE % body, mode="check").launch("kernel", (blocks,), 64, shared, [x, y], [y], order)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(fault):
    body, sentence = FAULTS[fault]
    with pytest.raises(KernelError, match=sentence) as found:
        run(body)
    line = re.search(r"kernel: (?:.*\bgiven.cu:(\d+)|a copy that lands|at the end)", str(found.value))
    assert line, found.value
    assert line[1] is None or 6 <= int(line[1]) <= 11, found.value


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("body", CLEAN.values(), ids=CLEAN)
def test_what_is_right_passes_in_any_order(body, order):
    run(body, order)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("fault", [name for name in FAULTS if "barrier" in name])
def test_a_fault_of_order_is_found_in_any_order(fault, order):
    with pytest.raises(KernelError):
        run(FAULTS[fault][0], order)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("y[i] = x[i];", "block .1, 0, 0. writes y, which thread 0 of another block writes"),
        ("y[i] = x[i]; if (blockIdx.x) y[i] = y[63 - i];", "block .1, 0, 0. writes y, which thread 0 of"),
        ("if (blockIdx.x == 0) y[i] = x[i]; else ((volatile float*)y)[i];", "reads y, which thread 0 of"),
    ],
)
def test_blocks_are_ordered_by_nothing(body, sentence):
    with pytest.raises(KernelError, match=sentence):
        run(body, blocks=2)


def test_what_a_block_leaves_in_shared_memory_is_not_there_for_the_next():
    body = "if (blockIdx.x == 0) tile[i] = x[i]; __syncthreads(); if (blockIdx.x) y[i] = tile[i];"
    with pytest.raises(KernelError, match=r"block .1, 0, 0. reads shared memory, which nothing has written"):
        run(body, blocks=2)


def test_a_place_that_several_blocks_read_may_be_written_by_none():
    text = """extern "C" __global__ void kernel(float* x, float* y) {
      int i = threadIdx.x; y[blockIdx.x * 32 + i] = x[i];
      if (blockIdx.x == 2) x[i] = 0;
    }"""
    x, y = torch.ones(32), torch.zeros(96)
    with pytest.raises(KernelError, match="writes x, which another thread reads, and nothing orders the two"):
        build(text, mode="check").launch("kernel", (3,), 32, 0, [x, y], [y], updates=[x])


IN_PLACE = """extern "C" __global__ void kernel(const float* x, float* y, int n) {
  int i = threadIdx.x; if (i < n) y[i] = 2 * x[i ^ FLIP];
}"""


def test_a_kernel_may_work_in_place_where_the_call_says_so():
    x = torch.arange(64.0)
    kernels = build(IN_PLACE, {"FLIP": 0}, "check")
    kernels.launch("kernel", (1,), 64, 0, [x, x, i32(64)], updates=[x])
    assert torch.equal(x, 2 * torch.arange(64.0))
    with pytest.raises(KernelError, match="reads x = y, which nothing has written"):
        kernels.launch("kernel", (1,), 64, 0, [x, x, i32(64)], outputs=[x])
    with pytest.raises(KernelError, match=r"x = y, which (another thread reads|thread \d+ writes)"):
        build(IN_PLACE, {"FLIP": 1}, "check").launch("kernel", (1,), 64, 0, [x, x, i32(64)], updates=[x])


def test_what_lies_between_the_rows_of_a_view_is_not_an_argument():
    text = """extern "C" __global__ void kernel(const float* x, float* y, int width) {
      int row = threadIdx.x / 8, column = threadIdx.x % 8;
      if (column < width) y[row * 12 + column] = x[row * 12 + column];
    }"""
    kernels, whole = build(text, mode="check"), torch.randn(8, 12)
    out = torch.zeros(8, 12)
    kernels.launch("kernel", (1,), 64, 0, [whole[:, 4:8], out[:, 4:8], i32(4)], [out[:, 4:8]])
    assert torch.equal(out[:, 4:8], whole[:, 4:8])
    assert not out[:, :4].any()
    with pytest.raises(KernelError, match="reads 4 bytes across an edge of x"):
        kernels.launch("kernel", (1,), 64, 0, [whole[:, 4:8], out[:, 4:8], i32(5)], [out[:, 4:8]])


def test_memory_of_somebody_else_is_looked_at_like_a_tensor():
    kernels, x, y = build(IN_PLACE, {"FLIP": 0}, "check"), torch.randn(64), torch.zeros(64)
    given, made = Memory(x.data_ptr(), 256, True, False), Memory(y.data_ptr(), 256, False, True)
    kernels.launch("kernel", (1,), 64, 0, [given, made, i32(64)])
    assert torch.equal(y, 2 * x)
    kernels.launch("kernel", (1,), 64, 0, [given, made, (64).to_bytes(4, "little")])
    with pytest.raises(KernelError, match=r"thread 62 .* 0 bytes behind the end of x"):
        kernels.launch("kernel", (1,), 64, 0, [given._replace(bytes=248), made, i32(64)])
    with pytest.raises(KernelError, match="writes y, which is an input"):
        kernels.launch("kernel", (1,), 64, 0, [given, made._replace(readable=True, writable=False), i32(64)])


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_a_launch_that_does_not_fit_its_kernel_is_refused(mode):
    kernels, x, y = build(TWICE % "y[i] = x[i];", mode=mode), torch.zeros(64), torch.zeros(64)
    half = torch.zeros(64, dtype=torch.bfloat16)
    for arguments, outputs, block, sentence in [
        ([x], [], 64, "expected 2 arguments, got 1"),
        ([x, i32(3)], [], 64, "y: expected 8 bytes, got 4"),
        ([half, y], [y], 64, "x: a tensor of torch.bfloat16 does not fit"),
        ([x, y], [y], 96, "expected a block of 1 to 64 threads, got 96"),
    ]:
        with pytest.raises(KernelError, match=re.escape(sentence)):
            kernels.launch("kernel", (1,), block, 0, arguments, outputs)
    with pytest.raises(KernelError, match="other: no such kernel, there are kernel"):
        kernels.launch("other", (1,), 64, 0, [])
    with pytest.raises(KernelError, match="more shared memory than a block can have"):
        kernels.launch("kernel", (1,), 64, 300_000, [x, y], [y])


def test_a_source_that_does_not_compile_says_where():
    with pytest.raises(SourceError, match=r"given\.cu:6.*nothing_of_that_name"):
        build(TWICE % "nothing_of_that_name();", mode="check")
