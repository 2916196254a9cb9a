//! What the forward makes for the backward: memory of the pool or scratch, then tensors, then rows again.

use std::ops::Range;

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::buffers::Buffers;
use super::layer_view::LayerView;
use super::matrix::{Matrix, MatrixMut};
use super::rows::TokenRows;
use super::simd::Real;
use super::tensors::{self, elements, tokens};
use crate::call::{Dims, Input, Saved, SavedTensors, SAVED};

/// One buffer for each tensor of [`Saved`].
pub type SavedBuffers<T> = Buffers<T, { SAVED.len() }>;

/// Elements of a token in each tensor: of those that are kept, and of temporary ones.
#[derive(Clone, Copy)]
pub struct SavedWidths {
    pub kept: [usize; SAVED.len()],
    pub forgotten: [usize; SAVED.len()],
}

impl SavedWidths {
    pub fn new(input: &Input, dims: &Dims) -> Self {
        let widths = |chosen: fn(bool, bool) -> bool| {
            SAVED.each_ref().map(|fact| {
                let made = fact.is_made(&input.config);
                let kept = fact.is_kept(&input.config, &input.needs, dims.positions);
                if chosen(made, kept) {
                    dims.token_width(fact.shape)
                } else {
                    0
                }
            })
        };
        Self { kept: widths(|_, kept| kept), forgotten: widths(|made, kept| made && !kept) }
    }
}

/// Where the forward writes: of each tensor, the kept rows or, if these have no columns, the temporary ones.
pub fn written<'a, T: Real>(
    kept: [MatrixMut<'a, T>; SAVED.len()],
    forgotten: [MatrixMut<'a, T>; SAVED.len()],
) -> Saved<MatrixMut<'a, T>> {
    let pairs = Saved::from_array(kept).zip(Saved::from_array(forgotten));
    pairs.map(|(kept, forgotten)| if kept.columns() > 0 { kept } else { forgotten })
}

/// The kept buffers as tensors.
pub fn into_tensors<T: Real + Element>(
    buffers: SavedBuffers<T>,
    widths: &SavedWidths,
    dims: &Dims,
) -> Result<SavedTensors, TchError> {
    let blocks = Saved::from_array(buffers.into_blocks()).zip(Saved::from_array(widths.kept));
    blocks.zip(Saved::facts()).try_map(|((block, width), fact)| {
        let shape = || dims.shape(fact.shape).into_iter().map(|size| size as usize);
        (width > 0).then(|| block.into_tensor(&shape().collect::<Vec<_>>())).transpose()
    })
}

/// The same tensors without gaps; a user's hooks may have given them other strides.
pub fn contiguous(saved: &SavedTensors) -> Result<SavedTensors, TchError> {
    saved.as_ref().try_map(|tensor| tensor.as_ref().map(tensors::contiguous).transpose())
}

/// The keys and values that count as rows `[L keys, 2C]`; without columns, if there are none.
pub fn key_rows<'a, T: Real + Element>(
    keys_values: Option<&'a Tensor>,
    dims: &Dims,
) -> Matrix<'a, T> {
    let rows = (dims.positions * dims.counted_keys) as usize;
    keys_values.map_or_else(|| Matrix::new(&[], rows, 0), |keys_values| tokens(keys_values, dims))
}

/// What the backward reads of some rows, of whole positions; what is not kept has no columns.
#[derive(Clone, Copy)]
pub struct SavedRows<'a, T> {
    pub tokens: TokenRows,
    pub x: Matrix<'a, T>,
    /// `[keys of these positions, 2C]`, or without columns.
    pub keys_values: Matrix<'a, T>,
    pub saved: Saved<Matrix<'a, T>>,
}

impl<'a, T: Real + Element> SavedRows<'a, T> {
    /// All rows of contiguous tensors.
    pub fn new(
        saved: &'a SavedTensors,
        x: Matrix<'a, T>,
        keys_values: Matrix<'a, T>,
        dims: &Dims,
    ) -> Self {
        let tokens = dims.tokens() as usize;
        let rows = |tensor: &'a Option<Tensor>| match tensor {
            Some(tensor) => Matrix::new(elements(tensor), tokens, tensor.numel() / tokens),
            None => Matrix::new(&[], tokens, 0),
        };
        let (samples, positions) = (dims.samples as usize, dims.positions as usize);
        let tokens = TokenRows { first: 0, samples, positions };
        Self { tokens, x, keys_values, saved: saved.as_ref().map(rows) }
    }
}

impl<T: Real> SavedRows<'_, T> {
    /// Some of the rows.
    pub fn rows(&self, rows: &Range<usize>, layer: &LayerView<T>) -> Self {
        Self {
            tokens: self.tokens.skip(rows.start),
            x: self.x.row_block(rows.clone()),
            keys_values: self.keys_values.row_block(layer.keys_of(rows)),
            saved: self.saved.as_ref().map(|each| each.row_block(rows.clone())),
        }
    }
}
