//! Which implementation runs a call, and how often each has run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::call::{DtypeOf, SavedFact};

/// An implementation of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Fused kernels.
    Cpu,
    /// libtorch, op by op.
    Aten,
}

/// Types of devices on which the op is not slower than torch's own layer, which runs on the others: there is no path
/// for accelerators yet but libtorch's, with four times the launches of torch's layer. Meta has shapes alone.
pub const OP_DEVICES: [&str; 2] = ["cpu", "meta"];

static CALLS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Set by tests, which check the fused path by the other.
static ATEN_ALONE: AtomicBool = AtomicBool::new(false);

/// The one place that chooses.
pub fn choose(on_cpu: bool) -> Path {
    if on_cpu && !ATEN_ALONE.load(Ordering::Relaxed) {
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
    /// what they gave. Tried: rounded to half precision as torch keeps it; attention made again from a rounded query and
    /// key does not fit its log-sum-exp.
    pub fn saved_dtype(self, fact: &SavedFact) -> DtypeOf {
        match self {
            Path::Cpu => DtypeOf::Sums,
            Path::Aten => fact.dtype,
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
pub fn path_counts() -> [(&'static str, u64); 2] {
    [("cpu", Path::Cpu), ("aten", Path::Aten)]
        .map(|(name, path)| (name, path.calls().load(Ordering::Relaxed)))
}
