//! Which implementation runs a call, and how often each has run.

use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Kind, TchError};

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

/// The one place that chooses: what the forward and its backward have in common decides, as they share what is
/// saved. The Python side mirrors it for torch's fake tensors.
pub fn choose(input: &Input) -> Result<Path, TchError> {
    let kind = input.x.f_kind()?;
    let fused = matches!(kind, Kind::Float | Kind::Double)
        && input.x.device() == Device::Cpu
        && input.params.in_proj.weight.f_kind()? == kind; // not so under autocast
    Ok(if fused { Path::Cpu } else { Path::Aten })
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
