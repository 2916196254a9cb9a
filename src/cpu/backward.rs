//! The backward on tensors: memory for the gradients, then the steps over the rows as the plan cuts them.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::backward_steps::{self, BackwardRows};
use super::buffers::{split, Buffers};
use super::layer_view::{LayerView, RightFactors};
use super::linear::{parameter_grads, LinearGrad};
use super::matrix::{Matrix, MatrixMut};
use super::packed::PackedFactors;
use super::plan::Plan;
use super::saved_rows::{self, SavedRows};
use super::setup::{contiguous, empty_grads, layer_view, ParamGrads};
use super::simd::Real;
use super::tensors::{readable, tokens, tokens_mut};
use super::threads::{team, Team};
use super::totals::{ColumnTotal, WeightTotal};
use super::workspace::Workspace;
use crate::call::{Activation, Dims, Grads, Input, Needs, Params, Piece, SavedTensors};

/// The gradients for `grad_y`, of the shape of `x`.
pub fn backward<T: Real + Element>(
    grad_y: &Tensor,
    input: &Input,
    saved: &SavedTensors,
    dims: &Dims,
) -> Result<Grads, TchError> {
    let (x, grad_y, params) = (readable(&input.x)?, readable(grad_y)?, contiguous(&input.params)?);
    let saved = saved_rows::contiguous(saved)?;
    let layer = layer_view::<T>(input, &params, dims)?;
    let plan = Plan::new(dims);
    let mut grads = empty_grads::<T>(input, dims)?;

    let kept = SavedRows::new(&saved, tokens(&x, dims), dims);
    let grad_y = tokens(&grad_y, dims);
    let call = BackwardCall { layer: &layer, needs: &input.needs, plan, grad_y, kept };
    let mut params = ParamGrads::new(&mut grads.params, plan.parts(layer.positions));
    let grad_x = match &mut grads.x {
        Some(grad_x) => tokens_mut(grad_x, dims),
        None => MatrixMut::new(&mut [], dims.tokens() as usize, 0),
    };
    let part = plan.gathered * layer.samples;
    let parts = grad_x.split_rows(part).into_iter().enumerate();
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
    needs: &'a Needs,
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
        let norm_widths = [self.needs.params.norm1, self.needs.params.norm2].map(|norm| {
            if norm.weight || norm.bias {
                self.layer.channels()
            } else {
                0
            }
        });
        let mut norm_sums = Buffers::new(sums_of_a_tile * rows.div_ceil(tile), norm_widths);
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
            for (start, grad) in [weight, bias].into_iter().enumerate() {
                if let Some(grad) = grad {
                    grad.part().add(sums.every_other(start, blocks));
                }
            }
        }
    }

    /// Elements of a row of what is gathered for the gradients of the linears, as `backward::GATHERED` lists it.
    fn gathered_widths(&self) -> [usize; backward_steps::GATHERED] {
        let Self { layer, needs, .. } = *self;
        let (channels, feedforward) = (layer.channels(), layer.feedforward());
        let if_needed = |width: usize, needed: bool| if needed { width } else { 0 };
        let Params { in_proj, linear1, linear2, .. } = needs.params;
        [
            if_needed(3 * channels, needs.reach(Piece::InProj)),
            if_needed(channels, needs.reach(Piece::OutProj)),
            if_needed(feedforward, needs.reach(Piece::Linear1)),
            if_needed(channels, needs.reach(Piece::Linear2)),
            if_needed(channels, layer.norm_first && in_proj.weight),
            if_needed(channels, self.attended_again()),
            if_needed(channels, linear1.weight),
            if_needed(feedforward, layer.activation == Activation::Gelu && linear2.weight),
        ]
    }

    /// Whether the attention's output is needed and was not kept.
    fn attended_again(&self) -> bool {
        let needed = self.needs.params.out_proj.weight || self.needs.reach(Piece::InProj);
        needed && self.kept.saved.attended.columns() == 0
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
        let of_input = self.needs.pass(Piece::InProj) && grad_x.columns() == 0;
        let again = if self.attended_again() { self.layer.heads } else { 0 };
        let widths = [channels, channels, again, if of_input { channels } else { 0 }];
        let mut scratch = Buffers::new(rows.len(), widths);
        let [grad_sum, grad_branch, logsumexp, grad_input] = scratch.matrices();
        let grad_x = if of_input { grad_input } else { grad_x };
        let grad_y = self.grad_y.row_block(rows.clone());
        let rows_of_grads = BackwardRows {
            grad_y,
            grad_x,
            gathered,
            grad_sum,
            grad_branch,
            logsumexp,
            norm1_sums,
            norm2_sums,
        };
        let kept = self.kept.rows(&rows);
        backward_steps::backward(team, self.layer, self.needs, factors, &kept, rows_of_grads);
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
        let kept = self.kept.rows(&(first..first + rows));
        let [grad_qkv, grad_projected, grad_hidden, grad_output, inputs @ ..] = *gathered;
        let [attention_input, attended, feedforward_input, activated] = inputs;
        let x = if self.layer.norm_first { attention_input } else { kept.x };
        let attended = if self.attended_again() { attended } else { kept.saved.attended };
        let hidden = match self.layer.activation {
            Activation::Relu => kept.saved.activated,
            Activation::Gelu => activated,
        };
        let inputs = [x, attended, feedforward_input, hidden];
        let grad_outputs = [grad_qkv, grad_projected, grad_hidden, grad_output];
        let linears = inputs.into_iter().zip(grad_outputs).zip(&mut grads.linears);
        let linears = linears.map(|((x, grad_y), (weight, bias))| LinearGrad {
            x,
            grad_y,
            weight: weight.as_mut().map(WeightTotal::part),
            bias: bias.as_mut().map(ColumnTotal::part),
        });
        parameter_grads(team, linears.collect());
    }
}
