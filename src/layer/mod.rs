//! The encoder layer as the binding calls it: check the input, choose the path, run it.

mod check;
mod error;
mod path;

use tch::{TchError, Tensor};

pub use crate::cpu::{empty_cache, instruction_set};
pub use error::{catch, LayerError};
pub use path::path_counts;

use crate::aten;
use crate::call::{Grads, Input, Linear, Saved};
use crate::cpu;
use path::Path;

/// `[N, L, C]` to `[N, L, C]`, and what the backward needs if `save`.
pub fn forward(input: &Input, save: bool) -> Result<(Tensor, Option<Saved>), LayerError> {
    let dims = check::input(input)?;
    let path = path::choose(input)?;
    let (y, saved) = match path {
        Path::Cpu => cpu::forward(input, &dims, save)?,
        Path::Aten => {
            let (y, saved) = aten::steps::forward(input, &dims)?;
            (y, save.then_some(saved))
        }
    };
    path.count();
    Ok((y, saved))
}

/// The gradients of [`forward`] for the gradient of its output.
pub fn backward(grad_y: &Tensor, input: &Input, saved: &Saved) -> Result<Grads, LayerError> {
    let dims = check::input(input)?;
    check::grad_y(grad_y, &input.x)?;
    let path = path::choose(input)?;
    let grads = match path {
        Path::Cpu => cpu::backward(grad_y, input, saved, &dims)?,
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

impl From<TchError> for LayerError {
    fn from(error: TchError) -> Self {
        LayerError::Torch(error)
    }
}
