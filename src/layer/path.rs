//! Which implementation runs a call, and how often each has run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tch::Device;

use crate::call::Input;

/// An implementation of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Fused kernels.
    Cpu,
    /// libtorch, op by op.
    Aten,
}

static CALLS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Set by tests, which check the fused path by the other.
static ATEN_ALONE: AtomicBool = AtomicBool::new(false);

/// The one place that chooses.
pub fn choose(input: &Input) -> Path {
    if input.x.device() == Device::Cpu && !ATEN_ALONE.load(Ordering::Relaxed) {
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
