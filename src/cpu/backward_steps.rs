//! The backward of the layer on some rows, step by step; the parameters' gradients of the linears come after it.

use std::ops::Range;

use super::attention;
use super::forward_steps::gelu;
use super::kernels::activation::{GeluBackward, ReluBackward};
use super::kernels::dropout::{Drop, Mask};
use super::kernels::norm::{NormView, NormaliseAgain, NormaliseBackward};
use super::kernels::product::Start;
use super::kernels::residual::AddRows;
use super::layer_view::{LayerView, Masks, RightFactors};
use super::linear::multiply;
use super::matrix::{Matrix, MatrixMut};
use super::rows::{TokenRows, ROWS};
use super::simd::{run, Real};
use super::threads::Team;
use crate::call::Activation;

/// What the forward kept of some rows, of whole positions; see `forward_steps::ForwardRows`.
#[derive(Clone, Copy)]
pub struct SavedRows<'a, T> {
    pub tokens: TokenRows,
    pub x: Matrix<'a, T>,
    pub qkv: Matrix<'a, T>,
    pub logsumexp: Matrix<'a, T>,
    /// Without it, it is computed again.
    pub attended: Option<Matrix<'a, T>>,
    pub residual1: Matrix<'a, T>,
    pub hidden: Matrix<'a, T>,
    pub residual2: Matrix<'a, T>,
    pub statistics1: [Matrix<'a, T>; 2],
    pub statistics2: [Matrix<'a, T>; 2],
}

impl<T> SavedRows<'_, T> {
    /// Some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        Self {
            tokens: self.tokens.skip(rows.start),
            x: self.x.row_block(rows.clone()),
            qkv: self.qkv.row_block(rows.clone()),
            logsumexp: self.logsumexp.row_block(rows.clone()),
            attended: self.attended.map(|attended| attended.row_block(rows.clone())),
            residual1: self.residual1.row_block(rows.clone()),
            hidden: self.hidden.row_block(rows.clone()),
            residual2: self.residual2.row_block(rows.clone()),
            statistics1: self.statistics1.map(|statistic| statistic.row_block(rows.clone())),
            statistics2: self.statistics2.map(|statistic| statistic.row_block(rows.clone())),
        }
    }
}

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
}

/// What the gradients of the linears' parameters are made of, besides what was kept: the gradients of the outputs of
/// `in_proj` `[rows, 3C]`, `out_proj` `[rows, C]`, linear1 `[rows, F]` and linear2 `[rows, C]`; of the inputs, norm1(x) of
/// pre-norm, the attention's output where it was not kept, the feed-forward's input, and what GELU gives `[rows, F]`.
pub const GATHERED: usize = 8;

/// Each sum hands its gradient to both of its terms; a norm's input gets its gradient in the place of the output's.
pub fn backward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    factors: &RightFactors<T>,
    kept: &SavedRows<T>,
    rows: BackwardRows<T>,
) {
    let SavedRows { tokens, x, residual1, residual2, statistics1, statistics2, .. } = *kept;
    let BackwardRows { grad_y, mut grad_x, mut grad_sum, mut grad_branch, gathered, .. } = rows;
    let [grad_qkv, grad_projected, grad_hidden, grad_output, inputs @ ..] = gathered;
    let [attention_input, attended, feedforward_input, activated] = inputs;
    let step = BackwardSteps { layer, factors, kept };
    let Masks { residual1: mask1, residual2: mask2, .. } = layer.masks;
    let norm2 = NormStep { params: layer.norm2, statistics: statistics2, sums: rows.norm2_sums };
    let norm1 = NormStep { params: layer.norm1, statistics: statistics1, sums: rows.norm1_sums };
    let branch2 = (grad_output, grad_hidden);
    let branch1 = (attended, rows.logsumexp, grad_projected, grad_qkv);
    if layer.norm_first {
        norm2.again(team, residual1, feedforward_input);
        step.feedforward(team, (grad_y, mask2), branch2, activated, grad_branch.reborrow());
        norm2.backward(team, residual1, grad_branch.reborrow());
        add(team, grad_y, grad_branch.reborrow());
        norm1.again(team, x, attention_input);
        step.attention(team, (grad_branch.view(), mask1), branch1, grad_sum, grad_x.reborrow());
        norm1.backward(team, x, grad_x.reborrow());
    } else {
        norm1.again(team, residual1, feedforward_input);
        drop_rows(team, grad_y, Mask::off(), tokens, grad_sum.reborrow());
        norm2.backward(team, residual2, grad_sum.reborrow());
        step.feedforward(
            team,
            (grad_sum.view(), mask2),
            branch2,
            activated,
            grad_branch.reborrow(),
        );
        add(team, grad_sum.view(), grad_branch.reborrow());
        norm1.backward(team, residual1, grad_branch.reborrow());
        step.attention(team, (grad_branch.view(), mask1), branch1, grad_sum, grad_x.reborrow());
    }
    add(team, grad_branch.view(), grad_x);
}

