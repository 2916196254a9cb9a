//! The feed-forward's activation with the dropout after it.
//!
//! For ReLU the result is kept, from which the backward can tell what passed; for GELU the input.

use super::dropout::Mask;
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::rows::TokenRows;
use crate::cpu::simd::{erfc, exp, Kernel, Real, Simd};

/// `dropout(relu(hidden))` in place.
pub struct Relu<'a, T: Real> {
    pub mask: Mask<T>,
    pub tokens: TokenRows,
    pub hidden: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for Relu<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mask, tokens, mut hidden } = self;
        for row in 0..hidden.rows() {
            let hidden = hidden.row(row);
            for h in hidden.iter_mut() {
                *h = if *h < T::ZERO { T::ZERO } else { *h }; // NaN stays
            }
            mask.apply(tokens.element(row, hidden.len()), hidden);
        }
    }
}

/// The gradient before ReLU and dropout, which overwrites that after them. A dropped element is 0 like one that did not
/// pass, so the mask is not drawn again.
pub struct ReluBackward<'a, T: Real> {
    pub hidden: Matrix<'a, T>,
    pub scale: T,
    pub grad: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for ReluBackward<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { hidden, scale, mut grad } = self;
        for row in 0..hidden.rows() {
            for (grad, &hidden) in grad.row(row).iter_mut().zip(hidden.row(row)) {
                // As in torch: NaN passes, and a NaN gradient does not where ReLU is off.
                let off = hidden <= T::ZERO;
                *grad = (*grad * scale).keep_if(!off);
            }
        }
    }
}

/// `y = dropout(z Φ(z))`, Φ the normal distribution (Hendrycks and Gimpel, 2016).
pub struct Gelu<'a, T: Real> {
    pub mask: Mask<T>,
    pub tokens: TokenRows,
    pub z: Matrix<'a, T>,
    pub y: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for Gelu<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mask, tokens, z, mut y } = self;
        for row in 0..z.rows() {
            let y = y.row(row);
            for (y, &z) in y.iter_mut().zip(z.row(row)) {
                *y = z * distribution::<T, S>(z);
            }
            mask.apply(tokens.element(row, y.len()), y);
        }
    }
}

/// The gradient of z, which overwrites that of y: `(z Φ(z))' = Φ(z) + z φ(z)`.
pub struct GeluBackward<'a, T: Real> {
    pub mask: Mask<T>,
    pub tokens: TokenRows,
    pub z: Matrix<'a, T>,
    pub grad: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for GeluBackward<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mask, tokens, z, mut grad } = self;
        for row in 0..z.rows() {
            let grad = grad.row(row);
            mask.apply(tokens.element(row, grad.len()), grad);
            for (grad, &z) in grad.iter_mut().zip(z.row(row)) {
                *grad *= distribution::<T, S>(z) + z * density::<T, S>(z);
            }
        }
    }
}

/// Φ(z) = erfc(-z / √2) / 2.
#[inline(always)]
fn distribution<T: Real, S: Simd>(z: T) -> T {
    let half =
        T::from_f64(0.5) * erfc::<T, S>(z.abs() * T::from_f64(std::f64::consts::FRAC_1_SQRT_2));
    if z < T::ZERO {
        half
    } else {
        T::ONE - half
    }
}

/// φ(z) = exp(-z² / 2) / √(2π).
#[inline(always)]
fn density<T: Real, S: Simd>(z: T) -> T {
    const INVERSE_ROOT: f64 = 0.398_942_280_401_432_7; // 1 / √(2π)
    exp::<T, S>(z * z * T::from_f64(-0.5)) * T::from_f64(INVERSE_ROOT)
}
