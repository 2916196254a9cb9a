//! The linears over a team: products with a weight, and the gradients of weights and biases.

use super::kernels::few_rows::{FewRows, FEW};
use super::kernels::product::{Product, Start, Transposed, TALL};
use super::kernels::right::Right;
use super::matrix::{Matrix, MatrixMut};
use super::simd::{divide_all, run, Real, PANEL_WIDTHS};
use super::threads::Team;
use super::totals::{ColumnPart, WeightPart};
use super::workspace::Workspace;

/// Rows and columns of the result that one thread computes at a time; the columns are whole panels of every instruction
/// set.
const ROWS: usize = 512;
/// Fewest rows, for many threads: a panel is packed for so many.
const LEAST_ROWS: usize = 64;
/// Blocks of the result that each thread has, where there are as many rows.
const BLOCKS: usize = 2;
const COLUMNS: usize = 64;
const _: () = assert!(divide_all(&PANEL_WIDTHS, COLUMNS));
/// Most rows of a weight's gradient that one thread computes at a time: the input of the linear is read and packed into
/// panels once for so many. Tried with two threads: with 96, a training step takes 1.5 % longer; blocks of 64 columns,
/// which read the gradient of the output again instead, 5 %.
const GRAD_ROWS: usize = 256;
/// Fewest, for many threads.
const LEAST_GRAD_ROWS: usize = 24;
/// Blocks of rows that each thread has, where there are as many rows.
const GRAD_BLOCKS: usize = 3;
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
    let rows = if one {
        usize::MAX
    } else {
        let each = out.rows() * blocks_in_a_row / (BLOCKS * team.threads());
        each.clamp(LEAST_ROWS, ROWS).next_multiple_of(TALL)
    };
    let blocks = out.split(rows, block).enumerate();
    team.for_each(blocks, |(number, out), workspace| {
        let row = number / blocks_in_a_row * rows;
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
/// The order of the sums is that of the rows, unit after unit, whatever the threads. `widths` is the sum of the
/// linears' output widths.
pub fn parameter_grads<'a, T: Real>(
    team: &mut Team<T>,
    unit: usize,
    widths: usize,
    linears: impl Iterator<Item = LinearGrad<'a, T>> + Send,
) {
    let most = most_grad_rows(widths, team.threads());
    let parts = linears.flat_map(|LinearGrad { x, grad_y, weight, bias }| {
        let out = grad_y.columns();
        let needed = weight.is_some() || bias.is_some();
        let rows = out.div_ceil(out.div_ceil(most).max(1)).next_multiple_of(TALL);
        let mut weights = weight.map(|weight| weight.split_rows(rows));
        let mut biases = bias.map(|bias| bias.split(rows));
        (0..if needed { out.div_ceil(rows) } else { 0 }).map(move |number| {
            let first = number * rows;
            let grad_y = grad_y.column_block(first..(first + rows).min(out));
            let weight = weights.as_mut().and_then(Iterator::next);
            LinearGrad { x, grad_y, weight, bias: biases.as_mut().and_then(Iterator::next) }
        })
    });
    team.for_each(parts, |LinearGrad { x, grad_y, mut weight, mut bias }, workspace| {
        for first in (0..x.rows()).step_by(unit) {
            let rows = first..(first + unit).min(x.rows());
            let (x, grad_y) = (x.row_block(rows.clone()), grad_y.row_block(rows));
            if let Some(weight) = &mut weight {
                weight.add(|out, write| add_products(x, grad_y, out, write, workspace));
            }
            if let Some(bias) = &mut bias {
                bias.add(grad_y);
            }
        }
    });
}

/// `out += grad_yᵀ x`, or `out = grad_yᵀ x` to `write`.
fn add_products<T: Real>(
    x: Matrix<T>,
    grad_y: Matrix<T>,
    mut out: MatrixMut<T>,
    write: bool,
    workspace: &mut Workspace<T>,
) {
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
}

/// Rows of a weight's gradient that one thread computes at a time, if there are so many in all. No sum goes over rows
/// of it, so that results do not depend on their number.
fn most_grad_rows(widths: usize, threads: usize) -> usize {
    (widths / (GRAD_BLOCKS * threads)).clamp(LEAST_GRAD_ROWS, GRAD_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_many_threads_has_rows_of_the_weights_gradients() {
        for (channels, threads) in [(256, 2), (256, 16), (512, 16), (256, 64), (512, 64)] {
            let widths = [3 * channels, channels, channels, channels];
            let most = most_grad_rows(widths.iter().sum(), threads);
            let blocks: usize = widths.iter().map(|width| width.div_ceil(most)).sum();
            assert!(blocks >= threads, "{channels} {threads}: {blocks}");
        }
    }
}
