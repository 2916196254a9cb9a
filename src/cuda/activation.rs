//! The feed-forward's activation with the dropout after it.

use tch::Tensor;

use super::call::{element, steps_of, wide, CudaCall};
use super::kernel::{Define, Kernel, Source};
use super::launch::{launch, Arg};
use super::totals::Totals;
use super::Result;
use crate::call::Activation;

fn kernel(call: &CudaCall, name: &'static str, row_blocks: i64, warps: i64, shared: i64) -> Kernel {
    let gelu = call.input.config.activation == Activation::Gelu;
    Kernel {
        source: Source::Activation,
        name,
        defines: vec![
            ("ELEMENT", element(call.kinds.linears)),
            ("GELU", Define::Number(gelu.into())),
        ],
        grid: [
            row_blocks as u32,
            steps_of(wide(call.kinds.linears), call.dims.feedforward) as u32,
            1,
        ],
        block: (32 * warps) as u32,
        shared: shared as u32,
    }
}

/// `dropout(act(z))` for z `[M, F]`; with ReLU it overwrites z.
pub fn forward(call: &CudaCall, z: &Tensor) -> Result<Tensor> {
    let CudaCall { dims, kinds, .. } = *call;
    let activated = match call.input.config.activation {
        Activation::Relu => z.shallow_clone(),
        Activation::Gelu => call.empty(&z.size(), kinds.linears)?,
    };
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.hidden);
    let shape = call.rows(dims.feedforward);
    let arguments = [Arg::In(z), seed, threshold, scale, Arg::Struct(&shape), Arg::Out(&activated)];
    let row_blocks = steps_of(8, dims.tokens()); // two rows a warp
    launch(call.device, &kernel(call, "activation_forward", row_blocks, 4, 0), &arguments)?;
    Ok(activated)
}

/// The gradient of z, in the memory of the gradient of [`forward`]'s output, from what is kept: that output (ReLU) or z
/// (GELU); and the output, recomputed, if it is wanted and was not kept.
pub fn backward(
    call: &CudaCall,
    grad_activated: Tensor,
    kept: &Tensor,
    want_activated: bool,
    bias: usize,
    totals: &Totals,
) -> Result<(Tensor, Option<Tensor>)> {
    let CudaCall { dims, kinds, .. } = *call;
    let relu = call.input.config.activation == Activation::Relu;
    let activated = match (want_activated, relu) {
        (false, _) => None,
        (true, true) => Some(kept.shallow_clone()),
        (true, false) => Some(call.empty(&kept.size(), kinds.linears)?),
    };
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.hidden);
    let shape = call.rows(dims.feedforward);
    let arguments = [
        Arg::In(&grad_activated),
        Arg::In(kept),
        if relu { Arg::Null } else { seed },
        threshold,
        scale,
        Arg::Struct(&shape),
        Arg::Out(&grad_activated),
        if relu { Arg::Null } else { activated.as_ref().map_or(Arg::Null, Arg::Out) },
        totals.partials(),
        Arg::I32(totals.stride()),
        totals.at(Some(bias)),
    ];
    let warps = totals.warps(call);
    let shared = 4 * warps * wide(kinds.linears);
    let kernel = kernel(call, "activation_backward", totals.blocks().into(), warps, shared);
    launch(call.device, &kernel, &arguments)?;
    Ok((grad_activated, activated))
}
