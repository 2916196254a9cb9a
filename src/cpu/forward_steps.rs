//! The layer on some rows, step by step, post-norm and pre-norm (Xiong et al., 2020, fig. 1).

use super::attention;
use super::kernels::activation::{Gelu, Relu};
use super::kernels::dropout::Mask;
use super::kernels::norm::{NormView, Normalise};
use super::kernels::residual::Residual;
use super::layer_view::{LayerView, Masks, RightFactors};
use super::linear::multiply;
use super::matrix::{Matrix, MatrixMut};
use super::rows::{TokenRows, ROWS};
use super::simd::{run, Real};
use super::threads::Team;
use crate::call::Activation;

/// Where the results of some rows go, of whole positions; those that the backward needs are kept.
pub struct ForwardRows<'a, T> {
    pub tokens: TokenRows,
    pub x: Matrix<'a, T>,
    pub y: MatrixMut<'a, T>,
    /// `[rows, 3C]`
    pub qkv: MatrixMut<'a, T>,
    /// `[rows, H]`
    pub logsumexp: MatrixMut<'a, T>,
    /// `[rows, C]`
    pub attended: MatrixMut<'a, T>,
    pub residual1: MatrixMut<'a, T>,
    /// `[rows, F]`
    pub hidden: MatrixMut<'a, T>,
    /// `[rows, C]`; pre-norm does not use it.
    pub residual2: MatrixMut<'a, T>,
    /// `[rows, 1]` each: mean and reciprocal standard deviation of what norm1 and norm2 normalise.
    pub statistics1: [MatrixMut<'a, T>; 2],
    pub statistics2: [MatrixMut<'a, T>; 2],
    /// `[rows, C]`: scratch for what a norm gives.
    pub normed: MatrixMut<'a, T>,
    /// `[rows, F]`: scratch for what GELU gives.
    pub activated: MatrixMut<'a, T>,
}

/// `norm2(n + feedforward(n))` with `n = norm1(x + attention(x))`; pre-norm: `r + feedforward(norm2(r))` with
/// `r = x + attention(norm1(x))`.
pub fn forward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    factors: &RightFactors<T>,
    rows: ForwardRows<T>,
) {
    let ForwardRows { tokens, x, mut y, mut residual1, mut residual2, mut normed, .. } = rows;
    let step = ForwardSteps { layer, factors, tokens };
    let (norm1, norm2) = ((layer.norm1, layer.eps[0]), (layer.norm2, layer.eps[1]));
    let branch1 = (rows.qkv, rows.logsumexp, rows.attended);
    let branch2 = (rows.hidden, rows.activated);
    let Masks { residual1: mask1, residual2: mask2, .. } = layer.masks;
    if layer.norm_first {
        norm(team, norm1, x, rows.statistics1, normed.reborrow());
        step.attention(team, normed.view(), branch1, residual1.reborrow());
        step.residual(team, mask1, x, residual1.reborrow());
        norm(team, norm2, residual1.view(), rows.statistics2, normed.reborrow());
        step.feedforward(team, normed.view(), branch2, y.reborrow());
        step.residual(team, mask2, residual1.view(), y);
    } else {
        step.attention(team, x, branch1, residual1.reborrow());
        step.residual(team, mask1, x, residual1.reborrow());
        norm(team, norm1, residual1.view(), rows.statistics1, normed.reborrow());
        step.feedforward(team, normed.view(), branch2, residual2.reborrow());
        step.residual(team, mask2, normed.view(), residual2.reborrow());
        norm(team, norm2, residual2.view(), rows.statistics2, y);
    }
}

struct ForwardSteps<'a, T> {
    layer: &'a LayerView<'a, T>,
    factors: &'a RightFactors<'a, T>,
    tokens: TokenRows,
}

impl<T: Real> ForwardSteps<'_, T> {
    /// The attention branch without its dropout.
    fn attention(
        &self,
        team: &mut Team<T>,
        x: Matrix<T>,
        (mut qkv, logsumexp, mut attended): (MatrixMut<T>, MatrixMut<T>, MatrixMut<T>),
        y: MatrixMut<T>,
    ) {
        let LayerView { in_proj, out_proj, .. } = self.layer;
        multiply(team, x, self.factors.in_proj, in_proj.start(), qkv.reborrow());
        attention::forward(
            team,
            self.layer,
            self.tokens,
            qkv.view(),
            attended.reborrow(),
            logsumexp,
        );
        multiply(team, attended.view(), self.factors.out_proj, out_proj.start(), y);
    }

    /// The feed-forward branch without its last dropout.
    fn feedforward(
        &self,
        team: &mut Team<T>,
        x: Matrix<T>,
        (mut hidden, mut activated): (MatrixMut<T>, MatrixMut<T>),
        y: MatrixMut<T>,
    ) {
        let LayerView { linear1, linear2, activation, masks, .. } = self.layer;
        multiply(team, x, self.factors.linear1, linear1.start(), hidden.reborrow());
        match activation {
            Activation::Relu => {
                let parts = hidden.reborrow().split_rows(ROWS).enumerate();
                team.for_each(parts, |(number, hidden), _| {
                    run(Relu {
                        mask: masks.hidden,
                        tokens: self.tokens.skip(number * ROWS),
                        hidden,
                    });
                });
                multiply(team, hidden.view(), self.factors.linear2, linear2.start(), y);
            }
            Activation::Gelu => {
                gelu(team, masks.hidden, self.tokens, hidden.view(), activated.reborrow());
                multiply(team, activated.view(), self.factors.linear2, linear2.start(), y);
            }
        }
    }

    /// `x + dropout(branch)` in the place of the branch.
    fn residual(&self, team: &mut Team<T>, mask: Mask<T>, x: Matrix<T>, branch: MatrixMut<T>) {
        team.for_each(branch.split_rows(ROWS).enumerate(), |(number, branch), _| {
            let rows = number * ROWS..number * ROWS + branch.rows();
            run(Residual {
                x: x.row_block(rows),
                mask,
                tokens: self.tokens.skip(number * ROWS),
                branch,
            });
        });
    }
}

/// `y = dropout(gelu(z))`
pub fn gelu<T: Real>(
    team: &mut Team<T>,
    mask: Mask<T>,
    tokens: TokenRows,
    z: Matrix<T>,
    y: MatrixMut<T>,
) {
    team.for_each(y.split_rows(ROWS).enumerate(), |(number, y), _| {
        let rows = number * ROWS..number * ROWS + y.rows();
        run(Gelu { mask, tokens: tokens.skip(number * ROWS), z: z.row_block(rows), y });
    });
}

/// `y = norm(x)`
fn norm<T: Real>(
    team: &mut Team<T>,
    (params, eps): (NormView<T>, T),
    x: Matrix<T>,
    statistics: [MatrixMut<T>; 2],
    y: MatrixMut<T>,
) {
    let [mean, rstd] = statistics.map(|each| each.split_rows(ROWS));
    let parts = y.split_rows(ROWS).zip(mean).zip(rstd).enumerate();
    team.for_each(parts, |(number, ((y, mean), rstd)), _| {
        let rows = number * ROWS..number * ROWS + y.rows();
        run(Normalise { x: x.row_block(rows), params, eps, mean, rstd, y });
    });
}
