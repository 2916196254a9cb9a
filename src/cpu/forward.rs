//! The forward on tensors: memory for what it gives, then the steps over the rows as the plan cuts them.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::buffers::{split, Buffers};
use super::forward_steps;
use super::layer_view::{LayerView, RightFactors};
use super::matrix::{Matrix, MatrixMut};
use super::packed::PackedFactors;
use super::plan::Plan;
use super::rows::TokenRows;
use super::saved_rows::{self, SavedBuffers};
use super::setup::{contiguous, layer};
use super::simd::Real;
use super::tensors::{empty, readable, tokens, tokens_mut};
use super::threads::{team, Team};
use super::workspace::Workspace;
use crate::call::{Activation, Dims, Input, Saved};

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`, and what the backward needs if `save`.
pub fn forward<T: Real + Element>(
    input: &Input,
    dims: &Dims,
    save: bool,
) -> Result<(Tensor, Option<Saved>), TchError> {
    let (x, params) = (readable(&input.x)?, contiguous(&input.params)?);
    let layer = layer::<T>(input, &params, dims)?;
    let plan = Plan::new(dims);
    let widths = saved_rows::widths(dims, layer.norm_first);
    let mut y = empty::<T>(&input.x.size())?;
    let mut kept = save.then(|| SavedBuffers::new(dims.tokens() as usize, widths));

    let call = ForwardCall { layer: &layer, x: tokens(&x, dims), widths };
    let part = plan.tile.unwrap_or(plan.gathered) * layer.samples;
    let ys = tokens_mut(&mut y, dims).split_rows(part);
    let mut kepts = kept.as_mut().map(|kept| split(kept.matrices(), part));
    let parts = ys.map(move |y| (y, kepts.as_mut().and_then(Iterator::next))).enumerate();
    let mut workspace = Workspace::default();
    let mut team = team(dims, &mut workspace);
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
    let saved =
        kept.map(|kept| saved_rows::into_saved(kept, dims, layer.norm_first)).transpose()?;
    Ok((y, saved))
}

struct ForwardCall<'a, T> {
    layer: &'a LayerView<'a, T>,
    x: Matrix<'a, T>,
    /// Of what the backward needs.
    widths: [usize; Saved::COUNT],
}

impl<T: Real> ForwardCall<'_, T> {
    /// The rows from `first` on; what the backward needs goes to `kept` or is forgotten.
    fn part(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
        first: usize,
        y: MatrixMut<T>,
        kept: Option<[MatrixMut<T>; Saved::COUNT]>,
    ) {
        let LayerView { samples, positions, activation, .. } = *self.layer;
        let rows = y.rows();
        let mut forgotten = SavedBuffers::new(if kept.is_none() { rows } else { 0 }, self.widths);
        let kept = kept.unwrap_or_else(|| forgotten.matrices());
        let [qkv, logsumexp, attended, residual1, hidden, residual2, mean1, rstd1, mean2, rstd2] =
            kept;
        let channels = self.x.columns();
        let attended_again = if attended.columns() == 0 { channels } else { 0 };
        let activated = if activation == Activation::Gelu { hidden.columns() } else { 0 };
        let mut scratch = Buffers::new(rows, [attended_again, channels, activated]);
        let [attended_scratch, normed, activated] = scratch.matrices();
        let attended = if attended_again > 0 { attended_scratch } else { attended };
        let rows = forward_steps::ForwardRows {
            tokens: TokenRows { first, samples, positions },
            x: self.x.row_block(first..first + rows),
            y,
            qkv,
            logsumexp,
            attended,
            residual1,
            hidden,
            residual2,
            statistics1: [mean1, rstd1],
            statistics2: [mean2, rstd2],
            normed,
            activated,
        };
        forward_steps::forward(team, self.layer, factors, rows);
    }
}
