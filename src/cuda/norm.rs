//! Layer norm with what comes before it: the branch's bias, its dropout and the residual sum.

use tch::{Kind, Tensor};

use super::call::{element, per_piece, steps_of, CudaCall};
use super::kernel::{Define, Kernel, Source};
use super::launch::{launch, Arg};
use super::totals::Totals;
use super::Result;
use crate::call::random::Site;
use crate::call::Norm;

/// The most warps that share a row.
const MOST_WARPS: i64 = 8;
/// The most 16-byte pieces that a lane keeps of a row.
const MOST_CHUNKS: i64 = 4;
/// Elements that a lane keeps of a row, if it can be: the backward has three sums for each.
const ELEMENTS_OF_LANE: i64 = 8;

/// What is added to the stream of tokens before the norm.
#[derive(Clone, Copy)]
pub struct Branch<'a> {
    /// `[M, C]`, without its bias.
    pub rows: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub site: Site,
    pub p: f64,
}

/// What a forward is asked to write.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools)] // one for each thing that may be written
pub struct Wanted {
    pub residual: bool,
    /// The normed rows in the dtype of the stream.
    pub normed: bool,
    /// The normed rows in the dtype of the linears, where that is another.
    pub narrow: bool,
    pub statistics: bool,
}

/// What a forward wrote, in the order of the rows of x; undefined what it was not asked for.
pub struct Normed {
    /// `[L, N, C]`, which the layer keeps; so are the statistics, `[L, N]`.
    pub residual: Tensor,
    /// `[M, C]` in the dtype of the stream.
    pub y: Tensor,
    /// `[M, C]`
    pub narrow: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
}

/// Whether rows of this width can be normed.
pub fn covers(channels: i64, kind: Kind) -> bool {
    channels % per_piece(kind) == 0 && channels <= MOST_WARPS * MOST_CHUNKS * 32 * per_piece(kind)
}

/// How a row is cut: 16-byte pieces of a lane, and warps.
fn cut(channels: i64, kind: Kind) -> (i64, i64) {
    let each = per_piece(kind);
    let wide = steps_of(32 * each, channels); // of one piece a lane
    let mut warps = 1;
    while warps < MOST_WARPS && warps * ELEMENTS_OF_LANE / each < wide {
        warps *= 2;
    }
    (steps_of(warps, wide), warps)
}

fn defines(
    call: &CudaCall,
    gradient: Kind,
    branch: bool,
    norm: bool,
) -> Vec<(&'static str, Define)> {
    let (chunks, warps) = cut(call.dims.channels, call.kinds.x);
    vec![
        ("STREAM", element(call.kinds.x)),
        ("BRANCH", element(call.kinds.linears)),
        ("PARAM", element(call.norm_kind)),
        ("GRAD", element(gradient)),
        ("CHUNKS", Define::Number(chunks)),
        ("WARPS", Define::Number(warps)),
        ("HAS_BRANCH", Define::Number(branch.into())),
        ("HAS_NORM", Define::Number(norm.into())),
    ]
}

/// `norm(x + dropout(branch + bias))`, as far as it is there: without a branch x itself is normed, without a norm the
/// sum is the result.
pub fn forward(
    call: &CudaCall,
    x: &Tensor,
    branch: Option<Branch>,
    norm: Option<(&Norm, f64)>,
    wanted: Wanted,
) -> Result<Normed> {
    let CudaCall { dims, kinds, .. } = *call;
    let (rows, channels) = (dims.tokens(), dims.channels);
    let of_token = [dims.positions, dims.samples];
    let made = |want: bool, kind: Kind, shape: &[i64]| {
        if want {
            call.empty(shape, kind)
        } else {
            Ok(Tensor::new())
        }
    };
    let normed = Normed {
        residual: made(wanted.residual, kinds.x, &[of_token[0], of_token[1], channels])?,
        y: made(wanted.normed, kinds.x, &[rows, channels])?,
        narrow: made(wanted.narrow, kinds.linears, &[rows, channels])?,
        mean: made(wanted.statistics, Kind::Float, &of_token)?,
        rstd: made(wanted.statistics, Kind::Float, &of_token)?,
    };
    let [masks, threshold, scale] = call.dropout(branch.map_or(0.0, |branch| branch.p));
    let shape = call.rows(channels);
    let arguments = [
        Arg::In(x),
        branch.map_or(Arg::Null, |branch| Arg::In(branch.rows)),
        Arg::optional(branch.and_then(|branch| branch.bias)),
        norm.map_or(Arg::Null, |(norm, _)| Arg::In(&norm.weight)),
        Arg::optional(norm.and_then(|(norm, _)| norm.bias.as_ref())),
        masks,
        Arg::U32(branch.map_or(0, |branch| branch.site as u32)),
        threshold,
        scale,
        Arg::F32(norm.map_or(0.0, |(_, eps)| eps as f32)),
        Arg::Struct(&shape),
        Arg::out(&normed.residual),
        Arg::out(&normed.y),
        Arg::out(&normed.narrow),
        Arg::out(&normed.mean),
        Arg::out(&normed.rstd),
    ];
    let (_, warps) = cut(channels, kinds.x);
    let groups = (4 / warps).max(1); // rows of a block
    let kernel = Kernel {
        source: Source::Norm,
        name: "residual_norm_forward",
        defines: defines(call, kinds.x, branch.is_some(), norm.is_some()),
        grid: [steps_of(groups, rows) as u32, 1, 1],
        block: (32 * warps * groups) as u32,
        shared: if warps > 1 { 16 * warps * groups } else { 0 } as u32,
    };
    launch(call.device, &kernel, &arguments)?;
    Ok(normed)
}

