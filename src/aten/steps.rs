//! The order of the layer's steps, post-norm and pre-norm, forward and backward (Xiong et al., 2020, fig. 1).

use tch::Tensor;

use super::branches::{AttentionSaved, Branches};
use super::norm::{self, Statistics};
use super::Result;
use crate::call::{Dims, Grads, Input, Params, Saved};

/// What a forward went through, as rows `[M, ..]`.
struct Steps {
    attention: AttentionSaved,
    residual1: Tensor,
    hidden: Tensor,
    /// What the last norm of post-norm is applied to; pre-norm keeps an empty tensor.
    residual2: Tensor,
    statistics1: Statistics,
    statistics2: Statistics,
}

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`.
pub fn forward(input: &Input, dims: &Dims) -> Result<(Tensor, Saved)> {
    let branches = Branches::new(input, dims);
    let x = rows(&input.x, dims)?;
    let (y, steps) = if input.config.norm_first {
        pre_norm(&x, input, &branches)?
    } else {
        post_norm(&x, input, &branches)?
    };
    Ok((y.f_view(input.x.size().as_slice())?, save(&steps, dims)?))
}

/// The gradients for `grad_y`, of the shape of `x`.
pub fn backward(grad_y: &Tensor, input: &Input, saved: &Saved, dims: &Dims) -> Result<Grads> {
    let branches = Branches::new(input, dims);
    let steps = restore(saved, dims)?;
    let (x, grad_y) = (rows(&input.x, dims)?, rows(grad_y, dims)?);
    let grads = if input.config.norm_first {
        pre_norm_backward(&grad_y, &x, &steps, input, &branches)?
    } else {
        post_norm_backward(&grad_y, &x, &steps, input, &branches)?
    };
    Ok(Grads { x: grads.x.f_view(input.x.size().as_slice())?, ..grads })
}

/// `norm1(x + attention(x))`, then `norm2(.. + feedforward(..))`.
fn post_norm(x: &Tensor, input: &Input, branches: &Branches) -> Result<(Tensor, Steps)> {
    let (norm1, norm2) = (&input.params.norm1, &input.params.norm2);
    let [eps1, eps2] = input.config.layer_norm_eps;
    let (branch, attention) = branches.attention(x)?;
    let residual1 = x.f_add(&branch)?;
    let (normed, statistics1) = norm::forward(&residual1, norm1, eps1)?;
    let (branch, hidden) = branches.feedforward(&normed)?;
    let residual2 = normed.f_add(&branch)?;
    let (y, statistics2) = norm::forward(&residual2, norm2, eps2)?;
    Ok((y, Steps { attention, residual1, hidden, residual2, statistics1, statistics2 }))
}

/// Each sum hands its gradient to both of its terms; the input of the feed-forward is made again.
fn post_norm_backward(
    grad_y: &Tensor,
    x: &Tensor,
    steps: &Steps,
    input: &Input,
    branches: &Branches,
) -> Result<Grads> {
    let (norm1, norm2) = (&input.params.norm1, &input.params.norm2);
    let Steps { attention, residual1, hidden, residual2, statistics1, statistics2 } = steps;
    let (grad_residual2, norm2) = norm::backward(grad_y, residual2, statistics2, norm2)?;
    let (normed, _) = norm::forward(residual1, norm1, input.config.layer_norm_eps[0])?;
    let (grad_branch, linear1, linear2) =
        branches.feedforward_backward(&grad_residual2, &normed, hidden)?;
    let grad_normed = grad_residual2.f_add(&grad_branch)?;
    let (grad_residual1, norm1) = norm::backward(&grad_normed, residual1, statistics1, norm1)?;
    let (grad_branch, in_proj, out_proj) =
        branches.attention_backward(&grad_residual1, x, attention)?;
    let x = grad_residual1.f_add(&grad_branch)?;
    Ok(Grads { x, params: Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } })
}

/// `x + attention(norm1(x))`, then `.. + feedforward(norm2(..))`.
fn pre_norm(x: &Tensor, input: &Input, branches: &Branches) -> Result<(Tensor, Steps)> {
    let (norm1, norm2) = (&input.params.norm1, &input.params.norm2);
    let [eps1, eps2] = input.config.layer_norm_eps;
    let (normed, statistics1) = norm::forward(x, norm1, eps1)?;
    let (branch, attention) = branches.attention(&normed)?;
    let residual1 = x.f_add(&branch)?;
    let (normed, statistics2) = norm::forward(&residual1, norm2, eps2)?;
    let (branch, hidden) = branches.feedforward(&normed)?;
    let y = residual1.f_add(&branch)?;
    let residual2 = Tensor::f_empty([0], (x.f_kind()?, x.device()))?;
    Ok((y, Steps { attention, residual1, hidden, residual2, statistics1, statistics2 }))
}

/// Each sum hands its gradient to both of its terms; the inputs of both branches are made again.
fn pre_norm_backward(
    grad_y: &Tensor,
    x: &Tensor,
    steps: &Steps,
    input: &Input,
    branches: &Branches,
) -> Result<Grads> {
    let (norm1, norm2) = (&input.params.norm1, &input.params.norm2);
    let [eps1, eps2] = input.config.layer_norm_eps;
    let Steps { attention, residual1, hidden, statistics1, statistics2, .. } = steps;
    let (normed, _) = norm::forward(residual1, norm2, eps2)?;
    let (grad_normed, linear1, linear2) = branches.feedforward_backward(grad_y, &normed, hidden)?;
    let (grad_branch, norm2) = norm::backward(&grad_normed, residual1, statistics2, norm2)?;
    let grad_residual1 = grad_y.f_add(&grad_branch)?;
    let (normed, _) = norm::forward(x, norm1, eps1)?;
    let (grad_normed, in_proj, out_proj) =
        branches.attention_backward(&grad_residual1, &normed, attention)?;
    let (grad_branch, norm1) = norm::backward(&grad_normed, x, statistics1, norm1)?;
    let x = grad_residual1.f_add(&grad_branch)?;
    Ok(Grads { x, params: Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } })
}

/// Tokens to rows `[M, C]`, contiguous: what is computed from them takes on their strides, and is output.
fn rows(tokens: &Tensor, dims: &Dims) -> Result<Tensor> {
    tokens.f_reshape([dims.tokens(), dims.channels])?.f_contiguous()
}

/// Rows to the leading sizes of `x`.
fn save(steps: &Steps, dims: &Dims) -> Result<Saved> {
    let [first, second] = dims.token_shape();
    let tokens = |rows: &Tensor| rows.f_view([first, second, -1]);
    let statistic = |rows: &Tensor| rows.f_view([first, second]);
    let Steps { attention, residual1, hidden, residual2, statistics1, statistics2 } = steps;
    let post_norm = residual2.numel() > 0;
    Ok(Saved {
        qkv: tokens(&attention.qkv)?,
        logsumexp: attention.logsumexp.f_view([dims.positions, dims.heads, dims.samples])?,
        attended: tokens(&attention.attended)?,
        residual1: tokens(residual1)?,
        hidden: tokens(hidden)?,
        residual2: if post_norm { tokens(residual2)? } else { residual2.shallow_clone() },
        mean1: statistic(&statistics1.mean)?,
        rstd1: statistic(&statistics1.rstd)?,
        mean2: statistic(&statistics2.mean)?,
        rstd2: statistic(&statistics2.rstd)?,
    })
}

/// The inverse of [`save`].
fn restore(saved: &Saved, dims: &Dims) -> Result<Steps> {
    let rows = |tokens: &Tensor, width: i64| tokens.f_reshape([-1, width]);
    let Dims { channels, feedforward, samples, .. } = *dims;
    Ok(Steps {
        attention: AttentionSaved {
            qkv: rows(&saved.qkv, 3 * channels)?,
            logsumexp: rows(&saved.logsumexp, samples)?,
            attended: rows(&saved.attended, channels)?,
        },
        residual1: rows(&saved.residual1, channels)?,
        hidden: rows(&saved.hidden, feedforward)?,
        residual2: rows(&saved.residual2, channels)?,
        statistics1: Statistics { mean: rows(&saved.mean1, 1)?, rstd: rows(&saved.rstd1, 1)? },
        statistics2: Statistics { mean: rows(&saved.mean2, 1)?, rstd: rows(&saved.rstd2, 1)? },
    })
}
