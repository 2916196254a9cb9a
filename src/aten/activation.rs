//! The feed-forward's activation with the dropout after it, and what they keep for the backward.

use tch::Tensor;

use super::dropout::TensorMask;
use super::Result;
use crate::call::Activation;

/// What is kept of the hidden layer: for ReLU the output, from which the backward can tell what passed, for GELU the
/// input. The other may be undefined.
pub struct Hidden {
    pub preactivation: Tensor,
    pub activated: Tensor,
}

/// `activated = dropout(act(preactivation))`
pub fn forward(preactivation: Tensor, activation: Activation, mask: &TensorMask) -> Result<Hidden> {
    let activated = match activation {
        Activation::Relu => preactivation.f_relu()?,
        Activation::Gelu => preactivation.f_gelu("none")?,
    };
    Ok(Hidden { preactivation, activated: mask.apply(activated)? })
}

impl Hidden {
    /// The result of [`forward`], recomputed where it was not kept.
    pub fn activated(&self, activation: Activation, mask: &TensorMask) -> Result<Tensor> {
        match activation {
            Activation::Relu => Ok(self.activated.shallow_clone()),
            Activation::Gelu => mask.apply(self.preactivation.f_gelu("none")?),
        }
    }

    /// The gradient of the preactivation. A dropped element of the ReLU is 0 like one that did not pass, so its
    /// mask is not needed, only its scale.
    pub fn backward(
        &self,
        grad_activated: Tensor,
        activation: Activation,
        mask: &TensorMask,
    ) -> Result<Tensor> {
        match activation {
            Activation::Relu => {
                let grad = grad_activated.f_mul_scalar(mask.scale())?;
                self.activated.f_threshold_backward(&grad, 0.0)
            }
            Activation::Gelu => {
                self.preactivation.f_gelu_backward(&mask.apply(grad_activated)?, "none")
            }
        }
    }
}
