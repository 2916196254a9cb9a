//! Layer norm over the channels of each row (Ba, Kiros and Hinton, 2016).

use super::reduce::sum;
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::simd::{Kernel, Real, Simd};

/// Scale and shift `[C]`.
#[derive(Clone, Copy)]
pub struct NormView<'a, T> {
    pub weight: &'a [T],
    pub bias: Option<&'a [T]>,
}

/// `y = norm(x)`, and mean and reciprocal standard deviation of each row of x.
pub struct Normalise<'a, T: Real> {
    pub x: Matrix<'a, T>,
    pub params: NormView<'a, T>,
    pub eps: T,
    /// `[rows, 1]`
    pub mean: MatrixMut<'a, T>,
    pub rstd: MatrixMut<'a, T>,
    pub y: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for Normalise<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, params, eps, mut mean, mut rstd, mut y } = self;
        for row in 0..x.rows() {
            let x = x.row(row);
            let statistics = Statistics::of(x, eps);
            mean.row(row)[0] = statistics.mean;
            rstd.row(row)[0] = statistics.rstd;
            normalise(x, statistics.mean, statistics.rstd, params, y.row(row));
        }
    }
}

/// Of a row.
struct Statistics<T> {
    mean: T,
    rstd: T,
}

impl<T: Real> Statistics<T> {
    /// The mean is summed from the first element on, and then from there: that of a constant row is the constant, where
    /// the plain mean is off by a rounding error, of which `rstd` = 1 / √eps makes an output. Without the second sum it
    /// is off by the rounding errors of the first element, and among tokens that are alike these add up.
    ///
    /// Where the squares overflow, those of a quarter of the row are summed: one activation of 5e19 among few in
    /// float32 comes out right. Where these overflow, too, a `rstd` of 0 would make the row its bias; it is NaN instead.
    #[inline(always)]
    fn of(x: &[T], eps: T) -> Self {
        let share = T::ONE / T::from_usize(x.len());
        let origin = x[0];
        let near = origin + sum(x.len(), |c| x[c] - origin) * share;
        let mean = near + sum(x.len(), |c| x[c] - near) * share;
        let squares = sum(x.len(), |c| (x[c] - mean) * (x[c] - mean));
        if squares < T::INFINITY {
            return Self { mean, rstd: T::ONE / (squares * share + eps).sqrt() };
        }
        let quarter = T::from_f64(0.25);
        let squares = sum(x.len(), |c| ((x[c] - mean) * quarter) * ((x[c] - mean) * quarter));
        let rstd = if squares < T::INFINITY {
            quarter / (squares * share + eps * quarter * quarter).sqrt()
        } else {
            T::INFINITY * T::ZERO
        };
        Self { mean, rstd }
    }
}

/// `y = norm(x)` again, from the statistics.
pub struct NormaliseAgain<'a, T: Real> {
    pub x: Matrix<'a, T>,
    pub params: NormView<'a, T>,
    pub statistics: [Matrix<'a, T>; 2],
    pub y: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for NormaliseAgain<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, params, statistics: [mean, rstd], mut y } = self;
        for row in 0..x.rows() {
            normalise(x.row(row), mean.row(row)[0], rstd.row(row)[0], params, y.row(row));
        }
    }
}

#[inline(always)]
fn normalise<T: Real>(x: &[T], mean: T, rstd: T, params: NormView<T>, y: &mut [T]) {
    let weight = &params.weight[..x.len()];
    let y = &mut y[..x.len()];
    match params.bias {
        Some(bias) => {
            let bias = &bias[..x.len()];
            for c in 0..x.len() {
                y[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
            }
        }
        None => {
            for c in 0..x.len() {
                y[c] = (x[c] - mean) * rstd * weight[c];
            }
        }
    }
}

/// The gradient of x, which overwrites that of y, and what the rows add to those of the parameters.
///
/// With x̂ = (x - mean) rstd and y = x̂ w + b, and ⟨·⟩ the mean over the channels:
///     `grad_x` = rstd (g - ⟨g⟩ - x̂ ⟨g x̂⟩) where g = `grad_y` w,
///     `grad_w` = Σ `grad_y` x̂ and `grad_b` = Σ `grad_y` over the rows.
pub struct NormaliseBackward<'a, T: Real> {
    pub x: Matrix<'a, T>,
    pub weight: &'a [T],
    pub statistics: [Matrix<'a, T>; 2],
    pub grad: MatrixMut<'a, T>,
    /// `[2, C]`: Σ `grad_y` x̂ and Σ `grad_y` over these rows.
    pub sums: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for NormaliseBackward<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, weight, statistics: [mean, rstd], mut grad, mut sums } = self;
        let channels = x.columns();
        let share = T::ONE / T::from_usize(channels);
        let weight = &weight[..channels];
        sums.row(0).fill(T::ZERO);
        sums.row(1).fill(T::ZERO);
        for row in 0..x.rows() {
            let (x, grad) = (&x.row(row)[..channels], &mut grad.row(row)[..channels]);
            let (mean, rstd) = (mean.row(row)[0], rstd.row(row)[0]);
            let mean_grad = sum(channels, |c| grad[c] * weight[c]) * share;
            let mean_product =
                sum(channels, |c| grad[c] * weight[c] * ((x[c] - mean) * rstd)) * share;
            for (sum, (&grad, &x)) in sums.row(0).iter_mut().zip(grad.iter().zip(x)) {
                *sum += grad * ((x - mean) * rstd);
            }
            for (sum, &grad) in sums.row(1).iter_mut().zip(grad.iter()) {
                *sum += grad;
            }
            for c in 0..channels {
                let normalised = (x[c] - mean) * rstd;
                grad[c] = rstd * (grad[c] * weight[c] - mean_grad - normalised * mean_product);
            }
        }
    }
}
