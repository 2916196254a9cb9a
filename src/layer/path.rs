//! Which implementation runs a call, and how often each has run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tch::Device;

use super::LayerError;
use crate::call::{Dims, DtypeOf, Input, SavedFact};
use crate::cuda::{self, Asker, Signature, Switch};

/// An implementation of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Fused kernels.
    Cpu,
    /// Kernels between libtorch's products.
    Cuda,
    /// libtorch, op by op.
    Aten,
}

/// Types of devices on which the op is not slower than torch's own layer, which runs on the others; on CUDA where the
/// kernels serve. Libtorch's path has four times the launches of torch's layer. Meta has shapes alone.
pub const OP_DEVICES: [&str; 3] = ["cpu", "cuda", "meta"];

/// Where torch's own layer is faster than the op on the CPU, whose kernels compute half precision in float32: if the
/// processor multiplies in half precision, and the products, which grow with C², outweigh the steps in which torch's
/// layer is slower, which grow with N.
///
/// torch's time over the op's, N x L x C, on a Xeon with AMX for bfloat16 and AVX-512 FP16: bfloat16 96 x 1 x 256 1.47,
/// 64 x 197 x 384 2.24, 96 x 1 x 512 0.81, 256 x 1 x 512 1.09, 1024 x 1 x 512 1.83, 32 x 50 x 512 0.95, 512 x 1 x 1024 0.69,
/// 8 x 50 x 2048 0.38; float16 96 x 1 x 512 1.06, 4 x 50 x 512 1.15, 128 x 1 x 1024 0.86, 512 x 1 x 1024 1.07,
/// 128 x 1 x 2048 0.56. On an EPYC with AVX-512 BF16, bfloat16 in the same order 1.36, 1.01, 0.85, 0.96, 1.18, 0.75, 0.72,
/// 0.50.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchIsFaster {
    pub dtype: &'static str,
    /// With C above this ...
    pub channels: i64,
    /// ... and fewer samples than C² over this.
    pub divisor: i64,
}

/// On this processor.
pub fn torch_is_faster() -> impl Iterator<Item = TorchIsFaster> {
    let bfloat16 = TorchIsFaster { dtype: "bfloat16", channels: 384, divisor: 1024 };
    let float16 = TorchIsFaster { dtype: "float16", channels: 512, divisor: 2048 };
    let rules = [(bfloat16, processor_has_bf16()), (float16, processor_has_fp16())];
    rules.into_iter().filter_map(|(rule, multiplies)| multiplies.then_some(rule))
}

#[cfg(target_arch = "x86_64")]
fn processor_has_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16") // every processor with AMX has it, too
}

#[cfg(target_arch = "x86_64")]
fn processor_has_fp16() -> bool {
    is_x86_feature_detected!("avx512fp16")
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_has_bf16() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_has_fp16() -> bool {
    false
}

static CALLS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Set by tests, which check the fused path by the other.
static ATEN_ALONE: AtomicBool = AtomicBool::new(false);

/// The one place that chooses.
pub fn choose(input: &Input, dims: &Dims) -> Result<Path, LayerError> {
    let device = input.x.device();
    if is_aten_alone(dims.feedforward > 0) {
        return Ok(Path::Aten);
    }
    if device == Device::Cpu && !cuda::is_emulated() {
        return Ok(Path::Cpu);
    }
    if !matches!(device, Device::Cpu | Device::Cuda(_)) {
        return Ok(Path::Aten);
    }
    match cuda::reason(&Signature::of(input, dims)?, Asker::Op) {
        None => Ok(Path::Cuda),
        Some(reason) if device != Device::Cpu && Switch::get() == Switch::Kernels => {
            Err(LayerError::NoKernels { reason: reason.sentence })
        }
        Some(_) => Ok(Path::Aten),
    }
}

/// Whether kernels are out of the question: a layer without hidden units they do not serve, and nobody wants it fast.
fn is_aten_alone(has_hidden: bool) -> bool {
    ATEN_ALONE.load(Ordering::Relaxed) || !has_hidden
}

/// A path with the dtypes of what calls on such a device save, of a layer with hidden units or without; those of CUDA
/// and libtorch are the same.
pub fn of_device_type(device_type: &str, has_hidden: bool) -> Path {
    if device_type == "cpu" && !is_aten_alone(has_hidden) && !cuda::is_emulated() {
        Path::Cpu
    } else {
        Path::Aten
    }
}

/// Whether every call is to go through libtorch from now on.
pub fn aten_alone(alone: bool) {
    ATEN_ALONE.store(alone, Ordering::Relaxed);
}

impl Path {
    /// Which of the dtypes of a call a saved tensor has: the fused path, whose kernels are of float32 and float64, keeps
    /// their results. Tried: rounded to half precision as torch keeps it; attention recomputed from a rounded query and
    /// key does not fit its log-sum-exp.
    pub fn saved_dtype(self, fact: &SavedFact) -> DtypeOf {
        match self {
            Path::Cpu => DtypeOf::Sums,
            Path::Cuda | Path::Aten => fact.dtype,
        }
    }

    fn calls(self) -> &'static AtomicU64 {
        &CALLS[self as usize]
    }

    /// Records that this path has run a forward or a backward to its end.
    pub fn count(self) {
        self.calls().fetch_add(1, Ordering::Relaxed);
    }
}

/// Forward and backward calls in this process so far, by path.
pub fn path_counts() -> [(&'static str, u64); 3] {
    [("cpu", Path::Cpu), ("cuda", Path::Cuda), ("aten", Path::Aten)]
        .map(|(name, path)| (name, path.calls().load(Ordering::Relaxed)))
}