struct BackwardSteps<'a, T> {
    layer: &'a LayerView<'a, T>,
    factors: &'a RightFactors<'a, T>,
    kept: &'a SavedRows<'a, T>,
}

impl<T: Real> BackwardSteps<'_, T> {
    /// From the gradient behind the branch's last dropout to that of its input.
    fn feedforward(
        &self,
        team: &mut Team<T>,
        (grad, mask): (Matrix<T>, Mask<T>),
        (mut grad_output, mut grad_hidden): (MatrixMut<T>, MatrixMut<T>),
        activated: MatrixMut<T>,
        grad_x: MatrixMut<T>,
    ) {
        let SavedRows { tokens, hidden, .. } = *self.kept;
        let Masks { hidden: mask_hidden, .. } = self.layer.masks;
        drop_rows(team, grad, mask, tokens, grad_output.reborrow());
        multiply(
            team,
            grad_output.view(),
            self.factors.linear2,
            Start::Zero,
            grad_hidden.reborrow(),
        );
        let parts = grad_hidden.reborrow().split_rows(ROWS).enumerate();
        match self.layer.activation {
            Activation::Relu => team.for_each(parts, |(number, grad), _| {
                let hidden = hidden.row_block(number * ROWS..number * ROWS + grad.rows());
                run(ReluBackward { hidden, scale: mask_hidden.scale, grad });
            }),
            Activation::Gelu => {
                team.for_each(parts, |(number, grad), _| {
                    let z = hidden.row_block(number * ROWS..number * ROWS + grad.rows());
                    run(GeluBackward {
                        mask: mask_hidden,
                        tokens: tokens.skip(number * ROWS),
                        z,
                        grad,
                    });
                });
                gelu(team, mask_hidden, tokens, hidden, activated);
            }
        }
        multiply(team, grad_hidden.view(), self.factors.linear1, Start::Zero, grad_x);
    }

    /// From the gradient behind the branch's dropout to that of its input.
    fn attention(
        &self,
        team: &mut Team<T>,
        (grad, mask): (Matrix<T>, Mask<T>),
        (mut again, logsumexp, mut grad_projected, mut grad_qkv): (
            MatrixMut<T>,
            MatrixMut<T>,
            MatrixMut<T>,
            MatrixMut<T>,
        ),
        mut grad_attended: MatrixMut<T>,
        grad_x: MatrixMut<T>,
    ) {
        let SavedRows { tokens, qkv, attended, logsumexp: kept_logsumexp, .. } = *self.kept;
        drop_rows(team, grad, mask, tokens, grad_projected.reborrow());
        multiply(
            team,
            grad_projected.view(),
            self.factors.out_proj,
            Start::Zero,
            grad_attended.reborrow(),
        );
        if attended.is_none() {
            attention::forward(team, self.layer, tokens, qkv, again.reborrow(), logsumexp);
        }
        let attended = attended.unwrap_or(again.view());
        let backward = attention::AttentionBackward {
            qkv,
            attended,
            logsumexp: kept_logsumexp,
            grad_attended: grad_attended.view(),
            grad_qkv: grad_qkv.reborrow(),
        };
        attention::backward(team, self.layer, tokens, backward);
        multiply(team, grad_qkv.view(), self.factors.in_proj, Start::Zero, grad_x);
    }
}

struct NormStep<'a, T> {
    params: NormView<'a, T>,
    statistics: [Matrix<'a, T>; 2],
    sums: MatrixMut<'a, T>,
}

impl<T: Real> NormStep<'_, T> {
    /// `y = norm(x)` from the statistics.
    fn again(&self, team: &mut Team<T>, x: Matrix<T>, y: MatrixMut<T>) {
        let (params, statistics) = (self.params, self.statistics);
        team.for_each(y.split_rows(ROWS).enumerate(), |(number, y), _| {
            let rows = number * ROWS..number * ROWS + y.rows();
            let statistics = statistics.map(|each| each.row_block(rows.clone()));
            run(NormaliseAgain { x: x.row_block(rows), params, statistics, y });
        });
    }

    /// The gradient of x in the place of that of y. Blocks of rows are as many as there are pairs of sums.
    fn backward(self, team: &mut Team<T>, x: Matrix<T>, grad: MatrixMut<T>) {
        let Self { params, statistics, sums } = self;
        let step = x.rows().div_ceil(sums.rows() / 2);
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
