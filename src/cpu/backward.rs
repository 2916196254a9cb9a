//! The backward on tensors: memory for the gradients, then the steps over the rows as the plan divides them.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::backward_steps::{self, BackwardRows, BackwardSteps};
use super::buffers::{split, Buffers};
use super::layer_view::{LayerView, RightFactors};
use super::libtorch::threads;
use super::linear::{parameter_grads, LinearGrad};
use super::matrix::{Matrix, MatrixMut};
use super::packed::PackedFactors;
use super::plan::Plan;
use super::saved_rows::{self, key_rows, SavedRows};
use super::setup::{contiguous, counted_keys, empty_grads, layer_view, ParamGrads};
use super::simd::Real;
use super::tensors::{first_tokens_mut, readable, tokens, tokens_mut};
use super::threads::{team, Team};
use super::totals::ColumnTotal;
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
    let keys_values = counted_keys(input, dims)?;
    let saved = saved_rows::contiguous(saved)?;
    let layer = layer_view::<T>(input, &params, dims)?;
    let plan = Plan::new(dims, threads());
    let mut grads = empty_grads::<T>(input, dims)?;

    let keys_values = key_rows(keys_values.as_ref(), dims);
    let kept = SavedRows::new(&saved, tokens(&x, dims), keys_values, dims);
    let grad_y = tokens(&grad_y, dims);
    let call = BackwardCall { layer: &layer, needs: &input.needs, plan, grad_y, kept };
    let mut params = ParamGrads::new(&mut grads.params, plan.units(layer.positions));
    let grad_x = match &mut grads.x {
        Some(grad_x) => tokens_mut(grad_x, dims),
        None => MatrixMut::new(&mut [], dims.tokens() as usize, 0),
    };
    // With keys, the steps also write gradients that are not needed.
    let unneeded = grads.keys_values.is_none() && input.needs.reach(Piece::InProj);
    let mut unneeded =
        Buffers::new(keys_values.rows(), [if unneeded { keys_values.columns() } else { 0 }]);
    let [unneeded] = unneeded.matrices();
    let grad_keys_values = match &mut grads.keys_values {
        Some(grad) => first_tokens_mut(grad, dims.counted_keys, dims),
        None => unneeded,
    };
    let part = plan.gathered * layer.samples;
    let parts =
        grad_x.split_rows(part).zip(grad_keys_values.split_rows(plan.gathered * layer.keys));
    let parts = parts.enumerate();
    let mut workspace = Workspace::default();
    let mut team = team(dims, &plan, &mut workspace);
    if plan.tile.is_some() || plan.row_tile.is_some() {
        PackedFactors::new(&mut team, &layer.backward_factors()).with(|factors| {
            parts.for_each(|(number, grads)| {
                call.part(&mut team, factors, number * part, grads, &mut params);
            });
        });
    } else {
        let factors = layer.backward_factors();
        parts.for_each(|(number, grads)| {
            call.part(&mut team, &factors, number * part, grads, &mut params);
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

/// One of the passes of the backward, on some rows.
type Go<T> = fn(&BackwardSteps<T>, &mut Team<T>, BackwardRows<T>);

impl<T: Real> BackwardCall<'_, T> {
    /// The rows from `first` on: the gradients of x and of keys and values, and what they add to those of the parameters.
    fn part(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
        first: usize,
        (grad_x, grad_keys_values): (MatrixMut<T>, MatrixMut<T>),
        grads: &mut ParamGrads<T>,
    ) {
        let rows = grad_x.rows();
        let tile = self.plan.tile.map_or(rows, |tile| tile * self.layer.samples);
        let norm_blocks = rows.div_ceil(self.plan.norm_rows);
        let mut gathered = Buffers::new(rows, self.gathered_widths());
        let norm_widths = [self.needs.params.norm1, self.needs.params.norm2].map(|norm| {
            if norm.weight || norm.bias {
                self.layer.channels()
            } else {
                0
            }
        });
        let mut norm_sums = Buffers::new(2 * norm_blocks, norm_widths);
        if let Some(tile) = self.plan.row_tile {
            let (gathered, sums) = (gathered.matrices(), norm_sums.matrices());
            self.by_row_tiles(team, factors, tile, (grad_x, grad_keys_values), gathered, sums);
        } else {
            self.by_tiles(
                team,
                factors,
                (first, tile),
                (grad_x, grad_keys_values),
                gathered.matrices(),
                norm_sums.matrices(),
            );
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

    /// Tile after tile of whole positions, each by one thread; without tiles, all of them by the whole team.
    fn by_tiles(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
        (first, tile): (usize, usize),
        (grad_x, grad_keys_values): (MatrixMut<T>, MatrixMut<T>),
        gathered: [MatrixMut<T>; backward_steps::GATHERED],
        norm_sums: [MatrixMut<T>; 2],
    ) {
        let sums_of_a_tile = 2 * tile.div_ceil(self.plan.norm_rows);
        let tiles = split(gathered, tile).zip(split(norm_sums, sums_of_a_tile));
        let keys = tile / self.layer.samples * self.layer.keys;
        let grads = grad_x.split_rows(tile).zip(grad_keys_values.split_rows(keys));
        let tiles = tiles.zip(grads).enumerate();
        if self.plan.tile.is_some() {
            team.for_each(tiles, |(number, ((gathered, sums), grads)), workspace| {
                let team = &mut Team::One(workspace);
                self.tile(team, factors, first + number * tile, grads, gathered, sums);
            });
        } else {
            for (number, ((gathered, sums), grads)) in tiles {
                self.tile(team, factors, first + number * tile, grads, gathered, sums);
            }
        }
    }

    /// All rows of one position in three passes: by tiles, attention on all rows, by tiles.
    #[allow(clippy::redundant_closure_for_method_calls)] // the methods are those of one lifetime
    fn by_row_tiles(
        &self,
        team: &mut Team<T>,
        factors: &RightFactors<T>,
        tile: usize,
        (grad_x, grad_keys_values): (MatrixMut<T>, MatrixMut<T>),
        gathered: [MatrixMut<T>; backward_steps::GATHERED],
        norm_sums: [MatrixMut<T>; 2],
    ) {
        let mut scratch = self.scratch(&grad_x);
        let mut all = self.rows(0, grad_x, gathered, norm_sums, scratch.matrices());
        let Self { layer, needs, .. } = *self;
        let sums_of_a_tile = 2 * tile / self.plan.norm_rows;
        let each_tile = |team: &mut Team<T>, all: BackwardRows<T>, go: Go<T>| {
            team.for_each(
                all.split(tile, sums_of_a_tile).enumerate(),
                |(number, rows), workspace| {
                    let first = number * tile;
                    let kept = &self.kept.rows(&(first..first + rows.grad_y.rows()), layer);
                    let steps = BackwardSteps { layer, needs, factors, kept };
                    go(&steps, &mut Team::One(workspace), rows);
                },
            );
        };
        each_tile(team, all.reborrow(), |steps, team, rows| steps.up_to_attention(team, rows));
        if needs.reach(Piece::InProj) {
            let steps = BackwardSteps { layer, needs, factors, kept: &self.kept };
            steps.attention(team, all.reborrow(), grad_keys_values);
            each_tile(team, all, |steps, team, rows| steps.behind_attention(team, rows));
        }
    }

    /// Gradients of a sum and of a branch, the log-sum-exp where attention is recomputed, and the gradient of x where
    /// it is not kept.
    fn scratch(&self, grad_x: &MatrixMut<T>) -> Buffers<T, 4> {
        let channels = self.layer.channels();
        let of_input = self.needs.pass(Piece::InProj) && grad_x.columns() == 0;
        let again = if self.attended_again() { self.layer.heads } else { 0 };
        let widths = [channels, channels, again, if of_input { channels } else { 0 }];
        Buffers::new(grad_x.rows(), widths)
    }

    /// What the steps take of the rows from `first` on.
    fn rows<'b>(
        &'b self,
        first: usize,
        grad_x: MatrixMut<'b, T>,
        gathered: [MatrixMut<'b, T>; backward_steps::GATHERED],
        [norm1_sums, norm2_sums]: [MatrixMut<'b, T>; 2],
        [grad_sum, grad_branch, logsumexp, grad_input]: [MatrixMut<'b, T>; 4],
    ) -> BackwardRows<'b, T> {
        let grad_y = self.grad_y.row_block(first..first + grad_x.rows());
        let grad_x = if grad_input.columns() > 0 { grad_input } else { grad_x };
        BackwardRows {
            grad_y,
            grad_x,
            gathered,
            grad_sum,
            grad_branch,
            logsumexp,
            norm1_sums,
            norm2_sums,
            norm_rows: self.plan.norm_rows,
        }
    }

    /// Elements of a row of what is gathered for the gradients of the linears, which `backward_steps::GATHERED`
    /// counts.
    fn gathered_widths(&self) -> [usize; backward_steps::GATHERED] {
        let Self { layer, needs, .. } = *self;
        let (channels, feedforward) = (layer.channels(), layer.feedforward());
        let if_needed = |width: usize, needed: bool| if needed { width } else { 0 };
        let Params { in_proj, linear1, linear2, .. } = needs.params;
        [
            if_needed(layer.in_proj.weight.rows(), needs.reach(Piece::InProj)),
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
        (grad_x, grad_keys_values): (MatrixMut<T>, MatrixMut<T>),
        gathered: [MatrixMut<T>; backward_steps::GATHERED],
        norm_sums: [MatrixMut<T>; 2],
    ) {
        let Self { layer, needs, .. } = *self;
        let kept = self.kept.rows(&(first..first + grad_x.rows()), layer);
        let mut scratch = self.scratch(&grad_x);
        let rows = self.rows(first, grad_x, gathered, norm_sums, scratch.matrices());
        backward_steps::backward(team, layer, needs, factors, &kept, rows, grad_keys_values);
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
        let kept = self.kept.rows(&(first..first + rows), self.layer);
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
        let units = rows.div_ceil(self.plan.unit * self.layer.samples);
        let linears = linears.map(|((x, grad_y), (weight, bias))| LinearGrad {
            x,
            grad_y,
            weight: weight.as_mut().map(|weight| weight.part(units)),
            bias: bias.as_mut().map(ColumnTotal::part),
        });
        let widths = grad_outputs.iter().map(Matrix::columns).sum();
        parameter_grads(team, self.plan.unit * self.layer.samples, widths, linears);
    }
}
