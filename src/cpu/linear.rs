//! The linears over a team: products with a weight, and the gradients of weights and biases.

use super::kernels::few_rows::{FewRows, FEW};
use super::kernels::product::{Product, Start, Transposed};
use super::kernels::reduce::ColumnSums;
use super::kernels::right::Right;
use super::matrix::{Matrix, MatrixMut};
use super::simd::{run, Real};
use super::threads::Team;

/// Rows and columns of the result that are one thread's at a time; the columns are whole panels of every
/// instruction set.
const ROWS: usize = 512;
const COLUMNS: usize = 64;
/// Rows of a weight's gradient that are one thread's at a time: tall tiles of six, and few enough to stay in cache.
const GRAD_ROWS: usize = 96;

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
    /// `[out, in]`
    pub weight: MatrixMut<'a, T>,
    /// `[1, out]`
    pub bias: Option<MatrixMut<'a, T>>,
}

/// Adds what the rows contribute to the gradients of weights and biases, or writes it if they are the `first`.
///
/// The order of the sums is that of the rows, whatever the threads.
pub fn parameter_grads<'a, T: Real>(
    team: &mut Team<T>,
    linears: impl Iterator<Item = LinearGrad<'a, T>> + Send,
    first: bool,
) {
    let parts = linears.flat_map(|LinearGrad { x, grad_y, weight, bias }| {
        let mut biases = bias.map(|bias| bias.split(1, GRAD_ROWS));
        weight.split_rows(GRAD_ROWS).enumerate().map(move |(number, weight)| {
            let first_row = number * GRAD_ROWS;
            let grad_y = grad_y.column_block(first_row..first_row + weight.rows());
            LinearGrad { x, grad_y, weight, bias: biases.as_mut().and_then(Iterator::next) }
        })
    });
    team.for_each(parts, |LinearGrad { x, grad_y, weight, bias }, workspace| {
        run(Product {
            left: Transposed(grad_y),
            right: Right::Plain(x),
            columns: 0..weight.columns(),
            start: if first { Start::Zero } else { Start::Out },
            out: weight,
            panel: &mut workspace.panel,
        });
        if let Some(mut sums) = bias {
            run(ColumnSums { rows: grad_y, first, sums: sums.row(0) });
        }
    });
}
