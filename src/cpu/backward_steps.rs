//! The backward of the layer on some rows, step by step; the parameters' gradients of the linears come after it.

use super::attention::{self, AttentionBackward};
use super::buffers::split;
use super::forward_steps::{gelu, Attended};
use super::kernels::activation::{GeluBackward, ReluBackward};
use super::kernels::dropout::{Drop, Mask};
use super::kernels::norm::{NormView, NormaliseAgain, NormaliseBackward};
use super::kernels::product::Start;
use super::kernels::residual::AddRows;
use super::layer_view::{LayerView, Masks, RightFactors};
use super::linear::multiply;
use super::matrix::{Matrix, MatrixMut};
use super::rows::{TokenRows, ROWS};
use super::saved_rows::SavedRows;
use super::simd::{run, Real};
use super::threads::Team;
use crate::call::{Activation, Needs, Piece, Saved};

/// Where the gradients of some rows go.
pub struct BackwardRows<'a, T> {
    pub grad_y: Matrix<'a, T>,
    pub grad_x: MatrixMut<'a, T>,
    pub gathered: [MatrixMut<'a, T>; GATHERED],
    /// `[rows, C]`: scratch for the gradients of the sum and of the branch.
    pub grad_sum: MatrixMut<'a, T>,
    pub grad_branch: MatrixMut<'a, T>,
    /// Scratch `[rows, H]`
    pub logsumexp: MatrixMut<'a, T>,
    /// `[2 x blocks, C]` each: what the blocks of rows add to the gradients of the norms.
    pub norm1_sums: MatrixMut<'a, T>,
    pub norm2_sums: MatrixMut<'a, T>,
    /// Rows of such a block.
    pub norm_rows: usize,
}

/// What the gradients of the linears' parameters are made of, besides what was kept: the gradients of the outputs of
/// `in_proj` `[rows, P]`, `out_proj` `[rows, C]`, linear1 `[rows, F]` and linear2 `[rows, C]`; of the inputs, norm1(x) of
/// pre-norm, the attention's output where it was not kept, the feed-forward's input, and what GELU gives `[rows, F]`.
pub const GATHERED: usize = 8;

/// Each sum passes its gradient to both of its terms; the gradient of a norm's input overwrites that of its output. The
/// backward ends where no further gradient is needed. For whole positions.
pub fn backward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    needs: &Needs,
    factors: &RightFactors<T>,
    kept: &SavedRows<T>,
    mut rows: BackwardRows<T>,
    grad_keys_values: MatrixMut<T>,
) {
    let steps = BackwardSteps { layer, needs, factors, kept };
    steps.up_to_attention(team, rows.reborrow());
    if needs.reach(Piece::InProj) {
        steps.attention(team, rows.reborrow(), grad_keys_values);
        steps.behind_attention(team, rows);
    }
}

impl<'a, T> BackwardRows<'a, T> {
    /// Parts of at most `rows` rows, with `sums` rows of the norms' sums each.
    pub fn split(self, rows: usize, sums: usize) -> impl Iterator<Item = BackwardRows<'a, T>> {
        let Self { grad_y, grad_x, grad_sum, grad_branch, logsumexp, norm_rows, .. } = self;
        let own = split([grad_x, grad_sum, grad_branch, logsumexp], rows);
        let of_norms = split([self.norm1_sums, self.norm2_sums], sums);
        let parts = own.zip(split(self.gathered, rows)).zip(of_norms).enumerate();
        parts.map(move |(number, ((own, gathered), [norm1_sums, norm2_sums]))| {
            let [grad_x, grad_sum, grad_branch, logsumexp] = own;
            let grad_y = grad_y.row_block(number * rows..number * rows + grad_x.rows());
            BackwardRows {
                grad_y,
                grad_x,
                gathered,
                grad_sum,
                grad_branch,
                logsumexp,
                norm1_sums,
                norm2_sums,
                norm_rows,
            }
        })
    }

    pub fn reborrow(&mut self) -> BackwardRows<'_, T> {
        BackwardRows {
            grad_y: self.grad_y,
            grad_x: self.grad_x.reborrow(),
            gathered: self.gathered.each_mut().map(MatrixMut::reborrow),
            grad_sum: self.grad_sum.reborrow(),
            grad_branch: self.grad_branch.reborrow(),
            logsumexp: self.logsumexp.reborrow(),
            norm1_sums: self.norm1_sums.reborrow(),
            norm2_sums: self.norm2_sums.reborrow(),
            norm_rows: self.norm_rows,
        }
    }
}

/// The backward on some rows in three passes, of which the second is of whole positions.
pub struct BackwardSteps<'a, T> {
    pub layer: &'a LayerView<'a, T>,
    pub needs: &'a Needs,
    pub factors: &'a RightFactors<'a, T>,
    pub kept: &'a SavedRows<'a, T>,
}

