//! The two branches between the residuals: attention, and the feed-forward network.

use tch::{Device, Tensor};

use super::dropout::TensorMask;
use super::{activation, attention, linear, Result};
use crate::call::random::Site;
use crate::call::{Activation, Config, Dims, Input, Linear, Params};

/// What both branches need at hand, forward and backward. Masks are drawn where they are applied, so that no two
/// are in memory at once.
pub struct Branches<'a> {
    params: &'a Params,
    config: &'a Config,
    dims: &'a Dims,
    seed: Option<&'a Tensor>,
    device: Device,
}

/// What the attention branch keeps: `[M, 3C]`, `[L H, N]`, `[M, C]`.
pub struct AttentionSaved {
    pub qkv: Tensor,
    pub logsumexp: Tensor,
    pub attended: Tensor,
}

impl<'a> Branches<'a> {
    pub fn new(input: &'a Input, dims: &'a Dims) -> Self {
        let Input { x, params, seed, config } = input;
        Self { params, config, dims, seed: seed.as_ref(), device: x.device() }
    }

    fn attention_mask(&self) -> Result<TensorMask> {
        TensorMask::of_probabilities(
            self.seed,
            self.config.dropout.attention,
            self.dims,
            self.device,
        )
    }

    fn hidden_mask(&self) -> Result<TensorMask> {
        self.token_mask(Site::Hidden, self.config.dropout.hidden, self.dims.feedforward)
    }

    fn residual1_mask(&self) -> Result<TensorMask> {
        self.token_mask(Site::Residual1, self.config.dropout.residual1, self.dims.channels)
    }

    fn residual2_mask(&self) -> Result<TensorMask> {
        self.token_mask(Site::Residual2, self.config.dropout.residual2, self.dims.channels)
    }

    fn token_mask(&self, site: Site, p: f64, width: i64) -> Result<TensorMask> {
        TensorMask::of_tokens(self.seed, site, p, self.dims, width, self.device)
    }

    /// `dropout(attention(x))`: `[M, C]` to `[M, C]`.
    pub fn attention(&self, x: &Tensor) -> Result<(Tensor, AttentionSaved)> {
        let qkv = linear::forward(x, &self.params.in_proj)?; // [M, 3C]
        let (attended, logsumexp) = attention::forward(&qkv, &self.attention_mask()?, self.dims)?;
        let y = linear::forward(&attended, &self.params.out_proj)?;
        Ok((self.residual1_mask()?.apply(y)?, AttentionSaved { qkv, logsumexp, attended }))
    }

    /// The gradients of `x` `[M, C]`, of the input and of the output projection.
    pub fn attention_backward(
        &self,
        grad_y: &Tensor,
        x: &Tensor,
        saved: &AttentionSaved,
    ) -> Result<(Tensor, Linear, Linear)> {
        let (in_proj, out_proj) = (&self.params.in_proj, &self.params.out_proj);
        let AttentionSaved { qkv, attended, .. } = saved;
        let grad_y = self.residual1_mask()?.apply(grad_y.shallow_clone())?;
        let grad_out_proj = linear::backward_params(&grad_y, attended, out_proj)?;
        let grad_attended = linear::backward_x(&grad_y, out_proj)?;
        let mask = self.attention_mask()?;
        let grad_qkv = attention::backward(&grad_attended, qkv, &mask, self.dims)?;
        drop(mask);
        let grad_in_proj = linear::backward_params(&grad_qkv, x, in_proj)?;
        Ok((linear::backward_x(&grad_qkv, in_proj)?, grad_in_proj, grad_out_proj))
    }

    /// `dropout(linear2(dropout(act(linear1(x)))))`: `[M, C]` to `[M, C]`, and what is kept of the hidden
    /// layer, `[M, F]`.
    pub fn feedforward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let z = linear::forward(x, &self.params.linear1)?; // [M, F]
        let (y, hidden) = activation::forward(z, self.config.activation, &self.hidden_mask()?)?;
        let y = linear::forward(&y, &self.params.linear2)?; // [M, C]
        Ok((self.residual2_mask()?.apply(y)?, hidden))
    }

    /// The gradients of `x` `[M, C]`, of linear1 and of linear2.
    pub fn feedforward_backward(
        &self,
        grad_y: &Tensor,
        x: &Tensor,
        hidden: &Tensor,
    ) -> Result<(Tensor, Linear, Linear)> {
        let (linear1, linear2) = (&self.params.linear1, &self.params.linear2);
        let activation = self.config.activation;
        let mask = match activation {
            Activation::Relu => TensorMask::scale_only(self.config.dropout.hidden),
            Activation::Gelu => self.hidden_mask()?,
        };
        let grad_y = self.residual2_mask()?.apply(grad_y.shallow_clone())?;
        let activated = activation::output(hidden, activation, &mask)?; // [M, F]
        let grad_linear2 = linear::backward_params(&grad_y, &activated, linear2)?;
        let grad_activated = linear::backward_x(&grad_y, linear2)?; // [M, F]
        let grad_z = activation::backward(grad_activated, hidden, activation, &mask)?;
        let grad_linear1 = linear::backward_params(&grad_z, x, linear1)?;
        Ok((linear::backward_x(&grad_z, linear1)?, grad_linear1, grad_linear2))
    }
}
