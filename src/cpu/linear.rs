//! The linears over a team: products with a weight, and the gradients of weights and biases.

use super::kernels::few_rows::{FewRows, FEW};
use super::kernels::product::{Product, Start, Transposed};
use super::kernels::right::Right;
use super::matrix::{Matrix, MatrixMut};
use super::simd::{divide_all, run, Real, PANEL_WIDTHS};
use super::threads::Team;
use super::totals::{ColumnPart, WeightPart};

/// Rows and columns of the result that are one thread's at a time; the columns are whole panels of every
/// instruction set.
const ROWS: usize = 512;
const COLUMNS: usize = 64;
const _: () = assert!(divide_all(&PANEL_WIDTHS, COLUMNS));
/// Rows of a weight's gradient that are one thread's at a time: tall tiles of six, and few enough to stay in cache.
const GRAD_ROWS: usize = 96;

/// Rows that are one chain of additions in a weight's gradient. With 512, sums of one sign were
/// up to four times less exact than torch's.
const GRAD_CHAIN: usize = 128;

/// `out = start + left right`.
pub fn multiply<T: Real>(
    team: &mut Team<T>,
    left: Matrix<T>,
    right: Right<T>,
    start: Start<T>,
    out: MatrixMut<T>,
) {
    let few = left.rows() <= FEW && !matches!(right, Right::Packed(_));
    let one = matches!(team, Team::One(_));
    let block = if one { out.columns().max(1) } else { COLUMNS };
    let blocks_in_a_row = out.columns().div_ceil(block);
    let blocks = out.split(if one { usize::MAX } else { ROWS }, block).enumerate();
    team.for_each(blocks, |(number, out), workspace| {
        let row = number / blocks_in_a_row * ROWS;
        let column = number % blocks_in_a_row * block;
        let columns = column..column + out.columns();
        let start = match start {
            Start::Row(bias) => Start::Row(&bias[columns.clone()]),
            start => start,
        };
        let left = left.row_block(row..row + out.rows());
        if few {
            run(FewRows { left, right, columns, start, out });
        } else {
            run(Product { left, right, columns, start, out, panel: &mut workspace.panel });
        }
    });
}

/// What the gradients of one linear are made of.
pub struct LinearGrad<'a, T: Real> {
    /// The input of the linear, `[rows, in]`
    pub x: Matrix<'a, T>,
    /// `[rows, out]`
    pub grad_y: Matrix<'a, T>,
    /// `[out, in]`, if it is needed.
    pub weight: Option<WeightPart<'a, T>>,
    /// `[out]`, if it is needed.
    pub bias: Option<ColumnPart<'a, T>>,
}

/// Adds what the rows contribute to the gradients of weights and biases.
///
/// The order of the sums is that of the rows, whatever the threads.
pub fn parameter_grads<'a, T: Real>(
    team: &mut Team<T>,
    linears: impl Iterator<Item = LinearGrad<'a, T>> + Send,
) {
    let parts = linears.flat_map(|LinearGrad { x, grad_y, weight, bias }| {
        let mut weights = weight.map(|weight| weight.split_rows(GRAD_ROWS));
        let mut biases = bias.map(|bias| bias.split(GRAD_ROWS));
        let blocks = grad_y.columns().div_ceil(GRAD_ROWS);
        (0..if weights.is_none() && biases.is_none() { 0 } else { blocks }).map(move |number| {
            let first = number * GRAD_ROWS;
            let grad_y = grad_y.column_block(first..(first + GRAD_ROWS).min(grad_y.columns()));
            let weight = weights.as_mut().and_then(Iterator::next);
            LinearGrad { x, grad_y, weight, bias: biases.as_mut().and_then(Iterator::next) }
        })
    });
    team.for_each(parts, |LinearGrad { x, grad_y, weight, bias }, workspace| {
        if let Some(weight) = weight {
            weight.add(|mut out, write| {
                for first in (0..x.rows()).step_by(GRAD_CHAIN) {
                    let rows = first..(first + GRAD_CHAIN).min(x.rows());
                    run(Product {
                        left: Transposed(grad_y.row_block(rows.clone())),
                        right: Right::Plain(x.row_block(rows)),
                        columns: 0..out.columns(),
                        start: if write && first == 0 { Start::Zero } else { Start::Out },
                        out: out.reborrow(),
                        panel: &mut workspace.panel,
                    });
                }
            });
        }
        if let Some(mut bias) = bias {
            bias.add(grad_y);
        }
    });
}
