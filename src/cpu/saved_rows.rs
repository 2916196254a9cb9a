//! What the forward keeps for the backward: memory of the pool, then tensors, then rows again.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::backward_steps::SavedRows;
use super::block::Block;
use super::buffers::Buffers;
use super::matrix::Matrix;
use super::rows::TokenRows;
use super::simd::Real;
use super::tensors::elements;
use crate::call::{Dims, Saved};

/// One buffer for each tensor of [`Saved`], in its order.
pub type SavedBuffers<T> = Buffers<T, { Saved::COUNT }>;

/// Elements of a token in each tensor of [`Saved`]: 0 for what the call does not need.
pub fn widths(dims: &Dims, norm_first: bool) -> [usize; Saved::COUNT] {
    let (channels, heads, feedforward) =
        (dims.channels as usize, dims.heads as usize, dims.feedforward as usize);
    let attended = if dims.tiled() { 0 } else { channels };
    let residual2 = if norm_first { 0 } else { channels };
    [3 * channels, heads, attended, channels, feedforward, residual2, 1, 1, 1, 1]
}

/// Tensors `[L, N, width]`, statistics `[L, N]`, and empty ones for what is not kept.
pub fn into_saved<T: Real + Element>(
    buffers: SavedBuffers<T>,
    dims: &Dims,
    norm_first: bool,
) -> Result<Saved, TchError> {
    let [positions, samples] = [dims.positions, dims.samples].map(|size| size as usize);
    let mut widths = widths(dims, norm_first).into_iter();
    let [qkv, logsumexp, attended, residual1, hidden, residual2, statistics @ ..] =
        buffers.into_blocks().map(|block| (block, widths.next().unwrap_or(0)));
    let tokens = |(block, width): (Block<T>, usize)| match width {
        0 => block.into_tensor(&[0]),
        _ => block.into_tensor(&[positions, samples, width]),
    };
    let statistic = |(block, _): (Block<T>, usize)| block.into_tensor(&[positions, samples]);
    let [mean1, rstd1, mean2, rstd2] = statistics.map(statistic);
    Ok(Saved {
        qkv: tokens(qkv)?,
        logsumexp: tokens(logsumexp)?,
        attended: tokens(attended)?,
        residual1: tokens(residual1)?,
        hidden: tokens(hidden)?,
        residual2: tokens(residual2)?,
        mean1: mean1?,
        rstd1: rstd1?,
        mean2: mean2?,
        rstd2: rstd2?,
    })
}

/// The rows of all tokens.
pub fn rows<'a, T: Real + Element>(
    saved: &'a Saved,
    x: Matrix<'a, T>,
    dims: &Dims,
) -> SavedRows<'a, T> {
    let tokens = dims.tokens() as usize;
    let rows = |tensor: &'a Tensor| Matrix::new(elements(tensor), tokens, tensor.numel() / tokens);
    SavedRows {
        tokens: TokenRows {
            first: 0,
            samples: dims.samples as usize,
            positions: dims.positions as usize,
        },
        x,
        qkv: rows(&saved.qkv),
        logsumexp: rows(&saved.logsumexp),
        attended: (saved.attended.numel() > 0).then(|| rows(&saved.attended)),
        residual1: rows(&saved.residual1),
        hidden: rows(&saved.hidden),
        residual2: rows(&saved.residual2),
        statistics1: [rows(&saved.mean1), rows(&saved.rstd1)],
        statistics2: [rows(&saved.mean2), rows(&saved.rstd2)],
    }
}
