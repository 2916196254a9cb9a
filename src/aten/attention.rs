//! Multi-head attention over the N samples, at each position by itself (Vaswani et al., 2017, eq. 1).
//!
//! Half precision is computed in float32 from the projections on, as torch's own does.

use tch::Tensor;

use super::dropout::TensorMask;
use super::linear;
use super::Result;
use crate::call::{accumulate_kind, Dims, Linear};

/// Query (already scaled) `[L H, N, D]`, key and value `[L H, K, D]`.
struct HeadTensors {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

/// The output of `in_proj`, `[M, 3C]`; or the query alone, `[M, C]`, and the keys and values that count, `[L, K, 2C]`.
pub struct Projections<'a> {
    pub qkv: &'a Tensor,
    pub keys_values: Option<&'a Tensor>,
}

/// The heads' outputs `[M, C]` and the log-sum-exp `[L H, N]` of each query's scores.
pub fn forward(of: &Projections, mask: &TensorMask, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let heads = of.split_heads(dims)?;
    let scores = scores(&heads)?; // [L H, N, K]
    let logsumexp = scores.f_logsumexp([-1].as_slice(), false)?; // [L H, N]
    let probabilities = softmax(&scores)?;
    drop(scores);
    let dropped = mask.apply(probabilities)?;
    let attended = merge(&dropped.f_bmm(&heads.value)?.f_unsqueeze(0)?, dims)?; // [L, N, C]
    let attended = attended.f_reshape([dims.tokens(), dims.channels])?;
    Ok((attended.f_to_kind(of.qkv.f_kind()?)?, logsumexp))
}

/// The gradients of [`Projections`] from that of the heads' outputs `[M, C]`.
///
/// With P = softmax(S), P̃ its dropout and Y = P̃ V:
///     `grad_V` = P̃ᵀ `grad_Y`, `grad_P` = dropout(`grad_Y` Vᵀ),
///     `grad_S` = P (`grad_P` - Σ P `grad_P`), `grad_Q` = scale `grad_S` K, `grad_K` = scale `grad_S`ᵀ Q.
/// P is recomputed by the same softmax. Tried: exp(S - log Σ exp S) from the kept log-sum-exp, whose rounding makes
/// rows of P with scores of 1e5 sum to up to 1 % off 1, and adds that share of Σ P `grad_P` to every `grad_S`.
pub fn backward(
    grad_attended: &Tensor,
    of: &Projections,
    mask: &TensorMask,
    dims: &Dims,
) -> Result<(Tensor, Option<Tensor>)> {
    let kind = of.qkv.f_kind()?;
    let heads = of.split_heads(dims)?;
    let probabilities = softmax(&scores(&heads)?)?;
    let grad_attended = grad_attended.f_view([dims.positions, dims.samples, dims.channels])?;
    let grad_heads = split(&grad_attended, dims)?.f_select(0, 0)?;

    let dropped = mask.apply(probabilities.shallow_clone())?;
    let grad_value = dropped.f_transpose(1, 2)?.f_bmm(&grad_heads)?;
    drop(dropped);

    let grad_dropped = grad_heads.f_bmm(&heads.value.f_transpose(1, 2)?)?; // [L H, N, K]
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
    let rows = |grads: &[Tensor]| merge(&Tensor::f_stack(grads, 0)?, dims)?.f_to_kind(kind);
    let tokens =
        |grad: Tensor| grad.f_reshape([dims.tokens(), dims.in_proj_parts() * dims.channels]);
    if of.keys_values.is_none() {
        return Ok((tokens(rows(&[grad_query, grad_key, grad_value])?)?, None));
    }
    let grad_keys_values = rows(&[grad_key, grad_value])?; // [L, K, 2C]
    Ok((tokens(rows(&[grad_query])?)?, Some(grad_keys_values)))
}

/// Who attends to whom, without dropout: x `[N, C]` to `[H, N, N]`.
pub fn probabilities(x: &Tensor, in_proj: &Linear, dims: &Dims) -> Result<Tensor> {
    let qkv = linear::forward(x, in_proj)?;
    let heads = Projections { qkv: &qkv, keys_values: None }.split_heads(dims)?;
    softmax(&scores(&heads)?)
}

fn scores(heads: &HeadTensors) -> Result<Tensor> {
    heads.query.f_bmm(&heads.key.f_transpose(1, 2)?)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    scores.f_softmax(-1, None)
}

impl Projections<'_> {
    fn split_heads(&self, dims: &Dims) -> Result<HeadTensors> {
        let own = split(&self.qkv.f_view([dims.positions, dims.samples, -1])?, dims)?;
        let brought = self.keys_values.map(|keys_values| split(keys_values, dims)).transpose()?;
        let (from, key) = brought.as_ref().map_or((&own, 1), |brought| (brought, 0));
        Ok(HeadTensors {
            query: own.f_select(0, 0)?.f_mul_scalar(dims.attention_scale())?,
            key: from.f_select(0, key)?,
            value: from.f_select(0, key + 1)?,
        })
    }
}

/// `[L, rows, parts C]` to `[parts, L H, rows, D]`
fn split(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (rows, parts) = (x.size()[1], x.size()[2] / dims.channels);
    x.f_reshape([dims.positions, rows, parts, dims.heads, dims.head_width()])?
        .f_permute([2, 0, 3, 1, 4])? // [parts, L, H, rows, D]
        .f_to_kind(accumulate_kind(x.f_kind()?))?
        .f_reshape([parts, dims.positions * dims.heads, rows, dims.head_width()])
}

/// `[parts, L H, rows, D]` to `[L, rows, parts C]`
fn merge(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (parts, rows) = (x.size()[0], x.size()[2]);
    x.f_view([parts, dims.positions, dims.heads, rows, dims.head_width()])?
        .f_permute([1, 3, 0, 2, 4])? // [L, rows, parts, H, D]
        .f_reshape([dims.positions, rows, parts * dims.channels])
}
