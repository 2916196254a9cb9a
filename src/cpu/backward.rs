//! The backward on tensors: memory for the gradients, then the steps over the rows as the plan cuts them.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::backward_steps::{self, SavedRows};
use super::buffers::{split, Buffers};
use super::kernels::reduce::ColumnSums;
use super::layer_view::{LayerView, RightFactors};
use super::linear::{parameter_grads, LinearGrad};
use super::matrix::{Matrix, MatrixMut};
use super::packed::PackedFactors;
use super::plan::Plan;
use super::saved_rows;
use super::setup::{contiguous, empty_like, layer, ParamGrads};
use super::simd::{run, Real};
use super::tensors::{empty, readable, tokens, tokens_mut};
use super::threads::{team, Team};
use super::workspace::Workspace;
use crate::call::{Activation, Dims, Grads, Input, Saved};

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

    let kept = saved_rows::rows(saved, tokens(&x, dims), dims);
    let call = BackwardCall { layer: &layer, plan, grad_y: tokens(&grad_y, dims), kept };
    let mut params = ParamGrads::new(&mut grads.params);
    let part = plan.gathered * layer.samples;
    let parts = tokens_mut(&mut grads.x, dims).split_rows(part).enumerate();
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

struct BackwardCall<'a, T> {
    layer: &'a LayerView<'a, T>,
    plan: Plan,
    grad_y: Matrix<'a, T>,
    kept: SavedRows<'a, T>,
}

impl<T: Real> BackwardCall<'_, T> {
    /// The rows from `first` on: the gradient of x, and what they add to those of the parameters.
    fn part(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
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
        let tiles = tiles.enumerate();
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
        factors: &RightFactors<T>,
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
        let rows_of_grads = backward_steps::BackwardRows {
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
        parameter_grads(team, linears, first == 0);
    }
}
