//! The two branches between the residuals: attention, and the feed-forward network.

use tch::Tensor;

use super::dropout::Mask;
use super::random::Site;
use super::{activation, attention, linear, Result};
use crate::call::{Config, Dims, Input, Linear, Params};

/// What both branches need at hand, forward and backward.
pub struct Branches<'a> {
    params: &'a Params,
    config: &'a Config,
    dims: &'a Dims,
    masks: Masks,
}

struct Masks {
    attention: Mask,
    hidden: Mask,
    residual1: Mask,
    residual2: Mask,
}

/// What the attention branch keeps: `[M, 3C]`, `[L H, N]`, `[M, C]`.
pub struct AttentionSaved {
    pub qkv: Tensor,
    pub logsumexp: Tensor,
    pub attended: Tensor,
}

impl<'a> Branches<'a> {
    pub fn new(input: &'a Input, dims: &'a Dims) -> Result<Self> {
        let (seed, p, device) = (input.seed.as_ref(), input.config.dropout, input.x.device());
        let of_tokens = |site, p, width| Mask::of_tokens(seed, site, p, dims, width, device);
        let masks = Masks {
            attention: Mask::of_probabilities(seed, p.attention, dims, device)?,
            hidden: of_tokens(Site::Hidden, p.hidden, dims.feedforward)?,
            residual1: of_tokens(Site::Residual1, p.residual1, dims.channels)?,
            residual2: of_tokens(Site::Residual2, p.residual2, dims.channels)?,
        };
        Ok(Self { params: &input.params, config: &input.config, dims, masks })
    }

    /// `dropout(attention(x))`: `[M, C]` to `[M, C]`.
    pub fn attention(&self, x: &Tensor) -> Result<(Tensor, AttentionSaved)> {
        let qkv = linear::forward(x, &self.params.in_proj)?; // [M, 3C]
        let (attended, logsumexp) = attention::forward(&qkv, &self.masks.attention, self.dims)?;
        let y = linear::forward(&attended, &self.params.out_proj)?;
        Ok((self.masks.residual1.apply(y)?, AttentionSaved { qkv, logsumexp, attended }))
    }

    /// The gradients of `x` `[M, C]`, of the input and of the output projection.
    pub fn attention_backward(
        &self,
        grad_y: &Tensor,
        x: &Tensor,
        saved: &AttentionSaved,
    ) -> Result<(Tensor, Linear, Linear)> {
        let (in_proj, out_proj) = (&self.params.in_proj, &self.params.out_proj);
        let AttentionSaved { qkv, logsumexp, attended } = saved;
        let grad_y = self.masks.residual1.apply(grad_y.shallow_clone())?;
        let grad_out_proj = linear::backward_params(&grad_y, attended, out_proj)?;
        let grad_attended = linear::backward_x(&grad_y, out_proj)?;
        let mask = &self.masks.attention;
        let grad_qkv = attention::backward(&grad_attended, qkv, logsumexp, mask, self.dims)?;
        let grad_in_proj = linear::backward_params(&grad_qkv, x, in_proj)?;
        Ok((linear::backward_x(&grad_qkv, in_proj)?, grad_in_proj, grad_out_proj))
    }

    /// `dropout(linear2(dropout(act(linear1(x)))))`: `[M, C]` to `[M, C]`, and what is kept of the hidden
    /// layer, `[M, F]`.
    pub fn feedforward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let z = linear::forward(x, &self.params.linear1)?; // [M, F]
        let (y, hidden) = activation::forward(z, self.config.activation, &self.masks.hidden)?;
        let y = linear::forward(&y, &self.params.linear2)?; // [M, C]
        Ok((self.masks.residual2.apply(y)?, hidden))
    }

    /// The gradients of `x` `[M, C]`, of linear1 and of linear2.
    pub fn feedforward_backward(
        &self,
        grad_y: &Tensor,
        x: &Tensor,
        hidden: &Tensor,
    ) -> Result<(Tensor, Linear, Linear)> {
        let (linear1, linear2) = (&self.params.linear1, &self.params.linear2);
        let (activation, mask) = (self.config.activation, &self.masks.hidden);
        let grad_y = self.masks.residual2.apply(grad_y.shallow_clone())?;
        let activated = activation::output(hidden, activation, mask)?; // [M, F]
        let grad_linear2 = linear::backward_params(&grad_y, &activated, linear2)?;
        let grad_activated = linear::backward_x(&grad_y, linear2)?; // [M, F]
        let grad_z = activation::backward(grad_activated, hidden, activation, mask)?;
        let grad_linear1 = linear::backward_params(&grad_z, x, linear1)?;
        Ok((linear::backward_x(&grad_z, linear1)?, grad_linear1, grad_linear2))
    }
}
