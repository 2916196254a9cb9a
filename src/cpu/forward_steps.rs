//! The layer on some rows, step by step, post-norm and pre-norm (Xiong et al., 2020, fig. 1).

use super::attention;
use super::buffers::split;
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
use crate::call::{Activation, Saved};

/// Where the results of some rows go.
pub struct ForwardRows<'a, T> {
    pub tokens: TokenRows,
    pub x: Matrix<'a, T>,
    pub y: MatrixMut<'a, T>,
    pub saved: Saved<MatrixMut<'a, T>>,
    /// `[rows, C]`: scratch for the output of a norm.
    pub normed: MatrixMut<'a, T>,
}

/// Rows of whole positions, and which of them attend.
#[derive(Clone, Copy)]
pub struct Attended<'a, T> {
    pub tokens: TokenRows,
    /// `[rows, 3C]`, or the queries `[rows, C]`.
    pub qkv: Matrix<'a, T>,
    /// What they attend to instead of each other, `[keys of these positions, 2C]`; without columns, if it is not there.
    pub keys_values: Matrix<'a, T>,
    /// The first of the rows that attend.
    pub first: usize,
}

/// `norm2(n + feedforward(n))` with `n = norm1(x + attention(x))`; pre-norm: `r + feedforward(norm2(r))` with
/// `r = x + attention(norm1(x))`. Of whole positions.
pub fn forward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    factors: &RightFactors<T>,
    keys_values: Matrix<T>,
    mut rows: ForwardRows<T>,
) {
    let (tokens, no_rows) = (rows.tokens, MatrixMut::new(&mut [], rows.x.rows(), 0));
    let mut qkv = std::mem::replace(&mut rows.saved.qkv, no_rows);
    up_to_attention(team, layer, factors, rows.reborrow(), qkv.reborrow());
    let all = Attended { tokens, qkv: qkv.view(), keys_values, first: 0 };
    behind_attention(team, layer, factors, all, rows);
}

/// Query, key and value of some rows.
pub fn up_to_attention<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    factors: &RightFactors<T>,
    rows: ForwardRows<T>,
    qkv: MatrixMut<T>,
) {
    let ForwardRows { x, mut normed, saved: Saved { mean1, rstd1, .. }, .. } = rows;
    let (right, start) = (factors.in_proj, layer.in_proj.start());
    if layer.norm_first {
        norm(team, (layer.norm1, layer.eps[0]), x, [mean1, rstd1], normed.reborrow());
        multiply(team, normed.view(), right, start, qkv);
    } else {
        multiply(team, x, right, start, qkv);
    }
}

/// The rest of the layer on some rows, once query, key and value of all that they attend to are computed.
pub fn behind_attention<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    factors: &RightFactors<T>,
    all: Attended<T>,
    rows: ForwardRows<T>,
) {
    let ForwardRows { tokens, x, mut y, saved, mut normed } = rows;
    let Saved { logsumexp, attended, preactivation, activated, .. } = saved;
    let Saved { mut residual1, mut residual2, mean1, rstd1, mean2, rstd2, .. } = saved;
    let step = ForwardSteps { layer, factors, tokens };
    let (norm1, norm2) = ((layer.norm1, layer.eps[0]), (layer.norm2, layer.eps[1]));
    let branch2 = (preactivation, activated);
    let Masks { residual1: mask1, residual2: mask2, .. } = layer.masks;
    step.attention(team, all, (logsumexp, attended), residual1.reborrow());
    step.residual(team, mask1, x, residual1.reborrow());
    if layer.norm_first {
        norm(team, norm2, residual1.view(), [mean2, rstd2], normed.reborrow());
        step.feedforward(team, normed.view(), branch2, y.reborrow());
        step.residual(team, mask2, residual1.view(), y);
    } else {
        norm(team, norm1, residual1.view(), [mean1, rstd1], normed.reborrow());
        step.feedforward(team, normed.view(), branch2, residual2.reborrow());
        step.residual(team, mask2, normed.view(), residual2.reborrow());
        norm(team, norm2, residual2.view(), [mean2, rstd2], y);
    }
}

impl<'a, T> ForwardRows<'a, T> {
    /// Parts of at most `rows` rows.
    pub fn split(self, rows: usize) -> impl Iterator<Item = ForwardRows<'a, T>> {
        let Self { tokens, x, y, saved, normed } = self;
        let parts = split([y, normed], rows).zip(split(saved.into_array(), rows)).enumerate();
        parts.map(move |(number, ([y, normed], saved))| {
            let first = number * rows;
            let (tokens, x) = (tokens.skip(first), x.row_block(first..first + y.rows()));
            ForwardRows { tokens, x, y, saved: Saved::from_array(saved), normed }
        })
    }

    pub fn reborrow(&mut self) -> ForwardRows<'_, T> {
        let Self { tokens, x, y, saved, normed } = self;
        ForwardRows {
            tokens: *tokens,
            x: *x,
            y: y.reborrow(),
            saved: saved.as_mut().map(MatrixMut::reborrow),
            normed: normed.reborrow(),
        }
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
        all: Attended<T>,
        (logsumexp, mut attended): (MatrixMut<T>, MatrixMut<T>),
        y: MatrixMut<T>,
    ) {
        attention::forward(team, self.layer, all, attended.reborrow(), logsumexp);
        let start = self.layer.out_proj.start();
        multiply(team, attended.view(), self.factors.out_proj, start, y);
    }

    /// The feed-forward branch without its last dropout.
    fn feedforward(
        &self,
        team: &mut Team<T>,
        x: Matrix<T>,
        (mut preactivation, mut activated): (MatrixMut<T>, MatrixMut<T>),
        y: MatrixMut<T>,
    ) {
        let LayerView { linear1, linear2, activation, masks, .. } = self.layer;
        let (right, start) = (self.factors.linear1, linear1.start());
        match activation {
            Activation::Relu => {
                multiply(team, x, right, start, activated.reborrow());
                let parts = activated.reborrow().split_rows(ROWS).enumerate();
                team.for_each(parts, |(number, hidden), _| {
                    let tokens = self.tokens.skip(number * ROWS);
                    run(Relu { mask: masks.hidden, tokens, hidden });
                });
            }
            Activation::Gelu => {
                multiply(team, x, right, start, preactivation.reborrow());
                let z = preactivation.view();
                gelu(team, masks.hidden, self.tokens, z, activated.reborrow());
            }
        }
        multiply(team, activated.view(), self.factors.linear2, linear2.start(), y);
    }

    /// `x + dropout(branch)`, which overwrites the branch.
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
