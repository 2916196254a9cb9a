//! The forward on tensors: memory for its outputs, then the steps over the rows as the plan divides them.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::buffers::{split, Buffers};
use super::forward_steps::{self, Attended, ForwardRows};
use super::layer_view::{LayerView, RightFactors};
use super::libtorch::threads;
use super::matrix::{Matrix, MatrixMut};
use super::packed::PackedFactors;
use super::plan::Plan;
use super::rows::TokenRows;
use super::saved_rows::{self, key_rows, written, SavedBuffers, SavedWidths};
use super::setup::{contiguous, counted_keys, layer_view};
use super::simd::Real;
use super::tensors::{empty, readable, tokens, tokens_mut};
use super::threads::{team, Team};
use super::workspace::Workspace;
use crate::call::{Dims, Input, SavedTensors, SAVED};

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`, and what the backward needs.
pub fn forward<T: Real + Element>(
    input: &Input,
    dims: &Dims,
) -> Result<(Tensor, SavedTensors), TchError> {
    let (x, params) = (readable(&input.x)?, contiguous(&input.params)?);
    let layer = layer_view::<T>(input, &params, dims)?;
    let keys_values = counted_keys(input, dims)?;
    let plan = Plan::new(dims, threads());
    let widths = SavedWidths::new(input, dims);
    let mut y = empty::<T>(&input.x.size())?;
    let mut kept = SavedBuffers::new(dims.tokens() as usize, widths.kept);

    let keys_values = key_rows(keys_values.as_ref(), dims);
    let call = ForwardCall { layer: &layer, x: tokens(&x, dims), keys_values, widths };
    let part = plan.tile.unwrap_or(plan.gathered) * layer.samples;
    let (rows, kept_rows) = (tokens_mut(&mut y, dims), kept.matrices());
    let mut workspace = Workspace::default();
    let mut team = team(dims, &plan, &mut workspace);
    if let Some(tile) = plan.row_tile {
        PackedFactors::new(&mut team, &layer.forward_factors()).with(|factors| {
            call.by_row_tiles(&mut team, factors, tile, rows, kept_rows);
        });
        return Ok((y, saved_rows::into_tensors(kept, &widths, dims)?));
    }
    let parts = rows.split_rows(part).zip(split(kept_rows, part)).enumerate();
    if plan.tile.is_some() {
        PackedFactors::new(&mut team, &layer.forward_factors()).with(|factors| {
            team.for_each(parts, |(number, (y, kept)), workspace| {
                call.part(&mut Team::One(workspace), factors, number * part, y, kept);
            });
        });
    } else {
        for (number, (y, kept)) in parts {
            call.part(&mut team, &layer.forward_factors(), number * part, y, kept);
        }
    }
    Ok((y, saved_rows::into_tensors(kept, &widths, dims)?))
}

struct ForwardCall<'a, T> {
    layer: &'a LayerView<'a, T>,
    x: Matrix<'a, T>,
    /// `[L keys, 2C]`, or without columns.
    keys_values: Matrix<'a, T>,
    widths: SavedWidths,
}

impl<T: Real> ForwardCall<'_, T> {
    /// The rows from `first` on.
    fn part(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
        first: usize,
        y: MatrixMut<T>,
        kept: [MatrixMut<T>; SAVED.len()],
    ) {
        let LayerView { samples, positions, .. } = *self.layer;
        let rows = y.rows();
        let keys_values = self.keys_values.row_block(self.layer.keys_of(&(first..first + rows)));
        let mut forgotten = SavedBuffers::new(rows, self.widths.forgotten);
        let mut scratch = Buffers::new(rows, [self.layer.channels()]);
        let [normed] = scratch.matrices();
        let rows = ForwardRows {
            tokens: TokenRows { first, samples, positions },
            x: self.x.row_block(first..first + rows),
            y,
            saved: written(kept, forgotten.matrices()),
            normed,
        };
        forward_steps::forward(team, self.layer, factors, keys_values, rows);
    }

    /// All rows of one position, in two passes: the inputs of attention are complete before the first tile attends.
    fn by_row_tiles(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
        tile: usize,
        y: MatrixMut<T>,
        kept: [MatrixMut<T>; SAVED.len()],
    ) {
        let LayerView { samples, positions, .. } = *self.layer;
        let tokens = TokenRows { first: 0, samples, positions };
        let rows = y.rows();
        let mut forgotten = SavedBuffers::new(rows, self.widths.forgotten);
        let mut saved = written(kept, forgotten.matrices());
        let mut qkv = std::mem::replace(&mut saved.qkv, MatrixMut::new(&mut [], rows, 0));
        let mut scratch = Buffers::new(rows, [self.layer.channels()]);
        let [normed] = scratch.matrices();
        let x = self.x;
        let mut all = ForwardRows { tokens, x, y, saved, normed };
        let before = all.reborrow().split(tile).zip(qkv.reborrow().split_rows(tile));
        team.for_each(before, |(rows, qkv), workspace| {
            let team = &mut Team::One(workspace);
            forward_steps::up_to_attention(team, self.layer, factors, rows, qkv);
        });
        let qkv = qkv.view();
        team.for_each(all.split(tile), |rows, workspace| {
            let (team, first) = (&mut Team::One(workspace), rows.tokens.first);
            let all = Attended { tokens, qkv, keys_values: self.keys_values, first };
            forward_steps::behind_attention(team, self.layer, factors, all, rows);
        });
    }
}
