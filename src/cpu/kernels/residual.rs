//! The sum at the end of a branch.

use super::dropout::Mask;
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::rows::TokenRows;
use crate::cpu::simd::{Kernel, Real, Simd};

/// `x + dropout(branch)`, which overwrites the branch.
pub struct Residual<'a, T: Real> {
    pub x: Matrix<'a, T>,
    pub mask: Mask<T>,
    pub tokens: TokenRows,
    pub branch: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for Residual<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, mask, tokens, mut branch } = self;
        for row in 0..x.rows() {
            let branch = branch.row(row);
            mask.apply(tokens.element(row, branch.len()), branch);
            for (branch, &x) in branch.iter_mut().zip(x.row(row)) {
                *branch += x;
            }
        }
    }
}

/// `sum += summand`, for gradients.
pub struct AddRows<'a, T: Real> {
    pub summand: Matrix<'a, T>,
    pub sum: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for AddRows<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { summand, mut sum } = self;
        for row in 0..summand.rows() {
            for (sum, &summand) in sum.row(row).iter_mut().zip(summand.row(row)) {
                *sum += summand;
            }
        }
    }
}
