//! Up to 64 samples: all of a position's queries and keys lie in tiles of 16 rows, several positions in one tile if they
//! fit.

use tch::{Kind, Tensor};

use super::{Attended, AttentionGrads};
use crate::call::Dims;
use crate::cuda::call::{element, steps_of, CudaCall};
use crate::cuda::kernel::{Define, Kernel, Source};
use crate::cuda::launch::{launch, Arg};
use crate::cuda::Result;

const TILE: i64 = 16;
const MOST_SAMPLES: i64 = 64;
const MOST_WIDTH: i64 = 256;

/// A unit is one head of as many positions as fit some tiles.
struct Unit {
    tiles: i64,
    /// Positions.
    packed: i64,
    /// Bytes of shared memory, forward and backward.
    shared: [i64; 2],
}

impl Unit {
    fn new(dims: &Dims, kind: Kind) -> Self {
        let size = kind.elt_size_in_bytes() as i64;
        let (tiles, pad) = (steps_of(TILE, dims.samples), 16 / size);
        let rows = TILE * tiles;
        let tile = rows * (TILE * steps_of(TILE, dims.head_width()) + pad);
        let weights = rows * (rows + pad);
        let shared = [3 * tile * size, 2 * (tile + tile.max(weights)) * size];
        Self { tiles, packed: rows / dims.samples, shared }
    }
}

/// Whether this variant supports the sizes, on a device with `shared` bytes of shared memory for a block.
pub fn covers(dims: &Dims, kind: Kind, shared: i64) -> bool {
    dims.own_keys
        && dims.samples <= MOST_SAMPLES
        && dims.head_width() <= MOST_WIDTH
        && Unit::new(dims, kind).shared[1] <= shared
}

fn kernel(call: &CudaCall, name: &'static str, pass: usize) -> Kernel {
    let (dims, kind) = (call.dims, call.kinds.linears);
    let Unit { tiles, packed, shared } = Unit::new(dims, kind);
    let units = steps_of(packed, dims.positions) * dims.heads;
    let enough = 4 * call.facts.multiprocessors;
    // As many units per block as still leave four blocks for each multiprocessor, in 48 KiB of shared memory.
    let mut together = 4 / tiles;
    while together > 1 && (together * shared[pass] > 48 << 10 || steps_of(together, units) < enough)
    {
        together /= 2;
    }
    Kernel {
        source: Source::AttentionSmall,
        name,
        defines: vec![
            ("ELEMENT", element(kind)),
            ("HEAD", Define::Number(dims.head_width())),
            ("R", Define::Number(tiles)),
            ("TF32", Define::Number(call.tf32.into())),
        ],
        grid: [steps_of(together, units) as u32, 1, 1],
        block: (32 * tiles * together) as u32,
        shared: (together * shared[pass]) as u32,
    }
}

pub fn forward(call: &CudaCall, qkv: &Tensor) -> Result<Attended> {
    let dims = call.dims;
    let rows = call.empty(&[dims.tokens(), dims.channels], call.kinds.linears)?;
    let logsumexp = call.empty(&[dims.positions, dims.samples, dims.heads], Kind::Float)?;
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.attention);
    let heads = call.heads();
    let arguments = [
        Arg::In(qkv),
        Arg::Struct(&heads),
        super::scale(dims),
        seed,
        threshold,
        scale,
        Arg::Out(&rows),
        Arg::Out(&logsumexp),
    ];
    launch(call.device, &kernel(call, "attention_small_forward", 0), &arguments)?;
    Ok(Attended { rows, logsumexp })
}

pub fn backward(
    call: &CudaCall,
    grad_attended: &Tensor,
    qkv: &Tensor,
    want_attended: bool,
) -> Result<AttentionGrads> {
    let dims = call.dims;
    let grad_qkv = call.empty_projections()?;
    let attended =
        want_attended.then(|| call.empty(&grad_attended.size(), call.kinds.linears)).transpose()?;
    let [seed, threshold, scale] = call.dropout(call.input.config.dropout.attention);
    let heads = call.heads();
    let arguments = [
        Arg::In(qkv),
        Arg::In(grad_attended),
        Arg::Struct(&heads),
        super::scale(dims),
        seed,
        threshold,
        scale,
        Arg::Out(&grad_qkv),
        attended.as_ref().map_or(Arg::Null, Arg::Out),
    ];
    launch(call.device, &kernel(call, "attention_small_backward", 1), &arguments)?;
    Ok(AttentionGrads { qkv: grad_qkv, keys_values: None, attended })
}
