//! Heads too wide for the kernels' tiles: the products are libtorch's, softmax and dropout ours.

use tch::{Kind, Tensor};

use super::{Attended, AttentionGrads, Projections};
use crate::call::Dims;
use crate::cuda::call::{element, per_piece, steps_of, CudaCall};
use crate::cuda::kernel::{Define, Kernel, Source};
use crate::cuda::launch::{launch, Arg};
use crate::cuda::Result;

/// `[L H, N, D]` and `[L H, K, D]`.
struct HeadTensors {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

/// `a b` of what the kernels make for each key, `[L H, N, K]`, with keys or values `[L H, K, D]`, over those that count:
/// the others have factors of 0, and 0 times what is not finite is NaN.
fn sum_over_keys(a: &Tensor, b: &Tensor, dims: &Dims) -> Result<Tensor> {
    let counted = dims.counted_keys;
    Ok(a.f_narrow(2, 0, counted)?.f_bmm(&b.f_narrow(1, 0, counted)?)?)
}

/// Rows of `samples` samples or keys, `[M, parts C]` in their order, as a view `[parts, L, H, samples, D]`.
fn split(rows: &Tensor, samples: i64, dims: &Dims) -> Result<Tensor> {
    let parts = rows.numel() as i64 / (samples * dims.positions * dims.channels);
    let (first, second) =
        if dims.batch_first { (dims.positions, samples) } else { (samples, dims.positions) };
    let rows = rows.f_view([first, second, parts, dims.heads, dims.head_width()])?;
    let order = if dims.batch_first { [2, 0, 3, 1, 4] } else { [2, 1, 3, 0, 4] };
    Ok(rows.f_permute(order)?)
}

/// One of the parts as `[L H, samples, D]`, copied where several positions leave no such view.
fn part(split: &Tensor, index: i64) -> Result<Tensor> {
    let one = split.f_select(0, index)?;
    let size = one.size();
    Ok(one.f_reshape([size[0] * size[1], size[2], size[3]])?)
}

fn heads(of: Projections, dims: &Dims) -> Result<HeadTensors> {
    let own = split(of.qkv, dims.samples, dims)?;
    let brought = of.keys_values.map(|each| split(each, dims.keys, dims)).transpose()?;
    let (from, key) = brought.as_ref().map_or((&own, 1), |brought| (brought, 0));
    Ok(HeadTensors { query: part(&own, 0)?, key: part(from, key)?, value: part(from, key + 1)? })
}

/// `a bᵀ` in float32, as its rounding would be one of an exponent.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let b = b.f_transpose(1, 2)?;
    match a.f_kind()? {
        Kind::BFloat16 | Kind::Half if a.device().is_cuda() => Ok(a.f_bmm_dtype(&b, Kind::Float)?),
        _ => Ok(a.f_to_kind(Kind::Float)?.f_bmm(&b.f_to_kind(Kind::Float)?)?),
    }
}

/// A warp for each row of the scores, or several where it is long.
fn kernel(call: &CudaCall, name: &'static str) -> Kernel {
    let (dims, kind) = (call.dims, call.kinds.linears);
    let pieces = steps_of(per_piece(kind), dims.keys);
    let warps = [1, 2, 4].into_iter().find(|warps| pieces <= 64 * warps).unwrap_or(8);
    let chunks = steps_of(32 * warps, pieces);
    let most = if per_piece(kind) == 8 { 2 } else { 4 }; // that registers hold; 0 reads the row again
    let rows_a_block = if warps == 1 { 4 } else { 1 };
    let rows = dims.positions * dims.heads * dims.samples;
    Kernel {
        source: Source::Softmax,
        name,
        defines: vec![
            ("ELEMENT", element(kind)),
            ("SCORE", element(Kind::Float)),
            ("WARPS", Define::Number(warps)),
            ("CHUNKS", Define::Number(if chunks > most { 0 } else { chunks })),
            ("WHOLE", Define::Number((dims.keys % per_piece(kind) == 0).into())),
        ],
        grid: [steps_of(rows_a_block, rows) as u32, 1, 1],
        block: (32 * warps * rows_a_block) as u32,
        shared: if warps == 1 { 0 } else { 12 * warps } as u32,
    }
}

