//! The feed-forward's activation with the dropout behind it, and what of the two the backward is left with.

use tch::Tensor;

use super::dropout::TensorMask;
use super::Result;
use crate::call::Activation;

/// `dropout(act(z))`, and the one tensor to keep: for ReLU the result, from which the backward can tell
/// what passed, for GELU `z`.
pub fn forward(z: Tensor, activation: Activation, mask: &TensorMask) -> Result<(Tensor, Tensor)> {
    match activation {
        Activation::Relu => {
            let y = mask.apply(z.f_relu()?)?;
            Ok((y.shallow_clone(), y))
        }
        Activation::Gelu => Ok((mask.apply(z.f_gelu("none")?)?, z)),
    }
}

/// The result of [`forward`] again, from what was kept.
pub fn output(hidden: &Tensor, activation: Activation, mask: &TensorMask) -> Result<Tensor> {
    match activation {
        Activation::Relu => Ok(hidden.shallow_clone()),
        Activation::Gelu => mask.apply(hidden.f_gelu("none")?),
    }
}

/// The gradient of `z`. A dropped element of the ReLU is 0 in `hidden` like one that did not pass, so its
/// mask is not needed, only its scale.
pub fn backward(
    grad_y: Tensor,
    hidden: &Tensor,
    activation: Activation,
    mask: &TensorMask,
) -> Result<Tensor> {
    match activation {
        Activation::Relu => hidden.f_threshold_backward(&grad_y.f_mul_scalar(mask.scale())?, 0.0),
        Activation::Gelu => hidden.f_gelu_backward(&mask.apply(grad_y)?, "none"),
    }
}
