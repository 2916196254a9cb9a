"""Which machine this is, what its memory and its tensor cores reach, and which attention torch picks."""

import subprocess
import time
from typing import Any

import torch
from harness import nvrtc
from torch.nn.attention import SDPBackend

from batchformer.benchmark.shapes import GPU
from device_steps.findings import note


def shown_by_nvidia_smi() -> str:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,compute_mode"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)


def seconds_of(call: Any, repeats: int) -> float:
    """Mean of calls in a row, by the device's clock."""
    call()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def copy_rate() -> float:
    """Bytes a second, those read and those written, of a copy of a GiB."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), 10)


def attention_of_torch(dtype: torch.dtype) -> dict[str, str]:
    """What scaled_dot_product_attention runs in training with dropout, shape by shape."""
    chosen = {}
    for shape in GPU:
        size = (shape.positions, shape.heads, shape.samples, shape.channels // shape.heads)
        q, k, v = torch.randn(3, *size, dtype=dtype, device="cuda").requires_grad_().unbind()
        chosen[str(shape)] = SDPBackend(torch._fused_sdp_choice(q, k, v, None, 0.5, False)).name
    return chosen


def main() -> None:
    """Facts first, then the two ceilings: bytes and products."""
    start = time.perf_counter()
    properties = torch.cuda.get_device_properties(0)
    note(
        nvidia_smi=shown_by_nvidia_smi(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        nvrtc=nvrtc().version,
        device={
            "name": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
            "shared": properties.shared_memory_per_block_optin,
            "registers": properties.regs_per_multiprocessor,
        },
        context_seconds=time.perf_counter() - start,
    )
    for dtype in (torch.bfloat16, torch.float32):
        note(**{f"sdpa_{dtype}".replace("torch.", ""): attention_of_torch(dtype)})
    copied = copy_rate()
    note(copy_bytes_per_second=copied)
    rates = {}
    for dtype, tf32 in (
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, True),
        (torch.float32, False),
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        a, b = torch.randn(2, 4096, 4096, dtype=dtype, device="cuda").unbind()
        rates[f"{dtype} {'tf32' if tf32 else ''}".strip()] = (
            2 * 4096**3 / seconds_of(lambda a=a, b=b: a @ b, 10)
        )
    note(
        f"{properties.name}, sm_{properties.major}{properties.minor}, torch {torch.__version__}, "
        f"NVRTC {nvrtc().version}, {copied / 1e12:.2f} TB/s, {rates['torch.bfloat16'] / 1e12:.0f} TFLOP/s",
        product_flops_per_second=rates,
    )


if __name__ == "__main__":
    main()