impl<T: Real> BackwardSteps<'_, T> {
    /// From the gradient of y to that of the heads' outputs, in `grad_sum`, as far as one is needed.
    pub fn up_to_attention(&self, team: &mut Team<T>, rows: BackwardRows<T>) {
        let Self { layer, needs, factors, .. } = *self;
        let SavedRows { tokens, x, saved, .. } = *self.kept;
        let Saved { residual1, residual2, mean1, rstd1, mean2, rstd2, .. } = saved;
        let BackwardRows { grad_y, mut grad_sum, mut grad_branch, gathered, .. } = rows;
        let [_, grad_projected, mut grad_hidden, grad_output, inputs @ ..] = gathered;
        let [attention_input, again, feedforward_input, activated] = inputs;
        let Masks { residual1: mask1, residual2: mask2, .. } = layer.masks;
        let (params, statistics) = ([layer.norm1, layer.norm2], [[mean1, rstd1], [mean2, rstd2]]);
        let norm1 = NormStep {
            params: params[0],
            statistics: statistics[0],
            sums: rows.norm1_sums,
            step: rows.norm_rows,
        };
        let norm2 = NormStep {
            params: params[1],
            statistics: statistics[1],
            sums: rows.norm2_sums,
            step: rows.norm_rows,
        };
        let branch2 = (grad_output, grad_hidden.reborrow(), activated);
        let branch1 = (again, rows.logsumexp, grad_projected);
        if layer.norm_first {
            norm2.again(team, residual1, feedforward_input);
            self.feedforward(team, (grad_y, mask2), branch2);
            if !needs.pass(Piece::Linear1) {
                return;
            }
            let right = factors.linear1;
            multiply(team, grad_hidden.view(), right, Start::Zero, grad_branch.reborrow());
            norm2.backward(team, residual1, grad_branch.reborrow());
            if !needs.pass(Piece::Norm2) {
                return;
            }
            add(team, grad_y, grad_branch.reborrow());
            norm1.again(team, x, attention_input);
        } else {
            norm1.again(team, residual1, feedforward_input);
            drop_rows(team, grad_y, Mask::off(), tokens, grad_sum.reborrow());
            norm2.backward(team, residual2, grad_sum.reborrow());
            if !needs.pass(Piece::Norm2) {
                return;
            }
            self.feedforward(team, (grad_sum.view(), mask2), branch2);
            if !needs.pass(Piece::Linear1) {
                return;
            }
            let right = factors.linear1;
            multiply(team, grad_hidden.view(), right, Start::Zero, grad_branch.reborrow());
            add(team, grad_sum.view(), grad_branch.reborrow());
            norm1.backward(team, residual1, grad_branch.reborrow());
            if !needs.pass(Piece::Norm1) {
                return;
            }
        }
        self.projection(team, (grad_branch.view(), mask1), branch1, grad_sum);
    }

    /// From the gradient of the heads' outputs to that of query, key and value, of whole positions.
    pub fn attention(
        &self,
        team: &mut Team<T>,
        rows: BackwardRows<T>,
        grad_keys_values: MatrixMut<T>,
    ) {
        let SavedRows { tokens, keys_values, saved, .. } = *self.kept;
        let Saved { qkv, attended, logsumexp, .. } = saved;
        let BackwardRows { gathered: [grad_qkv, _, _, _, _, again, ..], grad_sum, .. } = rows;
        let attended = if again.columns() > 0 { again.view() } else { attended };
        let grad_attended = grad_sum.view();
        let backward = AttentionBackward {
            qkv,
            keys_values,
            attended,
            logsumexp,
            grad_attended,
            grad_qkv,
            grad_keys_values,
        };
        attention::backward(team, self.layer, tokens, backward);
    }

    /// From the gradient of query, key and value to that of x, if one is needed.
    pub fn behind_attention(&self, team: &mut Team<T>, rows: BackwardRows<T>) {
        if !self.needs.pass(Piece::InProj) {
            return;
        }
        let BackwardRows { mut grad_x, gathered: [grad_qkv, ..], grad_branch, .. } = rows;
        let right = self.factors.in_proj;
        multiply(team, grad_qkv.view(), right, Start::Zero, grad_x.reborrow());
        if self.layer.norm_first {
            let SavedRows { x, saved: Saved { mean1, rstd1, .. }, .. } = *self.kept;
            let (params, statistics) = (self.layer.norm1, [mean1, rstd1]);
            let norm1 =
                NormStep { params, statistics, sums: rows.norm1_sums, step: rows.norm_rows };
            norm1.backward(team, x, grad_x.reborrow());
        }
        if self.needs.x {
            add(team, grad_branch.view(), grad_x);
        }
    }

    /// From the gradient after the branch's last dropout to that of linear1's output.
    fn feedforward(
        &self,
        team: &mut Team<T>,
        (grad, mask): (Matrix<T>, Mask<T>),
        (mut grad_output, mut grad_hidden, again): (MatrixMut<T>, MatrixMut<T>, MatrixMut<T>),
    ) {
        let SavedRows { tokens, saved: Saved { preactivation, activated, .. }, .. } = *self.kept;
        let Masks { hidden: mask_hidden, .. } = self.layer.masks;
        drop_rows(team, grad, mask, tokens, grad_output.reborrow());
        if again.columns() > 0 {
            gelu(team, mask_hidden, tokens, preactivation, again);
        }
        if !self.needs.pass(Piece::Linear2) {
            return;
        }
        let right = self.factors.linear2;
        multiply(team, grad_output.view(), right, Start::Zero, grad_hidden.reborrow());
        let parts = grad_hidden.split_rows(ROWS).enumerate();
        match self.layer.activation {
            Activation::Relu => team.for_each(parts, |(number, grad), _| {
                let hidden = activated.row_block(number * ROWS..number * ROWS + grad.rows());
                run(ReluBackward { hidden, scale: mask_hidden.scale, grad });
            }),
            Activation::Gelu => team.for_each(parts, |(number, grad), _| {
                let z = preactivation.row_block(number * ROWS..number * ROWS + grad.rows());
                let tokens = tokens.skip(number * ROWS);
                run(GeluBackward { mask: mask_hidden, tokens, z, grad });
            }),
        }
    }

    /// From the gradient after the branch's dropout to that of the heads' outputs, which are recomputed if there is
    /// room for them.
    fn projection(
        &self,
        team: &mut Team<T>,
        (grad, mask): (Matrix<T>, Mask<T>),
        (again, logsumexp_again, mut grad_projected): (MatrixMut<T>, MatrixMut<T>, MatrixMut<T>),
        grad_attended: MatrixMut<T>,
    ) {
        let SavedRows { tokens, keys_values, saved: Saved { qkv, .. }, .. } = *self.kept;
        drop_rows(team, grad, mask, tokens, grad_projected.reborrow());
        if again.columns() > 0 {
            let all = Attended { tokens, qkv, keys_values, first: 0 };
            attention::forward(team, self.layer, all, again, logsumexp_again);
        }
        if self.needs.pass(Piece::OutProj) {
            let right = self.factors.out_proj;
            multiply(team, grad_projected.view(), right, Start::Zero, grad_attended);
        }
    }
}

