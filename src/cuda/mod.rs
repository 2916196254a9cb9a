//! The layer on CUDA: kernels of ours between libtorch's matrix products, on torch's current stream and in its memory.
//! Nothing of CUDA is needed to build.
//!
//! From the top down: `choose` says whether a call is served here, and why not; `steps` is the order of the steps;
//! `norm`, `activation`, `attention` and `totals` are its pieces, and the only place that knows a kernel's grid, block,
//! shared memory and defines; `call` is what all of them need. `ledger` knows which sources are verified on a device,
//! and `self_check` compares a small layer with libtorch's before the first call of a kind.
//!
//! Below them: `kernel` says what is launched, `launch` with which arguments; `loaded` finds the function of a kernel,
//! which `compile` makes of the source in `kernels/` with the compiler that torch brings, `cache` keeps on disk and
//! `driver` loads; `stream` asks torch; `emulated` replaces the device for CPU tensors; `device` and `status` describe
//! the machine.
//!
//! Unsafe code is in five files, each for one reason: `library`, which looks up C functions by name; `driver`, `compile`
//! and `stream`, which call them; `launch`, which hands out the addresses of the arguments.

mod activation;
mod attention;
mod cache;
mod call;
mod choose;
mod compile;
mod device;
mod driver;
mod emulated;
mod error;
mod fnv;
mod kernel;
mod launch;
mod ledger;
mod library;
mod loaded;
mod norm;
mod self_check;
mod status;
mod steps;
mod stream;
mod totals;

use tch::{TchError, Tensor};

use crate::call::{Dims, Grads, Input, SavedTensors};

pub use choose::{check, decisions, reason, sources, Asker, Reason, Signature, Switch};
pub use emulated::{is_emulated, set_emulator, Access, Emulator, RawArg};
pub use error::CudaError;
pub use kernel::{Define, Kernel, Source};
pub use launch::{launch, Arg};
pub use status::status;

/// What can fail on the way.
#[derive(Debug)]
pub enum Error {
    Torch(TchError),
    Cuda(CudaError),
}

type Result<T> = std::result::Result<T, Error>;

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`, and what the backward takes.
pub fn forward(input: &Input, dims: &Dims) -> Result<(Tensor, SavedTensors)> {
    steps::forward(input, dims, choose::tf32(input, dims)?)
}

/// The gradients for `grad_y`, of the shape of `x`.
pub fn backward(grad_y: &Tensor, input: &Input, saved: SavedTensors, dims: &Dims) -> Result<Grads> {
    steps::backward(grad_y, input, saved, dims, choose::tf32(input, dims)?)
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Self::Torch(error)
    }
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Torch(error) => error.fmt(f),
            Self::Cuda(error) => error.fmt(f),
        }
    }
}