pub fn forward(call: &CudaCall, of: Projections) -> Result<Attended> {
    let (dims, kind) = (call.dims, call.kinds.linears);
    let logsumexp = call.empty(&[dims.positions, dims.samples, dims.heads], Kind::Float)?;
    let HeadTensors { query, key, value } = heads(of, dims)?;
    let scores = product(&query, &key)?; // [L H, N, K]
    let dropped = call.empty(&scores.size(), kind)?;
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.attention);
    let heads = call.heads();
    let arguments = [
        Arg::In(&scores),
        Arg::Struct(&heads),
        Arg::I32(0),
        Arg::I32(dims.samples as i32),
        super::scale(dims),
        seed,
        threshold,
        scale,
        Arg::Out(&dropped),
        Arg::Out(&logsumexp),
    ];
    launch(call.device, &kernel(call, "softmax_forward"), &arguments)?;
    drop(scores);
    let rows = call.empty(&[dims.tokens(), dims.channels], kind)?;
    merge(&rows, 0, &sum_over_keys(&dropped, &value, dims)?, dims.samples, dims)?;
    Ok(Attended { rows, logsumexp })
}

/// With P = softmax(S), P̃ its dropout and Y = P̃ V:
///     `grad_V` = P̃ᵀ `grad_Y`, `grad_P̃` = `grad_Y` Vᵀ,
///     `grad_S` = scale (P̃ `grad_P̃` - P Σ P̃ `grad_P̃`), `grad_Q` = `grad_S` K, `grad_K` = `grad_S`ᵀ Q.
pub fn backward(
    call: &CudaCall,
    grad_attended: &Tensor,
    of: Projections,
    want_attended: bool,
) -> Result<AttentionGrads> {
    let (dims, kind) = (call.dims, call.kinds.linears);
    let HeadTensors { query, key, value } = heads(of, dims)?;
    let grad_heads = part(&split(grad_attended, dims.samples, dims)?, 0)?;
    let (scores, grad_dropped) = (product(&query, &key)?, product(&grad_heads, &value)?);
    let dropped = call.empty(&scores.size(), kind)?;
    let grad_scores = call.empty(&scores.size(), kind)?;
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.attention);
    let heads = call.heads();
    let arguments = [
        Arg::In(&scores),
        Arg::In(&grad_dropped),
        Arg::Struct(&heads),
        Arg::I32(0),
        Arg::I32(dims.samples as i32),
        super::scale(dims),
        seed,
        threshold,
        scale,
        Arg::Out(&dropped),
        Arg::Out(&grad_scores),
    ];
    launch(call.device, &kernel(call, "softmax_backward"), &arguments)?;
    drop((scores, grad_dropped));

    let attended = if want_attended {
        let rows = call.empty(&[dims.tokens(), dims.channels], kind)?;
        merge(&rows, 0, &sum_over_keys(&dropped, &value, dims)?, dims.samples, dims)?;
        Some(rows)
    } else {
        None
    };
    let grad_qkv = call.empty_projections()?;
    let grad_keys_values =
        of.keys_values.map(|brought| call.empty(&brought.size(), kind)).transpose()?;
    let (into, first) = grad_keys_values.as_ref().map_or((&grad_qkv, 1), |grad| (grad, 0));
    let grad_key = grad_scores.f_transpose(1, 2)?.f_bmm(&query)?;
    let grad_value = dropped.f_transpose(1, 2)?.f_bmm(&grad_heads)?;
    merge(&grad_qkv, 0, &sum_over_keys(&grad_scores, &key, dims)?, dims.samples, dims)?;
    merge(into, first, &grad_key, dims.keys, dims)?;
    merge(into, first + 1, &grad_value, dims.keys, dims)?;
    Ok(AttentionGrads { qkv: grad_qkv, keys_values: grad_keys_values, attended })
}

/// Writes `[L H, samples, D]` to one of the parts of some rows.
fn merge(rows: &Tensor, index: i64, heads: &Tensor, samples: i64, dims: &Dims) -> Result<()> {
    let mut part = split(rows, samples, dims)?.f_select(0, index)?;
    let heads = heads.f_view([dims.positions, dims.heads, samples, dims.head_width()])?;
    part.f_copy_(&heads)?;
    Ok(())
}
