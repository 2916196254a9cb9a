//! Layer norm over the channels of each row (Ba, Kiros and Hinton, 2016).

use tch::{Kind, Tensor};

use super::{AffineGrads, Result};
use crate::call::{accumulate_kind, Affine, Norm};

/// Mean and reciprocal standard deviation of each row: `[M, 1]` each, float32 or float64.
pub struct Statistics {
    pub mean: Tensor,
    pub rstd: Tensor,
}

/// `[M, C]` to `[M, C]` in the dtype of `x`, and the statistics of its rows.
pub fn forward(x: &Tensor, norm: &Norm, eps: f64) -> Result<(Tensor, Statistics)> {
    let x_kind = x.f_kind()?;
    let channels = norm.weight.size();
    let (y, mean, rstd) = x.f_to_kind(norm.weight.f_kind()?)?.f_native_layer_norm(
        channels.as_slice(),
        Some(&norm.weight),
        norm.bias.as_ref(),
        eps,
    )?;
    let kind = accumulate_kind(x_kind);
    let statistics = Statistics { mean: mean.f_to_kind(kind)?, rstd: rstd.f_to_kind(kind)? };
    Ok((y.f_to_kind(x_kind)?, statistics))
}

/// The gradient of `x` `[M, C]`, and those of the parameters where they are needed.
///
/// With x̂ = (x - mean) rstd and y = x̂ w + b, and ⟨·⟩ the mean over the channels:
///     `grad_x` = rstd (g - ⟨g⟩ - x̂ ⟨g x̂⟩) where g = `grad_y` w,
///     `grad_w` = Σ `grad_y` x̂ and `grad_b` = Σ `grad_y` over the rows.
/// tch does not have libtorch's own kernel for it (its generator leaves out boolean masks).
pub fn backward(
    grad_y: &Tensor,
    x: &Tensor,
    statistics: &Statistics,
    norm: &Norm,
    needs: Affine<bool, bool>,
) -> Result<(Tensor, AffineGrads)> {
    let (x_kind, norm_kind) = (x.f_kind()?, norm.weight.f_kind()?);
    let kind = accumulate_kind(x_kind);
    let grad_y = grad_y.f_to_kind(kind)?;
    let mut normalised = x.f_to_kind(kind)?.f_sub(&statistics.mean)?.f_mul_(&statistics.rstd)?;

    let mut products = grad_y.f_mul(&normalised)?;
    let weight = needs.weight.then(|| sum_rows(&products, norm_kind)).transpose()?;
    let bias = needs.bias.then(|| sum_rows(&grad_y, norm_kind)).transpose()?;
    let params = Affine { weight, bias };

    let weight = norm.weight.f_to_kind(kind)?;
    let mut grad_x = grad_y.f_mul(&weight)?;
    let mean_grad = mean_channels(&grad_x)?;
    let mean_product = mean_channels(&products.f_mul_(&weight)?)?;
    drop(products);
    let _ = grad_x.f_sub_(&mean_grad)?;
    let _ = grad_x.f_sub_(&normalised.f_mul_(&mean_product)?)?;
    let _ = grad_x.f_mul_(&statistics.rstd)?;
    Ok((grad_x.f_to_kind(x_kind)?, params))
}

/// `[M, C]` to `[C]`
fn sum_rows(x: &Tensor, kind: Kind) -> Result<Tensor> {
    x.f_sum_dim_intlist([0].as_slice(), false, None)?.f_to_kind(kind)
}

/// `[M, C]` to `[M, 1]`
fn mean_channels(x: &Tensor) -> Result<Tensor> {
    x.f_mean_dim([-1].as_slice(), true, None)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_backward_is_that_of_autograd() {
        let options = (Kind::Double, Device::Cpu);
        let leaf = |size: &[i64]| Tensor::randn(size, options).set_requires_grad(true);
        let (x, weight, bias) = (leaf(&[7, 12]), leaf(&[12]), leaf(&[12]));
        let grad_y = Tensor::randn([7, 12], options);
        let y = x.layer_norm([12], Some(&weight), Some(&bias), 1e-3, false);
        (y * &grad_y).sum(Kind::Double).backward();

        let norm = Norm { weight: weight.detach(), bias: Some(bias.detach()) };
        let (_, statistics) = forward(&x.detach(), &norm, 1e-3).unwrap();
        let needs = Affine { weight: true, bias: true };
        let (grad_x, grads) = backward(&grad_y, &x.detach(), &statistics, &norm, needs).unwrap();
        assert!(grad_x.allclose(&x.grad(), 1e-12, 1e-12, false));
        assert!(grads.weight.unwrap().allclose(&weight.grad(), 1e-12, 1e-12, false));
        assert!(grads.bias.unwrap().allclose(&bias.grad(), 1e-12, 1e-12, false));
    }
}
