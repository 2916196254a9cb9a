//! Any number of samples and keys: a block keeps some queries and iterates over the keys, or in one pass of the
//! backward keeps some keys and iterates over the queries.

use tch::{Kind, Tensor};

use super::cut::{cut, Cut, Pass};
use super::{Attended, AttentionGrads, Projections};
use crate::cuda::call::{element, steps_of, CudaCall};
use crate::cuda::error::CudaError;
use crate::cuda::kernel::{Define, Kernel, Source};
use crate::cuda::launch::{launch, Arg};
use crate::cuda::Result;

/// Whether this variant supports heads of this width on the device.
pub fn covers(call: &CudaCall) -> bool {
    let (width, kind) = (call.dims.head_width(), call.kinds.linears);
    width * kind.elt_size_in_bytes() as i64 % 16 == 0
        && width <= MOST_WIDTH
        && [Pass::Forward, Pass::ByQuery, Pass::ByKey]
            .iter()
            .all(|&pass| cut_of(call, pass).is_some())
}

fn cut_of(call: &CudaCall, pass: Pass) -> Option<Cut> {
    cut(pass, call.dims, call.kinds.linears, call.facts)
}

const MOST_WIDTH: i64 = 256;

/// Query, key and value as kernels take them: where each begins, and the stride of its rows.
struct Rows<'a> {
    query: Arg<'a>,
    query_stride: i32,
    key: Arg<'a>,
    value: Arg<'a>,
    key_stride: i32,
}

fn rows<'a>(call: &CudaCall, of: Projections<'a>) -> Rows<'a> {
    let width = call.dims.channels;
    let (from, first, parts) = of.keys_values.map_or((of.qkv, 1, 3), |brought| (brought, 0, 2));
    Rows {
        query: Arg::In(of.qkv),
        query_stride: (call.dims.in_proj_parts() * width) as i32,
        key: Arg::InAt(from, first * width),
        value: Arg::InAt(from, (first + 1) * width),
        key_stride: (parts * width) as i32,
    }
}

/// A block for each `held` rows of each head at each position.
fn launch_pass(call: &CudaCall, pass: Pass, arguments: &[Arg]) -> Result<()> {
    let (dims, kind) = (call.dims, call.kinds.linears);
    let (name, part, rows) = match pass {
        Pass::Forward => ("attention_long_forward", "FORWARD", dims.samples),
        Pass::ByQuery => ("attention_long_backward_query", "BY_QUERY", dims.samples),
        Pass::ByKey => ("attention_long_backward_key", "BY_KEY", dims.keys),
    };
    let cut = cut_of(call, pass).ok_or(CudaError::NoCut { kernel: name })?;
    let mut defines = vec![
        ("ELEMENT", element(kind)),
        ("HEAD", Define::Number(dims.head_width())),
        ("TF32", Define::Number(call.tf32.into())),
        ("PART", Define::Element(part)),
    ];
    defines.extend(cut.defines.iter().map(|&(name, number)| (name, Define::Number(number))));
    let kernel = Kernel {
        source: Source::AttentionLong,
        name,
        defines,
        grid: [(steps_of(cut.held, rows) * dims.heads * dims.positions) as u32, 1, 1],
        block: (32 * cut.warps) as u32,
        shared: cut.shared as u32,
    };
    Ok(launch(call.device, &kernel, arguments)?)
}

pub fn forward(call: &CudaCall, of: Projections) -> Result<Attended> {
    let dims = call.dims;
    let attended = call.empty(&[dims.tokens(), dims.channels], call.kinds.linears)?;
    let logsumexp = call.empty(&[dims.positions, dims.samples, dims.heads], Kind::Float)?;
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.attention);
    let (heads, rows) = (call.heads(), rows(call, of));
    let arguments = [
        rows.query,
        Arg::I32(rows.query_stride),
        rows.key,
        rows.value,
        Arg::I32(rows.key_stride),
        Arg::Struct(&heads),
        super::scale(dims),
        seed,
        threshold,
        scale,
        Arg::Out(&attended),
        Arg::Out(&logsumexp),
    ];
    launch_pass(call, Pass::Forward, &arguments)?;
    Ok(Attended { rows: attended, logsumexp })
}

/// First by query, which leaves for each its Σ P `grad_P` and the part of its row of P that the rounding of the
/// log-sum-exp has left out; then by key.
pub fn backward(
    call: &CudaCall,
    grad_attended: &Tensor,
    of: Projections,
    logsumexp: &Tensor,
    attended: Option<&Tensor>,
) -> Result<AttentionGrads> {
    let (dims, kind) = (call.dims, call.kinds.linears);
    let attended = match attended {
        Some(attended) => attended.shallow_clone(),
        None => forward(call, of)?.rows,
    };
    let delta = call.empty(&logsumexp.size(), Kind::Float)?;
    let share = call.empty(&logsumexp.size(), Kind::Float)?;
    let grad_qkv = call.empty_projections()?;
    let grad_keys_values =
        of.keys_values.map(|brought| call.empty(&brought.size(), kind)).transpose()?;
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.attention);
    let (heads, rows) = (call.heads(), rows(call, of));
    let first = [
        rows.query,
        Arg::I32(rows.query_stride),
        rows.key,
        rows.value,
        Arg::I32(rows.key_stride),
        Arg::In(logsumexp),
    ];
    let last =
        [Arg::In(grad_attended), Arg::Struct(&heads), super::scale(dims), seed, threshold, scale];
    let by_query = [
        &first[..],
        &[Arg::In(&attended)],
        &last,
        &[Arg::Out(&grad_qkv), Arg::I32(rows.query_stride), Arg::Out(&delta), Arg::Out(&share)],
    ];
    launch_pass(call, Pass::ByQuery, &by_query.concat())?;

    let (width, parts) = (dims.channels, if dims.own_keys { 3 } else { 2 });
    let (into, at) = grad_keys_values.as_ref().map_or((&grad_qkv, 1), |grad| (grad, 0));
    let by_key = [
        &first[..],
        &[Arg::In(&delta), Arg::In(&share)],
        &last,
        &[
            Arg::OutAt(into, at * width),
            Arg::OutAt(into, (at + 1) * width),
            Arg::I32((parts * width) as i32),
        ],
    ];
    launch_pass(call, Pass::ByKey, &by_key.concat())?;
    Ok(AttentionGrads { qkv: grad_qkv, keys_values: grad_keys_values, attended: Some(attended) })
}
