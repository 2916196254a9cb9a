//! The layer on tensors: memory for what it gives, then the steps over the rows as the plan cuts them.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::backward::{self as backward_steps, Kept};
use super::buffers::{split, Buffers};
use super::forward as forward_steps;
use super::kept::{self, KeptBuffers};
use super::kernels::reduce::ColumnSums;
use super::layer::{Factors, Layer};
use super::linear::{parameter_grads, LinearGrad};
use super::matrix::{Matrix, MatrixMut};
use super::packed::PackedFactors;
use super::plan::Plan;
use super::rows::TokenRows;
use super::setup::{contiguous, empty_like, layer, ParamGrads};
use super::simd::{run, Real};
use super::tensors::{empty, readable, tokens, tokens_mut};
use super::threads::Team;
use super::workspace::Workspace;
use crate::call::{Activation, Dims, Grads, Input, Saved};

/// Multiplications of a call below which a second thread costs more than it brings: at 3.3 million (N = 128, C = 48)
/// forward and backward took 90 and 148 µs on one thread, 116 and 192 on two.
const SMALL: i64 = 4 << 20;
/// Reading the weights takes as long as multiplying so many rows by them.
const WEIGHT_ROWS: i64 = 16;

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`, and what the backward needs if `save`.
pub fn forward<T: Real + Element>(
    input: &Input,
    dims: &Dims,
    save: bool,
) -> Result<(Tensor, Option<Saved>), TchError> {
    let (x, params) = (readable(&input.x)?, contiguous(&input.params)?);
    let layer = layer::<T>(input, &params, dims)?;
    let plan = Plan::new(dims);
    let widths = kept::widths(dims, layer.norm_first);
    let mut y = empty::<T>(&input.x.size())?;
    let mut kept = save.then(|| KeptBuffers::new(dims.tokens() as usize, widths));

    let call = Forward { layer: &layer, x: tokens(&x, dims), widths };
    let part = plan.tile.unwrap_or(plan.gathered) * layer.samples;
    let ys = tokens_mut(&mut y, dims).split_rows(part);
    let kepts: Vec<_> = match &mut kept {
        Some(kept) => split(kept.matrices(), part).map(Some).collect(),
        None => ys.iter().map(|_| None).collect(),
    };
    let parts = ys.into_iter().zip(kepts).enumerate();
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
    let saved = kept.map(|kept| kept::into_saved(kept, dims, layer.norm_first)).transpose()?;
    Ok((y, saved))
}

/// The gradients for `grad_y`, of the shape of `x`.
pub fn backward<T: Real + Element>(
    grad_y: &Tensor,
    input: &Input,
    saved: &Saved,
    dims: &Dims,
) -> Result<Grads, TchError> {
    let (x, grad_y, params) = (readable(&input.x)?, readable(grad_y)?, contiguous(&input.params)?);
    let layer = layer::<T>(input, &params, dims)?;
    let plan = Plan::new(dims);
    let mut grads =
        Grads { x: empty::<T>(&input.x.size())?, params: empty_like::<T>(&input.params)? };

    let kept = kept::rows(saved, tokens(&x, dims), dims);
    let call = Backward { layer: &layer, plan, grad_y: tokens(&grad_y, dims), kept };
    let mut params = ParamGrads::new(&mut grads.params);
    let part = plan.gathered * layer.samples;
    let parts = tokens_mut(&mut grads.x, dims).split_rows(part).into_iter().enumerate();
    let mut workspace = Workspace::default();
    let mut team = team(dims, &mut workspace);
    if plan.tile.is_some() {
        PackedFactors::new(&mut team, &layer.backward_factors()).with(|factors| {
            parts.for_each(|(number, grad_x)| {
                call.part(&mut team, factors, number * part, grad_x, &mut params);
            });
        });
    } else {
        let factors = layer.backward_factors();
        parts.for_each(|(number, grad_x)| {
            call.part(&mut team, &factors, number * part, grad_x, &mut params);
        });
    }
    Ok(grads)
}

/// All of torch's threads, unless there is too little to do.
fn team<'a, T: Real>(dims: &Dims, workspace: &'a mut Workspace<T>) -> Team<'a, T> {
    let linears = dims.channels * (4 * dims.channels + 2 * dims.feedforward);
    let attention = 2 * dims.samples * dims.channels;
    if (dims.tokens() + WEIGHT_ROWS).saturating_mul(linears + attention) < SMALL {
        Team::One(workspace)
    } else {
        Team::All
    }
}

struct Forward<'a, T> {
    layer: &'a Layer<'a, T>,
    x: Matrix<'a, T>,
    /// Of what the backward needs.
    widths: [usize; Saved::COUNT],
}

impl<T: Real> Forward<'_, T> {
    /// The rows from `first` on; what the backward needs goes to `kept` or is forgotten.
    fn part(
        &self,
        team: &mut Team<T>,
        factors: &Factors<T>,
        first: usize,
        y: MatrixMut<T>,
        kept: Option<[MatrixMut<T>; Saved::COUNT]>,
    ) {
        let Layer { samples, positions, activation, .. } = *self.layer;
        let rows = y.rows();
        let mut forgotten = KeptBuffers::new(if kept.is_none() { rows } else { 0 }, self.widths);
        let kept = kept.unwrap_or_else(|| forgotten.matrices());
        let [qkv, logsumexp, attended, residual1, hidden, residual2, mean1, rstd1, mean2, rstd2] =
            kept;
        let channels = self.x.columns();
        let attended_again = if attended.columns() == 0 { channels } else { 0 };
        let activated = if activation == Activation::Gelu { hidden.columns() } else { 0 };
        let mut scratch = Buffers::new(rows, [attended_again, channels, activated]);
        let [attended_scratch, normed, activated] = scratch.matrices();
        let attended = if attended_again > 0 { attended_scratch } else { attended };
        let rows = forward_steps::Rows {
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

struct Backward<'a, T> {
    layer: &'a Layer<'a, T>,
    plan: Plan,
    grad_y: Matrix<'a, T>,
    kept: Kept<'a, T>,
}

impl<T: Real> Backward<'_, T> {
    /// The rows from `first` on: the gradient of x, and what they add to those of the parameters.
    fn part(
        &self,
        team: &mut Team<T>,
        factors: &Factors<T>,
        first: usize,
        grad_x: MatrixMut<T>,
        grads: &mut ParamGrads<T>,
    ) {
        let rows = grad_x.rows();
        let tile = self.plan.tile.map_or(rows, |tile| tile * self.layer.samples);
        let sums_of_a_tile = 2 * tile.div_ceil(self.plan.norm_rows);
        let mut gathered = Buffers::new(rows, self.gathered_widths());
        let mut norm_sums =
            Buffers::new(sums_of_a_tile * rows.div_ceil(tile), [self.layer.channels(); 2]);
        let gathered_tiles = split(gathered.matrices(), tile);
        let tiles = gathered_tiles
            .zip(split(norm_sums.matrices(), sums_of_a_tile))
            .zip(grad_x.split_rows(tile));
        let tiles: Vec<_> = tiles.enumerate().collect();
        if self.plan.tile.is_some() {
            team.for_each(tiles, |(number, ((gathered, sums), grad_x)), workspace| {
                let team = &mut Team::One(workspace);
                self.tile(team, factors, first + number * tile, grad_x, gathered, sums);
            });
        } else {
            for (number, ((gathered, sums), grad_x)) in tiles {
                self.tile(team, factors, first + number * tile, grad_x, gathered, sums);
            }
        }
        self.linear_grads(team, first, rows, &gathered.views(), grads);
        for (sums, (weight, bias)) in norm_sums.views().into_iter().zip(&mut grads.norms) {
            let blocks = sums.rows() / 2;
            run(ColumnSums { rows: sums.every_other(0, blocks), first: first == 0, sums: weight });
            if let Some(sums_of_bias) = bias {
                run(ColumnSums {
                    rows: sums.every_other(1, blocks),
                    first: first == 0,
                    sums: sums_of_bias,
                });
            }
        }
    }

    /// Elements of a row of what is gathered for the gradients of the linears, as `backward::GATHERED` lists it.
    fn gathered_widths(&self) -> [usize; backward_steps::GATHERED] {
        let (channels, feedforward) = (self.layer.channels(), self.layer.feedforward());
        let if_needed = |width: usize, needed: bool| if needed { width } else { 0 };
        [
            3 * channels,
            channels,
            feedforward,
            channels,
            if_needed(channels, self.layer.norm_first),
            if_needed(channels, self.kept.attended.is_none()),
            channels,
            if_needed(feedforward, self.layer.activation == Activation::Gelu),
        ]
    }

    /// Everything but the gradients of the parameters.
    fn tile(
        &self,
        team: &mut Team<T>,
        factors: &Factors<T>,
        first: usize,
        grad_x: MatrixMut<T>,
        gathered: [MatrixMut<T>; backward_steps::GATHERED],
        [norm1_sums, norm2_sums]: [MatrixMut<T>; 2],
    ) {
        let rows = first..first + grad_x.rows();
        let channels = self.layer.channels();
        let mut scratch = Buffers::new(rows.len(), [channels, channels, self.layer.heads]);
        let [grad_sum, grad_branch, logsumexp] = scratch.matrices();
        let grad_y = self.grad_y.row_block(rows.clone());
        let rows_of_grads = backward_steps::Rows {
            grad_y,
            grad_x,
            gathered,
            grad_sum,
            grad_branch,
            logsumexp,
            norm1_sums,
            norm2_sums,
        };
        backward_steps::backward(team, self.layer, factors, &self.kept.rows(rows), rows_of_grads);
    }

    /// Each linear's parameters, from its input and the gradient of its output.
    fn linear_grads(
        &self,
        team: &mut Team<T>,
        first: usize,
        rows: usize,
        gathered: &[Matrix<T>; backward_steps::GATHERED],
        grads: &mut ParamGrads<T>,
    ) {
        let kept = self.kept.rows(first..first + rows);
        let [grad_qkv, grad_projected, grad_hidden, grad_output, inputs @ ..] = *gathered;
        let [attention_input, attended, feedforward_input, activated] = inputs;
        let x = if self.layer.norm_first { attention_input } else { kept.x };
        let attended = kept.attended.unwrap_or(attended);
        let hidden =
            if self.layer.activation == Activation::Gelu { activated } else { kept.hidden };
        let inputs = [x, attended, feedforward_input, hidden];
        let grad_outputs = [grad_qkv, grad_projected, grad_hidden, grad_output];
        let linears = inputs.into_iter().zip(grad_outputs).zip(&mut grads.linears);
        let linears = linears.map(|((x, grad_y), (weight, bias))| LinearGrad {
            x,
            grad_y,
            weight: weight.reborrow(),
            bias: bias.as_mut().map(MatrixMut::reborrow),
        });
        parameter_grads(team, linears.collect(), first == 0);
    }
}
