//! Sums over a row, in an order that every instruction set shares.

use crate::cpu::matrix::Matrix;
use crate::cpu::simd::{run, Kernel, Lanes, Real, Simd, Vector};

/// So many partial sums run side by side.
const LANES: usize = 16;

/// The sum of `term(i)` for i below `len`.
#[inline(always)]
pub fn sum<T: Real>(len: usize, term: impl Fn(usize) -> T) -> T {
    let mut sums = [T::ZERO; LANES];
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            sums[lane] += term(first + lane);
        }
    }
    for i in whole..len {
        sums[i - whole] += term(i);
    }
    Lanes::<T, LANES>::load(&sums).sum()
}

/// Whether there is neither NaN nor infinity among the rows.
pub fn all_finite<T: Real>(rows: Matrix<T>) -> bool {
    let mut finite = true;
    run(AllFinite { rows, finite: &mut finite });
    finite
}

struct AllFinite<'a, T> {
    rows: Matrix<'a, T>,
    finite: &'a mut bool,
}

impl<T: Real> Kernel for AllFinite<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut zero = T::ZERO;
        for row in 0..self.rows.rows() {
            let row = self.rows.row(row);
            zero += sum(row.len(), |i| row[i] * T::ZERO); // NaN if there is any
        }
        *self.finite = zero == T::ZERO;
    }
}

/// `sums += Σ rows`, or `=` if they are the `first`.
pub struct ColumnSums<'a, T: Real> {
    pub rows: Matrix<'a, T>,
    pub first: bool,
    pub sums: &'a mut [T],
}

impl<T: Real> Kernel for ColumnSums<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { rows, first, sums } = self;
        if first {
            sums.fill(T::ZERO);
        }
        for row in 0..rows.rows() {
            for (sum, &value) in sums.iter_mut().zip(rows.row(row)) {
                *sum += value;
            }
        }
    }
}
