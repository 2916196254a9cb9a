//! A vector of elements, in one register or a few.

use super::{Real, Simd};

/// A fixed number of elements that every operation treats alike.
pub trait Vector<T: Real>: Copy {
    const LANES: usize;
    fn splat(value: T) -> Self;
    /// The first lanes of a slice that has at least as many elements.
    fn load(from: &[T]) -> Self;
    fn store(self, to: &mut [T]);
    fn add(self, other: Self) -> Self;
    /// Of all lanes, the upper half added to the lower again and again.
    fn sum(self) -> T;
    /// `self * factor + summand`, rounded once if the instruction set can.
    fn mul_add<S: Simd>(self, factor: Self, summand: Self) -> Self;
}

#[derive(Clone, Copy)]
pub struct Lanes<T, const N: usize>([T; N]);

impl<T: Real, const N: usize> Vector<T> for Lanes<T, N> {
    const LANES: usize = N;

    #[inline(always)]
    fn splat(value: T) -> Self {
        Self([value; N])
    }

    #[inline(always)]
    fn load(from: &[T]) -> Self {
        let mut lanes = [T::ZERO; N];
        lanes.copy_from_slice(&from[..N]);
        Self(lanes)
    }

    #[inline(always)]
    fn store(self, to: &mut [T]) {
        to[..N].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let mut sum = self.0;
        for lane in 0..N {
            sum[lane] += other.0[lane];
        }
        Self(sum)
    }

    #[inline(always)]
    fn sum(self) -> T {
        let mut lanes = self.0;
        let mut half = N / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    fn mul_add<S: Simd>(self, factor: Self, summand: Self) -> Self {
        let mut result = summand.0;
        for lane in 0..N {
            result[lane] = self.0[lane].fused::<S>(factor.0[lane], result[lane]);
        }
        Self(result)
    }
}
