//! Half precision, and float32 with half precision in the linears as autocast makes it: by the kernels of float32,
//! with y and the gradients rounded.
//!
//! Tried and dropped: op by op through libtorch, which takes up to 2.4 times as long as torch's own layer. This takes
//! 0.3 to 0.9 of its time; where `TorchIsFaster`, which knows of wide layers, the modules run torch's own.

use tch::{Kind, TchError, Tensor};

use super::backward::backward as in_float32_backward;
use super::forward::forward as in_float32;
use crate::call::{Dims, Grads, Input, Params, SavedTensors, PARAMETERS};

/// See [`super::forward`].
pub fn forward(input: &Input, dims: &Dims) -> Result<(Tensor, SavedTensors), TchError> {
    let (y, saved) = in_float32::<f32>(&widen(input)?, dims)?;
    Ok((y.f_to_kind(input.x.f_kind()?)?, saved))
}

/// See [`super::backward`].
pub fn backward(
    grad_y: &Tensor,
    input: &Input,
    saved: &SavedTensors,
    dims: &Dims,
) -> Result<Grads, TchError> {
    let grads = in_float32_backward::<f32>(&wide(grad_y)?, &widen(input)?, saved, dims)?;
    let x = grads.x.map(|grad| grad.f_to_kind(input.x.f_kind()?)).transpose()?;
    let mut params = [const { None }; PARAMETERS.len()];
    let wide_grads = grads.params.into_array().into_iter().zip(input.params.as_options());
    for (narrow, (grad, param)) in params.iter_mut().zip(wide_grads) {
        if let (Some(grad), Some(param)) = (grad, param) {
            *narrow = Some(grad.f_to_kind(param.f_kind()?)?);
        }
    }
    let keys_values = grads.keys_values.zip(input.keys_values.as_ref());
    let keys_values = keys_values.map(|(grad, of)| grad.f_to_kind(of.f_kind()?)).transpose()?;
    Ok(Grads { x, params: Params::from_array(params), keys_values })
}

fn wide(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_to_kind(Kind::Float)
}

fn widen(input: &Input) -> Result<Input, TchError> {
    Ok(Input {
        x: wide(&input.x)?,
        params: input.params.map(wide)?,
        keys_values: input.keys_values.as_ref().map(wide).transpose()?,
        key_count: input.key_count.as_ref().map(Tensor::shallow_clone),
        seed: input.seed.as_ref().map(Tensor::shallow_clone),
        config: input.config.clone(),
        tf32: input.tf32,
        needs: input.needs,
    })
}
