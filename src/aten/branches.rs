//! The two branches between the residuals: attention, and the feed-forward network.

use tch::{Device, Tensor};

use super::activation::{self, Hidden};
use super::attention::{self, Projections};
use super::dropout::TensorMask;
use super::{by_position, linear, Result};
use crate::call::random::Site;
use crate::call::{Activation, Config, Dims, Grads, Input, Needs, Params, Piece};

/// What both branches need, forward and backward. Masks are drawn where they are applied, so that no two are in memory
/// at once.
pub struct Branches<'a> {
    params: &'a Params<Tensor>,
    config: &'a Config,
    needs: &'a Needs,
    dims: &'a Dims,
    /// `[L, K, 2C]`, those that count.
    keys_values: Option<Tensor>,
    seed: Option<&'a Tensor>,
    device: Device,
}

/// What the attention branch keeps: `[M, 3C]` or `[M, C]`, `[L H, N]`, `[M, C]`, of which the last can be recomputed.
pub struct AttentionSaved {
    pub qkv: Tensor,
    pub logsumexp: Tensor,
    pub attended: Option<Tensor>,
}

impl<'a> Branches<'a> {
    pub fn new(input: &'a Input, dims: &'a Dims) -> Result<Self> {
        let Input { x, params, keys_values, seed, config, needs, .. } = input;
        let counted = |each: &Tensor| {
            by_position(each, config.batch_first)?.f_narrow(1, 0, dims.counted_keys)
        };
        let keys_values = keys_values.as_ref().map(counted).transpose()?;
        let (seed, device) = (seed.as_ref(), x.device());
        Ok(Self { params, config, needs, dims, keys_values, seed, device })
    }

    fn projections<'b>(&'b self, qkv: &'b Tensor) -> Projections<'b> {
        Projections { qkv, keys_values: self.keys_values.as_ref() }
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
        let qkv = linear::forward(x, &self.params.in_proj)?; // [M, 3C], or [M, C]
        let (attended, logsumexp) =
            attention::forward(&self.projections(&qkv), &self.attention_mask()?, self.dims)?;
        let y = linear::forward(&attended, &self.params.out_proj)?;
        let attended = Some(attended);
        Ok((self.residual1_mask()?.apply(y)?, AttentionSaved { qkv, logsumexp, attended }))
    }

    /// The gradient of `in_proj`'s output, `[M, 3C]` or `[M, C]`, if one is needed from there on; those of the output
    /// projection and of keys and values go to `grads`.
    pub fn attention_backward(
        &self,
        grad_y: &Tensor,
        saved: &AttentionSaved,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let AttentionSaved { qkv, attended, .. } = saved;
        let of = self.projections(qkv);
        let out_proj = &self.params.out_proj;
        let grad_y = self.residual1_mask()?.apply(grad_y.shallow_clone())?;
        let attended = match attended {
            Some(attended) => attended.shallow_clone(),
            None => attention::forward(&of, &self.attention_mask()?, self.dims)?.0,
        };
        let needs = self.needs.params.out_proj;
        grads.params.out_proj = linear::backward_params(&grad_y, &attended, out_proj, needs)?;
        drop(attended);
        if !self.needs.pass(Piece::OutProj) {
            return Ok(None);
        }
        let grad_attended = linear::backward_x(&grad_y, out_proj)?;
        let mask = self.attention_mask()?;
        let (grad_qkv, grad_keys_values) =
            attention::backward(&grad_attended, &of, &mask, self.dims)?;
        if self.needs.keys_values {
            grads.keys_values =
                grad_keys_values.map(|grad| self.as_keys_values(&grad)).transpose()?;
        }
        Ok(Some(grad_qkv))
    }

    /// The gradient of the keys that count, `[L, K, 2C]`, in the shape of the call's `keys_values`, with 0 for the
    /// others.
    fn as_keys_values(&self, grad: &Tensor) -> Result<Tensor> {
        let Dims { keys, counted_keys, .. } = *self.dims;
        let grad = grad.f_constant_pad_nd([0, 0, 0, keys - counted_keys])?;
        by_position(&grad, self.config.batch_first)?.f_contiguous()
    }

    /// The gradient of the input of `in_proj`, if one is needed from there on, from that of its output.
    pub fn in_proj_backward(
        &self,
        grad_qkv: &Tensor,
        x: &Tensor,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let (in_proj, needs) = (&self.params.in_proj, self.needs.params.in_proj);
        grads.params.in_proj = linear::backward_params(grad_qkv, x, in_proj, needs)?;
        let pass = self.needs.pass(Piece::InProj);
        pass.then(|| linear::backward_x(grad_qkv, in_proj)).transpose()
    }

    /// `dropout(linear2(dropout(act(linear1(x)))))`: `[M, C]` to `[M, C]`, and the hidden layer, `[M, F]`.
    pub fn feedforward(&self, x: &Tensor) -> Result<(Tensor, Hidden)> {
        let z = linear::forward(x, &self.params.linear1)?; // [M, F]
        let hidden = activation::forward(z, self.config.activation, &self.hidden_mask()?)?;
        let y = linear::forward(&hidden.activated, &self.params.linear2)?; // [M, C]
        Ok((self.residual2_mask()?.apply(y)?, hidden))
    }

    /// The gradient of linear1's output, `[M, F]`, if one is needed from there on; that of linear2 goes to `grads`.
    pub fn feedforward_backward(
        &self,
        grad_y: &Tensor,
        hidden: &Hidden,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let linear2 = &self.params.linear2;
        let activation = self.config.activation;
        let mask = match activation {
            Activation::Relu => TensorMask::scale_only(self.config.dropout.hidden),
            Activation::Gelu => self.hidden_mask()?,
        };
        let grad_y = self.residual2_mask()?.apply(grad_y.shallow_clone())?;
        let activated = hidden.activated(activation, &mask)?; // [M, F]
        let needs = self.needs.params.linear2;
        grads.params.linear2 = linear::backward_params(&grad_y, &activated, linear2, needs)?;
        if !self.needs.pass(Piece::Linear2) {
            return Ok(None);
        }
        let grad_activated = linear::backward_x(&grad_y, linear2)?; // [M, F]
        hidden.backward(grad_activated, activation, &mask).map(Some)
    }

    /// The gradient of the input of linear1, if one is needed from there on, from that of its output.
    pub fn linear1_backward(
        &self,
        grad_z: &Tensor,
        x: &Tensor,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let (linear1, needs) = (&self.params.linear1, self.needs.params.linear1);
        grads.params.linear1 = linear::backward_params(grad_z, x, linear1, needs)?;
        let pass = self.needs.pass(Piece::Linear1);
        pass.then(|| linear::backward_x(grad_z, linear1)).transpose()
    }
}
