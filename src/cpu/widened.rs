//! Half precision, and float32 with half precision in the linears as autocast makes it: by the kernels of float32,
//! rounded where the caller sees it, which is y, what is saved and the gradients.
//!
//! Tried and dropped: op by op through libtorch, which takes 0.9 to 2.4 times as long as torch's own layer; this takes
//! half of its time (2 cores with AMX, whose products in bfloat16 are a small part of torch's).

use tch::{Kind, TchError, Tensor};

use super::backward::backward as in_float32_backward;
use super::forward::forward as in_float32;
use crate::call::{Dims, Grads, Input, Params, Saved, SavedTensors, PARAMETERS};

/// See [`super::forward`].
pub fn forward(input: &Input, dims: &Dims) -> Result<(Tensor, SavedTensors), TchError> {
    let (y, saved) = in_float32::<f32>(&widen(input)?, dims)?;
    let kinds = input.kinds()?;
    let saved = saved.zip(Saved::facts()).try_map(|(tensor, fact)| {
        tensor.map(|tensor| tensor.f_to_kind(fact.dtype.kind(kinds))).transpose()
    })?;
    Ok((y.f_to_kind(kinds.x)?, saved))
}

/// See [`super::backward`].
pub fn backward(
    grad_y: &Tensor,
    input: &Input,
    saved: &SavedTensors,
    dims: &Dims,
) -> Result<Grads, TchError> {
    let saved = saved.as_ref().try_map(|tensor| tensor.as_ref().map(wide).transpose())?;
    let grads = in_float32_backward::<f32>(&wide(grad_y)?, &widen(input)?, &saved, dims)?;
    let x = grads.x.map(|grad| grad.f_to_kind(input.kinds()?.x)).transpose()?;
    let mut params = [const { None }; PARAMETERS.len()];
    let wide_grads = grads.params.into_array().into_iter().zip(input.params.as_options());
    for (narrow, (grad, param)) in params.iter_mut().zip(wide_grads) {
        if let (Some(grad), Some(param)) = (grad, param) {
            *narrow = Some(grad.f_to_kind(param.f_kind()?)?);
        }
    }
    Ok(Grads { x, params: Params::from_array(params) })
}

fn wide(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_to_kind(Kind::Float)
}

fn widen(input: &Input) -> Result<Input, TchError> {
    Ok(Input {
        x: wide(&input.x)?,
        params: input.params.map(wide)?,
        seed: input.seed.as_ref().map(Tensor::shallow_clone),
        config: input.config.clone(),
        needs: input.needs,
    })
}