struct NormStep<'a, T> {
    params: NormView<'a, T>,
    statistics: [Matrix<'a, T>; 2],
    sums: MatrixMut<'a, T>,
    /// Rows of each pair of sums.
    step: usize,
}

impl<T: Real> NormStep<'_, T> {
    /// `y = norm(x)` from the statistics, if there is room for it.
    fn again(&self, team: &mut Team<T>, x: Matrix<T>, y: MatrixMut<T>) {
        if y.columns() == 0 {
            return;
        }
        let (params, statistics) = (self.params, self.statistics);
        team.for_each(y.split_rows(ROWS).enumerate(), |(number, y), _| {
            let rows = number * ROWS..number * ROWS + y.rows();
            let statistics = statistics.map(|each| each.row_block(rows.clone()));
            run(NormaliseAgain { x: x.row_block(rows), params, statistics, y });
        });
    }

    /// The gradient of x, which overwrites that of y.
    fn backward(self, team: &mut Team<T>, x: Matrix<T>, grad: MatrixMut<T>) {
        let Self { params, statistics, sums, step } = self;
        let parts = grad.split_rows(step).zip(sums.split_rows(2)).enumerate();
        team.for_each(parts, |(number, (grad, sums)), _| {
            let rows = number * step..number * step + grad.rows();
            let statistics = statistics.map(|each| each.row_block(rows.clone()));
            run(NormaliseBackward {
                x: x.row_block(rows),
                weight: params.weight,
                statistics,
                grad,
                sums,
            });
        });
    }
}

/// `to = dropout(from)`
fn drop_rows<T: Real>(
    team: &mut Team<T>,
    from: Matrix<T>,
    mask: Mask<T>,
    tokens: TokenRows,
    to: MatrixMut<T>,
) {
    team.for_each(to.split_rows(ROWS).enumerate(), |(number, to), _| {
        let rows = number * ROWS..number * ROWS + to.rows();
        run(Drop { from: from.row_block(rows), mask, tokens: tokens.skip(number * ROWS), to });
    });
}

/// `sum += summand`
fn add<T: Real>(team: &mut Team<T>, summand: Matrix<T>, sum: MatrixMut<T>) {
    team.for_each(sum.split_rows(ROWS).enumerate(), |(number, sum), _| {
        let rows = number * ROWS..number * ROWS + sum.rows();
        run(AddRows { summand: summand.row_block(rows), sum });
    });
}
