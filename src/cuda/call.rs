//! What every step of a call needs: sizes, dtypes, the seed, and the kernels' view of them.

use tch::{Device, Kind, Tensor};

use super::device::{facts, Facts};
use super::kernel::Define;
use super::launch::Arg;
use super::Result;
use crate::call::random::{scale, threshold};
use crate::call::{Dims, Input, Kinds, Params};

/// One forward or backward.
pub struct CudaCall<'a> {
    pub input: &'a Input,
    /// Those of the input, with vectors as kernels read them.
    pub params: Params<Tensor>,
    pub dims: &'a Dims,
    pub kinds: Kinds,
    /// Of the norms' parameters, which autocast leaves as they are.
    pub norm_kind: Kind,
    /// Whether attention multiplies float32 in TF32; if not, its products are sums of three that do.
    pub tf32: bool,
    pub device: Device,
    pub facts: Facts,
}

impl<'a> CudaCall<'a> {
    pub fn new(input: &'a Input, dims: &'a Dims, tf32: bool) -> Result<Self> {
        Ok(Self {
            input,
            params: input.params.map(|tensor| match tensor.dim() {
                1 => aligned(tensor),
                _ => Ok(tensor.shallow_clone()),
            })?,
            dims,
            kinds: input.kinds()?,
            norm_kind: input.params.norm1.weight.f_kind()?,
            tf32,
            device: input.x.device(),
            facts: facts(input.x.device())?,
        })
    }

    /// Whether autocast has made the linears narrower than the stream of tokens.
    pub fn is_mixed(&self) -> bool {
        self.kinds.x != self.kinds.linears
    }

    /// `struct Rows` of the kernels, for rows of this width.
    pub fn rows(&self, width: i64) -> [i32; 5] {
        let Dims { positions, samples, batch_first, .. } = *self.dims;
        [
            self.dims.tokens() as i32,
            width as i32,
            positions as i32,
            samples as i32,
            batch_first.into(),
        ]
    }

    /// `struct Heads` of the kernels.
    pub fn heads(&self) -> [i32; 6] {
        let Dims { samples, keys, counted_keys, positions, heads, batch_first, .. } = *self.dims;
        [
            samples as i32,
            keys as i32,
            counted_keys as i32,
            positions as i32,
            heads as i32,
            batch_first.into(),
        ]
    }

    /// Seed, threshold and scale of a dropout, as kernels take them; without a seed where nothing is dropped.
    pub fn dropout(&self, p: f64) -> [Arg<'a>; 3] {
        let threshold = threshold(p);
        let seed = match &self.input.seed {
            Some(seed) if threshold > 0 => Arg::In(seed),
            _ => Arg::Null,
        };
        [seed, Arg::U32(threshold), Arg::F32(scale(threshold) as f32)]
    }

    /// Uninitialised.
    pub fn empty(&self, shape: &[i64], kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_empty(shape, (kind, self.device))?)
    }

    /// For the gradients of what `in_proj` gives: `[M, 3C]`, or `[M, C]` for a call with `keys_values`.
    pub fn empty_projections(&self) -> Result<Tensor> {
        let dims = self.dims;
        self.empty(&[dims.tokens(), dims.in_proj_parts() * dims.channels], self.kinds.linears)
    }

    /// `[N, L, ..]` or `[L, N, ..]` as rows `[M, width]`, contiguous, in the order of their memory.
    pub fn to_rows(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(aligned(tokens)?.f_view([self.dims.tokens(), -1])?)
    }
}

/// Contiguous from an address that is a multiple of 16, which a piece of a flat buffer need not be.
///
/// Nearly all are: libtorch's dispatcher, asked for each, would take the host as long as some launches.
pub fn aligned(tensor: &Tensor) -> Result<Tensor> {
    let is_aligned = |tensor: &Tensor| (tensor.data_ptr() as usize).is_multiple_of(16);
    if tensor.is_contiguous() && is_aligned(tensor) {
        return Ok(tensor.shallow_clone());
    }
    let tensor = tensor.f_contiguous()?;
    if is_aligned(&tensor) {
        return Ok(tensor);
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

/// What the kernels call a dtype.
pub fn element(kind: Kind) -> Define {
    Define::Element(match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "float",
    })
}

/// How many elements are 16 bytes, which a thread loads or stores at once.
pub fn per_piece(kind: Kind) -> i64 {
    16 / kind.elt_size_in_bytes() as i64
}

/// `count / size`, rounded up.
pub fn steps_of(size: i64, count: i64) -> i64 {
    (count + size - 1) / size
}

/// Columns that a warp covers with one piece of 16 bytes for each lane.
pub fn wide(kind: Kind) -> i64 {
    32 * per_piece(kind)
}
