//! Multi-head attention over the N samples at each position: for few samples a warp's tile holds several positions, for
//! many a kernel iterates over the keys, and heads too wide for either use libtorch's products.

mod cut;
mod long;
mod small;
mod wide;

use tch::Tensor;

use super::call::CudaCall;
use super::launch::Arg;
use super::Result;
use crate::call::Dims;

/// Which kernels compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Small,
    Long,
    Wide,
}

/// Query, key and value, in the order of the rows of x; kernels take them in any shape.
#[derive(Clone, Copy)]
pub struct Projections<'a> {
    /// `[M, 3C]`, or `[M, C]` for a call with `keys_values`.
    pub qkv: &'a Tensor,
    /// `[K, L, 2C]` or `[L, K, 2C]`
    pub keys_values: Option<&'a Tensor>,
}

/// What a forward gives: the heads' outputs `[M, C]`, and the log-sum-exp `[L, N, H]` of each query's scores.
pub struct Attended {
    pub rows: Tensor,
    pub logsumexp: Tensor,
}

/// What a backward gives.
pub struct AttentionGrads {
    /// `[M, 3C]` or `[M, C]`
    pub qkv: Tensor,
    /// In the shape of the call's `keys_values`.
    pub keys_values: Option<Tensor>,
    /// The heads' outputs, recomputed if that was asked for.
    pub attended: Option<Tensor>,
}

fn way(call: &CudaCall) -> Way {
    let (dims, kind) = (call.dims, call.kinds.linears);
    if small::covers(dims, kind, call.facts.shared) {
        Way::Small
    } else if long::covers(call) {
        Way::Long
    } else {
        Way::Wide
    }
}

/// The heads' outputs and each query's log-sum-exp.
pub fn forward(call: &CudaCall, of: Projections) -> Result<Attended> {
    match way(call) {
        Way::Small => small::forward(call, of.qkv),
        Way::Long => long::forward(call, of),
        Way::Wide => wide::forward(call, of),
    }
}

/// The gradients of [`Projections`] from that of the heads' outputs; `attended` are these, if they were kept.
pub fn backward(
    call: &CudaCall,
    grad_attended: &Tensor,
    of: Projections,
    logsumexp: &Tensor,
    attended: Option<&Tensor>,
    want_attended: bool,
) -> Result<AttentionGrads> {
    match way(call) {
        Way::Small => {
            small::backward(call, grad_attended, of.qkv, want_attended && attended.is_none())
        }
        Way::Long => long::backward(call, grad_attended, of, logsumexp, attended),
        Way::Wide => wide::backward(call, grad_attended, of, want_attended && attended.is_none()),
    }
}

fn scale(dims: &Dims) -> Arg<'static> {
    Arg::F32(dims.attention_scale() as f32)
}
