//! Which implementation runs a call, and how often each has run.

use std::sync::atomic::{AtomicU64, Ordering};

/// An implementation of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// libtorch, op by op.
    Aten,
}

static ATEN_CALLS: AtomicU64 = AtomicU64::new(0);

/// The one place that chooses.
pub fn choose() -> Path {
    Path::Aten
}

impl Path {
    /// Records that this path has run a forward or a backward to its end.
    pub fn count(self) {
        match self {
            Path::Aten => ATEN_CALLS.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// Forward and backward calls in this process so far, by path.
pub fn path_counts() -> [(&'static str, u64); 1] {
    [("aten", ATEN_CALLS.load(Ordering::Relaxed))]
}
