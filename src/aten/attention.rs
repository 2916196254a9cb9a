//! Multi-head attention over the N samples, at each position by itself (Vaswani et al., 2017, eq. 1).
//!
//! Half precision is computed in float32 from the projections on, as torch's own does.

use tch::{Kind, Tensor};

use super::dropout::TensorMask;
use super::linear;
use super::Result;
use crate::call::{accumulate_kind, Dims, Linear};

/// Query (already scaled), key and value: `[L H, N, D]` each.
struct HeadTensors {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

/// qkv `[M, 3C]` to the heads' outputs `[M, C]` and the log-sum-exp `[L H, N]` of each query's scores.
pub fn forward(qkv: &Tensor, mask: &TensorMask, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let heads = split_heads(qkv, dims)?;
    let scores = scores(&heads)?; // [L H, N, N]
    let logsumexp = scores.f_logsumexp([-1].as_slice(), false)?; // [L H, N]
    let probabilities = softmax(&scores)?;
    drop(scores);
    let dropped = mask.apply(probabilities)?;
    let attended = merge_heads(&dropped.f_bmm(&heads.value)?, dims)?;
    Ok((attended.f_to_kind(qkv.f_kind()?)?, logsumexp))
}

/// The gradient of qkv `[M, 3C]` for that of the heads' outputs `[M, C]`.
///
/// With P = softmax(S), P̃ its dropout and Y = P̃ V:
///     `grad_V` = P̃ᵀ `grad_Y`, `grad_P` = dropout(`grad_Y` Vᵀ),
///     `grad_S` = P (`grad_P` - Σ P `grad_P`), `grad_Q` = scale `grad_S` K, `grad_K` = scale `grad_S`ᵀ Q.
/// P is made again by the same softmax. Tried: exp(S - log Σ exp S) from the kept log-sum-exp, whose rounding leaves
/// rows of scores of 1e5 with sums up to 1 % off 1, and that share of Σ P `grad_P` in every `grad_S`.
pub fn backward(
    grad_attended: &Tensor,
    qkv: &Tensor,
    mask: &TensorMask,
    dims: &Dims,
) -> Result<Tensor> {
    let kind = qkv.f_kind()?;
    let heads = split_heads(qkv, dims)?;
    let probabilities = softmax(&scores(&heads)?)?;
    let grad_heads = split_one(grad_attended, dims)?;

    let dropped = mask.apply(probabilities.shallow_clone())?;
    let grad_value = dropped.f_transpose(1, 2)?.f_bmm(&grad_heads)?;
    drop(dropped);

    let grad_dropped = grad_heads.f_bmm(&heads.value.f_transpose(1, 2)?)?; // [L H, N, N]
    let grad_probabilities = mask.apply(grad_dropped)?;
    let grad_scores = Tensor::f_internal_softmax_backward_data(
        &grad_probabilities,
        &probabilities,
        -1,
        probabilities.f_kind()?,
    )?;
    drop((grad_probabilities, probabilities));

    let grad_query = grad_scores.f_bmm(&heads.key)?.f_mul_scalar(dims.attention_scale())?;
    let grad_key = grad_scores.f_transpose(1, 2)?.f_bmm(&heads.query)?;
    let grads = Tensor::f_stack(&[grad_query, grad_key, grad_value], 0)?; // [3, L H, N, D]
    merge_qkv(&grads, dims)?.f_to_kind(kind)
}

/// Who attends to whom, without dropout: x `[N, C]` to `[H, N, N]`.
pub fn probabilities(x: &Tensor, in_proj: &Linear, dims: &Dims) -> Result<Tensor> {
    let heads = split_heads(&linear::forward(x, in_proj)?, dims)?;
    softmax(&scores(&heads)?)
}

fn scores(heads: &HeadTensors) -> Result<Tensor> {
    heads.query.f_bmm(&heads.key.f_transpose(1, 2)?)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    scores.f_softmax(-1, None)
}

fn split_heads(qkv: &Tensor, dims: &Dims) -> Result<HeadTensors> {
    let heads = qkv
        .f_view([dims.positions, dims.samples, 3, dims.heads, dims.head_width()])?
        .f_permute([2, 0, 3, 1, 4])? // [3, L, H, N, D]
        .f_to_kind(accumulating(qkv)?)?
        .f_reshape([3, dims.positions * dims.heads, dims.samples, dims.head_width()])?;
    Ok(HeadTensors {
        query: heads.f_select(0, 0)?.f_mul_scalar(dims.attention_scale())?,
        key: heads.f_select(0, 1)?,
        value: heads.f_select(0, 2)?,
    })
}

/// `[M, C]` to `[L H, N, D]`
fn split_one(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    x.f_view([dims.positions, dims.samples, dims.heads, dims.head_width()])?
        .f_permute([0, 2, 1, 3])? // [L, H, N, D]
        .f_to_kind(accumulating(x)?)?
        .f_reshape([dims.positions * dims.heads, dims.samples, dims.head_width()])
}

/// `[L H, N, D]` to `[M, C]`
fn merge_heads(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    x.f_view([dims.positions, dims.heads, dims.samples, dims.head_width()])?
        .f_permute([0, 2, 1, 3])? // [L, N, H, D]
        .f_reshape([dims.tokens(), dims.channels])
}

/// `[3, L H, N, D]` to `[M, 3C]`
fn merge_qkv(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    x.f_view([3, dims.positions, dims.heads, dims.samples, dims.head_width()])?
        .f_permute([1, 3, 0, 2, 4])? // [L, N, 3, H, D]
        .f_reshape([dims.tokens(), 3 * dims.channels])
}

fn accumulating(x: &Tensor) -> Result<Kind> {
    Ok(accumulate_kind(x.f_kind()?))
}
