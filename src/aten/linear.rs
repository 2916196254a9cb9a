//! `y = x Wᵀ + b` over rows, in the dtype of the weight.

use tch::Tensor;

use super::{AffineGrads, Result};
use crate::call::{Affine, Linear};

/// `[M, in]` to `[M, out]`. Under autocast `x` may be wider than the weight.
pub fn forward(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    x.f_to_kind(linear.weight.f_kind()?)?.f_linear(&linear.weight, linear.bias.as_ref())
}

/// The gradient of `x`: `[M, out]` to `[M, in]`.
pub fn backward_x(grad_y: &Tensor, linear: &Linear) -> Result<Tensor> {
    grad_y.f_to_kind(linear.weight.f_kind()?)?.f_mm(&linear.weight)
}

/// The gradients of the weight `[out, in]` and of the bias `[out]`, where they are needed.
pub fn backward_params(
    grad_y: &Tensor,
    x: &Tensor,
    linear: &Linear,
    needs: Affine<bool, bool>,
) -> Result<AffineGrads> {
    let kind = linear.weight.f_kind()?;
    let grad_y = grad_y.f_to_kind(kind)?;
    let weight = needs.weight.then(|| grad_y.f_transpose(0, 1)?.f_mm(&x.f_to_kind(kind)?));
    let bias = needs.bias.then(|| grad_y.f_sum_dim_intlist([0].as_slice(), false, kind));
    Ok(Affine { weight: weight.transpose()?, bias: bias.transpose()? })
}
