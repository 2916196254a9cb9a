//! The encoder layer as the binding calls it: check the input, choose the path, run it.

mod check;
mod error;
mod path;

use tch::{TchError, Tensor};

pub use crate::cpu::{empty_cache, fma_flops, instruction_set};
pub use check::{activation, params};
pub use error::{catch, LayerError};
pub use path::{aten_alone, of_device_type, path_counts, torch_is_faster, OP_DEVICES};

use crate::aten;
use crate::call::{Grads, Input, Linear, SavedTensors};
use crate::cpu;
use crate::cuda::{self, CudaError};
use path::Path;

/// `[N, L, C]` to `[N, L, C]`, and what a backward with the input's needs takes.
pub fn forward(input: &Input) -> Result<(Tensor, SavedTensors), LayerError> {
    let dims = check::input(input)?;
    let path = path::choose(input, &dims)?;
    let outputs = match path {
        Path::Cpu => cpu::forward(input, &dims)?,
        Path::Cuda => cuda::forward(input, &dims)?,
        Path::Aten => aten::steps::forward(input, &dims)?,
    };
    path.count();
    Ok(outputs)
}

/// The gradients of [`forward`] for the gradient of its output, from the tensors that it left.
pub fn backward(grad_y: &Tensor, input: &Input, saved: Vec<Tensor>) -> Result<Grads, LayerError> {
    let dims = check::input(input)?;
    check::grad_y(grad_y, &input.x)?;
    let path = path::choose(input, &dims)?;
    let saved = check::saved(saved, input, &dims, path)?;
    if !input.needs.any() {
        return Ok(Grads::none());
    }
    let grads = match path {
        Path::Cpu => cpu::backward(grad_y, input, &saved, &dims)?,
        Path::Cuda => cuda::backward(grad_y, input, saved, &dims)?,
        Path::Aten => aten::steps::backward(grad_y, input, saved, &dims)?,
    };
    path.count();
    Ok(grads)
}

/// The attention probabilities of `x` `[N, C]`, without dropout: `[H, N, N]`, on the CPU.
pub fn relations(x: &Tensor, in_proj: &Linear, nhead: i64) -> Result<Tensor, LayerError> {
    let dims = check::relations(x, in_proj, nhead)?;
    let probabilities = aten::attention::probabilities(x, in_proj, &dims)?;
    Ok(probabilities.f_to_device(tch::Device::Cpu)?.f_contiguous()?)
}

impl From<cuda::Error> for LayerError {
    fn from(error: cuda::Error) -> Self {
        match error {
            cuda::Error::Torch(error) => LayerError::Torch(error),
            cuda::Error::Cuda(error) => error.into(),
        }
    }
}

impl From<TchError> for LayerError {
    fn from(error: TchError) -> Self {
        LayerError::Torch(error)
    }
}

impl From<CudaError> for LayerError {
    fn from(error: CudaError) -> Self {
        LayerError::Cuda(error)
    }
}
