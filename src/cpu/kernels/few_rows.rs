//! Products with a left factor of a few rows, where packing the right factor into panels costs more than it saves.
//!
//! A weight is read once, where it lies. With one row of 512 channels a training step takes 1.1 ms, with panels 2.3;
//! with five rows, both take the same.

use std::ops::Range;

use super::product::Start;
use super::right::Right;
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::simd::{Kernel, Real, Simd, Vector};

/// The most rows that this is meant for.
pub const FEW: usize = 5;

/// `out = start + left right`, for a right factor that is not packed.
pub struct FewRows<'a, T: Real> {
    pub left: Matrix<'a, T>,
    pub right: Right<'a, T>,
    /// The columns of the right factor that `out` is.
    pub columns: Range<usize>,
    pub start: Start<'a, T>,
    pub out: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for FewRows<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { left, right, columns, start, mut out } = self;
        for row in 0..left.rows() {
            match start {
                Start::Zero => out.row(row).fill(T::ZERO),
                Start::Row(bias) => out.row(row).copy_from_slice(bias),
                Start::Out => {}
            }
        }
        match right {
            Right::Transposed(weight) => dots::<T, S>(left, weight.row_block(columns), out),
            Right::Plain(weight) => combinations::<T, S>(left, weight.column_block(columns), out),
            Right::Packed(_) => debug_assert!(false, "what is packed is multiplied by panels"),
        }
    }
}

/// Every element is a row by a row; four at a time, so that their sums do not wait for each other.
#[inline(always)]
fn dots<T: Real, S: Simd>(left: Matrix<T>, weight: Matrix<T>, mut out: MatrixMut<T>) {
    for column in (0..weight.rows()).step_by(4) {
        if column + 4 <= weight.rows() {
            dots_at::<T, S, 4>(left, weight, column, &mut out);
        } else {
            (column..weight.rows())
                .for_each(|column| dots_at::<T, S, 1>(left, weight, column, &mut out));
        }
    }
}

#[inline(always)]
fn dots_at<T: Real, S: Simd, const DOTS: usize>(
    left: Matrix<T>,
    weight: Matrix<T>,
    column: usize,
    out: &mut MatrixMut<T>,
) {
    let lanes = S::Lanes::<T>::LANES;
    let depth = weight.columns();
    let whole = depth / lanes * lanes;
    let mut weights: [&[T]; DOTS] = [&[]; DOTS];
    for i in 0..DOTS {
        weights[i] = &weight.row(column + i)[..depth];
    }
    for row in 0..left.rows() {
        let left = &left.row(row)[..depth];
        let mut sums = [S::Lanes::<T>::splat(T::ZERO); DOTS];
        for p in (0..whole).step_by(lanes) {
            let left = S::Lanes::<T>::load(&left[p..]);
            for i in 0..DOTS {
                sums[i] = left.mul_add::<S>(S::Lanes::<T>::load(&weights[i][p..]), sums[i]);
            }
        }
        for i in 0..DOTS {
            let mut sum = sums[i].sum();
            for p in whole..depth {
                sum += left[p] * weights[i][p];
            }
            out.row(row)[column + i] += sum;
        }
    }
}

/// Every row is a combination of rows.
#[inline(always)]
fn combinations<T: Real, S: Simd>(left: Matrix<T>, weight: Matrix<T>, mut out: MatrixMut<T>) {
    for p in 0..weight.rows() {
        let weight = weight.row(p);
        for row in 0..left.rows() {
            let factor = left.row(row)[p];
            for (out, &weight) in out.row(row).iter_mut().zip(weight) {
                *out = factor.fused::<S>(weight, *out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::testing::{assert_near, numbers};
    use crate::cpu::simd::{run, with_each_set};

    #[test]
    fn a_few_rows_are_the_plain_product() {
        with_each_set(|set| {
            for [rows, depth, columns] in [[1, 1, 1], [2, 33, 5], [FEW, 17, 70]] {
                let (left, right) = (numbers::<f64>(rows * depth), numbers::<f64>(depth * columns));
                let right_t: Vec<f64> =
                    (0..depth * columns).map(|i| right[i % depth * columns + i / depth]).collect();
                let bias = numbers::<f64>(columns);
                let mut expected = bias.repeat(rows);
                for i in 0..rows * columns {
                    expected[i] += (0..depth)
                        .map(|p| left[i / columns * depth + p] * right[p * columns + i % columns])
                        .sum::<f64>();
                }
                for right in [
                    Right::Plain(Matrix::new(&right, depth, columns)),
                    Right::Transposed(Matrix::new(&right_t, columns, depth)),
                ] {
                    let mut out = vec![f64::NAN; rows * columns];
                    run(FewRows {
                        left: Matrix::new(&left, rows, depth),
                        right,
                        columns: 0..columns,
                        start: Start::Row(&bias),
                        out: MatrixMut::new(&mut out, rows, columns),
                    });
                    assert_near(&out, &expected, &format!("{set:?} {rows} {depth} {columns}"));
                }
            }
        });
    }
}