/// What a norm's forward has seen.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub norm: &'a Norm,
    /// `[M, C]`
    pub residual: &'a Tensor,
    pub mean: &'a Tensor,
    pub rstd: &'a Tensor,
    /// Where the sums of its gradients go: the index of its weight among the parameters.
    pub index: usize,
}

/// What a backward gives; undefined where there is no such gradient.
pub struct NormGrads {
    /// Of the residual sum, `[M, C]`.
    pub residual: Tensor,
    /// Of what the branch gave before its bias and dropout, `[M, C]`.
    pub branch: Tensor,
    /// The norm's output, recomputed, in the dtype of the linears.
    pub normed: Tensor,
}

/// The branch whose gradient is wanted, and the index of its bias among the parameters.
#[derive(Clone, Copy)]
pub struct BranchGrad {
    pub site: Site,
    pub p: f64,
    pub bias: usize,
}

/// The gradients of [`forward`], with that of another use of the residual sum (`skip`) added to its own.
pub fn backward(
    call: &CudaCall,
    grad: &Tensor,
    skip: Option<&Tensor>,
    seen: Option<Seen>,
    branch: Option<BranchGrad>,
    want_normed: bool,
    totals: &Totals,
) -> Result<NormGrads> {
    let CudaCall { dims, kinds, .. } = *call;
    let shape = [dims.tokens(), dims.channels];
    let made =
        |want: bool, kind: Kind| if want { call.empty(&shape, kind) } else { Ok(Tensor::new()) };
    let grads = NormGrads {
        residual: made(seen.is_some() || skip.is_some(), kinds.x)?,
        branch: made(branch.is_some(), kinds.linears)?,
        normed: made(want_normed, kinds.linears)?,
    };
    let [masks, threshold, scale] = call.dropout(branch.map_or(0.0, |branch| branch.p));
    let rows = call.rows(dims.channels);
    let arguments = [
        Arg::In(grad),
        Arg::optional(skip),
        seen.map_or(Arg::Null, |seen| Arg::In(seen.residual)),
        seen.map_or(Arg::Null, |seen| Arg::In(seen.mean)),
        seen.map_or(Arg::Null, |seen| Arg::In(seen.rstd)),
        seen.map_or(Arg::Null, |seen| Arg::In(&seen.norm.weight)),
        Arg::optional(seen.and_then(|seen| seen.norm.bias.as_ref())),
        masks,
        Arg::U32(branch.map_or(0, |branch| branch.site as u32)),
        threshold,
        scale,
        Arg::Struct(&rows),
        Arg::out(&grads.residual),
        Arg::out(&grads.branch),
        Arg::out(&grads.normed),
        totals.partials(),
        Arg::I32(totals.stride()),
        totals.at(branch.map(|branch| branch.bias)),
        totals.at(seen.map(|seen| seen.index)),
        totals.at(seen.map(|seen| seen.index + 1)),
    ];
    let (chunks, warps) = cut(dims.channels, kinds.x);
    // Warps of a block, as registers let them: a lane's sums, and what is wider than the stream.
    let wider = call.norm_kind.elt_size_in_bytes() > kinds.x.elt_size_in_bytes();
    let most = match (chunks * per_piece(kinds.x) > ELEMENTS_OF_LANE || warps == MOST_WARPS, wider)
    {
        (true, _) => 8,
        (false, true) => 12,
        (false, false) => 14,
    };
    let groups = (most / warps).min(steps_of(totals.blocks().into(), dims.tokens()));
    let sums = if groups > 1 { 4 * groups * dims.channels } else { 0 };
    let shared = if warps > 1 { sums.max(16 * warps * groups) } else { sums };
    let kernel = Kernel {
        source: Source::Norm,
        name: "residual_norm_backward",
        defines: defines(call, grad.f_kind()?, branch.is_some(), seen.is_some()),
        grid: [totals.blocks(), 1, 1],
        block: (32 * warps * groups) as u32,
        shared: shared as u32,
    };
    launch(call.device, &kernel, &arguments)?;
    Ok(grads)
}
