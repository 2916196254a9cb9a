//! The order of the layer's steps, post-norm and pre-norm, forward and backward (Xiong et al., 2020, fig. 1).

use tch::Tensor;

use super::activation::Hidden;
use super::branches::{AttentionSaved, Branches};
use super::norm::{self, Statistics};
use super::{by_position, Result};
use crate::call::{Dims, Grads, Input, Piece, Saved, SavedTensors};

/// The intermediate results of a forward, as rows `[M, ..]`, position after position.
struct Steps {
    attention: AttentionSaved,
    residual1: Tensor,
    hidden: Hidden,
    /// What the last norm of post-norm is applied to; undefined for pre-norm.
    residual2: Tensor,
    statistics1: Statistics,
    statistics2: Statistics,
}

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`.
pub fn forward(input: &Input, dims: &Dims) -> Result<(Tensor, SavedTensors)> {
    let branches = Branches::new(input, dims)?;
    let x = to_rows(&input.x, dims)?;
    let (y, steps) = if input.config.norm_first {
        pre_norm(&x, input, &branches)?
    } else {
        post_norm(&x, input, &branches)?
    };
    Ok((from_rows(&y, dims)?, save(steps, input, dims)?))
}

/// The gradients for `grad_y`, of the shape of `x`.
pub fn backward(grad_y: &Tensor, input: &Input, saved: SavedTensors, dims: &Dims) -> Result<Grads> {
    let branches = Branches::new(input, dims)?;
    let steps = restore(saved, dims)?;
    let (x, grad_y) = (to_rows(&input.x, dims)?, to_rows(grad_y, dims)?);
    let mut grads = Grads::none();
    let grad_x = if input.config.norm_first {
        pre_norm_backward(&grad_y, &x, &steps, input, &branches, &mut grads)?
    } else {
        post_norm_backward(&grad_y, &x, &steps, input, &branches, &mut grads)?
    };
    if let (Some(grad_x), true) = (grad_x, input.needs.x) {
        grads.x = Some(from_rows(&grad_x, dims)?);
    }
    Ok(grads)
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

/// Each sum passes its gradient to both of its terms; the input of the feed-forward is recomputed. None where no
/// further gradient is needed.
fn post_norm_backward(
    grad_y: &Tensor,
    x: &Tensor,
    steps: &Steps,
    input: &Input,
    branches: &Branches,
    grads: &mut Grads,
) -> Result<Option<Tensor>> {
    let (norm1, norm2, needs) = (&input.params.norm1, &input.params.norm2, &input.needs);
    let Steps { attention, residual1, hidden, residual2, statistics1, statistics2 } = steps;
    let (grad_residual2, of_norm2) =
        norm::backward(grad_y, residual2, statistics2, norm2, needs.params.norm2)?;
    grads.params.norm2 = of_norm2;
    if !needs.pass(Piece::Norm2) {
        return Ok(None);
    }
    let Some(grad_z) = branches.feedforward_backward(&grad_residual2, hidden, grads)? else {
        return Ok(None);
    };
    let (normed, _) = norm::forward(residual1, norm1, input.config.layer_norm_eps[0])?;
    let Some(grad_branch) = branches.linear1_backward(&grad_z, &normed, grads)? else {
        return Ok(None);
    };
    let grad_normed = grad_residual2.f_add(&grad_branch)?;
    let (grad_residual1, of_norm1) =
        norm::backward(&grad_normed, residual1, statistics1, norm1, needs.params.norm1)?;
    grads.params.norm1 = of_norm1;
    if !needs.pass(Piece::Norm1) {
        return Ok(None);
    }
    let Some(grad_qkv) = branches.attention_backward(&grad_residual1, attention, grads)? else {
        return Ok(None);
    };
    let Some(grad_branch) = branches.in_proj_backward(&grad_qkv, x, grads)? else {
        return Ok(None);
    };
    grad_residual1.f_add(&grad_branch).map(Some)
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
    let residual2 = Tensor::new();
    Ok((y, Steps { attention, residual1, hidden, residual2, statistics1, statistics2 }))
}

/// Each sum passes its gradient to both of its terms; the inputs of both branches are recomputed. None where no further
/// gradient is needed.
fn pre_norm_backward(
    grad_y: &Tensor,
    x: &Tensor,
    steps: &Steps,
    input: &Input,
    branches: &Branches,
    grads: &mut Grads,
) -> Result<Option<Tensor>> {
    let (norm1, norm2, needs) = (&input.params.norm1, &input.params.norm2, &input.needs);
    let [eps1, eps2] = input.config.layer_norm_eps;
    let Steps { attention, residual1, hidden, statistics1, statistics2, .. } = steps;
    let Some(grad_z) = branches.feedforward_backward(grad_y, hidden, grads)? else {
        return Ok(None);
    };
    let (normed, _) = norm::forward(residual1, norm2, eps2)?;
    let Some(grad_normed) = branches.linear1_backward(&grad_z, &normed, grads)? else {
        return Ok(None);
    };
    let (grad_branch, of_norm2) =
        norm::backward(&grad_normed, residual1, statistics2, norm2, needs.params.norm2)?;
    grads.params.norm2 = of_norm2;
    if !needs.pass(Piece::Norm2) {
        return Ok(None);
    }
    let grad_residual1 = grad_y.f_add(&grad_branch)?;
    let Some(grad_qkv) = branches.attention_backward(&grad_residual1, attention, grads)? else {
        return Ok(None);
    };
    let (normed, _) = norm::forward(x, norm1, eps1)?;
    let Some(grad_normed) = branches.in_proj_backward(&grad_qkv, &normed, grads)? else {
        return Ok(None);
    };
    let (grad_branch, of_norm1) =
        norm::backward(&grad_normed, x, statistics1, norm1, needs.params.norm1)?;
    grads.params.norm1 = of_norm1;
    grad_residual1.f_add(&grad_branch).map(Some)
}

/// `[N, L, C]` or `[L, N, C]` to rows `[M, C]`, contiguous.
fn to_rows(tokens: &Tensor, dims: &Dims) -> Result<Tensor> {
    let rows = [dims.tokens(), dims.channels];
    by_position(tokens, dims.batch_first)?.f_reshape(rows)?.f_contiguous()
}

/// The inverse of [`to_rows`], and no view of the rows: autograd does not let views be changed in place.
fn from_rows(rows: &Tensor, dims: &Dims) -> Result<Tensor> {
    let tokens = rows.f_view([dims.positions, dims.samples, dims.channels])?;
    let tokens = by_position(&tokens, dims.batch_first)?.f_contiguous()?;
    tokens.f_internal_unsafe_view(tokens.size())
}

/// The rows that are kept, in the shapes of the table.
fn save(steps: Steps, input: &Input, dims: &Dims) -> Result<SavedTensors> {
    let Steps { attention, residual1, hidden, residual2, statistics1, statistics2 } = steps;
    let made = Saved {
        qkv: attention.qkv,
        logsumexp: heads_last(&attention.logsumexp, dims)?,
        attended: attention.attended.unwrap_or_else(Tensor::new),
        residual1,
        activated: hidden.activated,
        preactivation: hidden.preactivation,
        residual2,
        mean1: statistics1.mean,
        rstd1: statistics1.rstd,
        mean2: statistics2.mean,
        rstd2: statistics2.rstd,
    };
    made.zip(Saved::facts()).try_map(|(tensor, fact)| {
        let kept = fact.is_kept(&input.config, &input.needs, dims.positions);
        kept.then(|| tensor.f_view(dims.shape(fact.shape).as_slice())).transpose()
    })
}

/// `[L H, N]` to `[L, N, H]`
fn heads_last(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    x.f_view([dims.positions, dims.heads, dims.samples])?.f_transpose(1, 2)?.f_contiguous()
}

/// The inverse of [`save`]; what was not kept, as nothing needs it, is undefined.
fn restore(saved: SavedTensors, dims: &Dims) -> Result<Steps> {
    let rows = |tokens: Tensor| tokens.f_reshape([dims.tokens(), -1]);
    let logsumexp = saved.logsumexp.map(|logsumexp| {
        let by_head = logsumexp.f_transpose(1, 2)?; // [L, H, N]
        by_head.f_reshape([dims.positions * dims.heads, dims.samples])
    });
    let attended = saved.attended.map(rows).transpose()?;
    let rows = |tokens: Option<Tensor>| tokens.map_or_else(|| Ok(Tensor::new()), rows);
    Ok(Steps {
        attention: AttentionSaved {
            qkv: rows(saved.qkv)?,
            logsumexp: logsumexp.transpose()?.unwrap_or_else(Tensor::new),
            attended,
        },
        residual1: rows(saved.residual1)?,
        hidden: Hidden {
            preactivation: rows(saved.preactivation)?,
            activated: rows(saved.activated)?,
        },
        residual2: rows(saved.residual2)?,
        statistics1: Statistics { mean: rows(saved.mean1)?, rstd: rows(saved.rstd1)? },
        statistics2: Statistics { mean: rows(saved.mean2)?, rstd: rows(saved.rstd2)? },
    })
}
