//! What the kernels ask of a number: float32 and float64 come from one source.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

use super::Simd;

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + MulAssign
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;
    const LOG2_E: Self;
    /// ln 2 in two parts, the first with so few digits that its products with small integers are exact.
    const LN2_HIGH: Self;
    const LN2_LOW: Self;
    /// Adding 1.5 * 2^(digits - 1) rounds to an integer and leaves it in the lowest bits.
    const ROUNDING: Self;
    /// Below it, e^x is no normal number.
    const SMALLEST_EXPONENT: Self;
    /// Where the series of e^r, |r| <= ln 2 / 2, may end.
    const TAYLOR_DEGREE: usize;
    /// How many coefficients of erfc the format can tell from 0.
    const ERFC_TERMS: usize;

    fn from_f64(value: f64) -> Self;
    fn from_usize(value: usize) -> Self;
    fn sqrt(self) -> Self;
    fn ln(self) -> Self;
    fn abs(self) -> Self;

    /// `self * factor + summand`; one instruction where the set has it.
    fn fused<S: Simd>(self, factor: Self, summand: Self) -> Self;

    /// 2^n for a number that is n plus [`Real::ROUNDING`].
    fn power_of_two(self) -> Self;

    /// `self` or 0, without a branch: a select of a product and 0 compiled to jumps, 7 times slower.
    fn keep_if(self, condition: bool) -> Self;
}

macro_rules! real {
    ($float:ident, $bits:ident { $($constants:tt)* }) => {
        impl Real for $float {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = $float::INFINITY;
            const LOG2_E: Self = std::$float::consts::LOG2_E;
            const ROUNDING: Self = 1.5 * (1_u64 << ($float::MANTISSA_DIGITS - 1)) as $float;
            $($constants)*

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $float
            }

            #[inline(always)]
            fn from_usize(value: usize) -> Self {
                value as $float
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                $float::sqrt(self)
            }

            #[inline(always)]
            fn ln(self) -> Self {
                $float::ln(self)
            }

            #[inline(always)]
            fn abs(self) -> Self {
                $float::abs(self)
            }

            #[inline(always)]
            fn fused<S: Simd>(self, factor: Self, summand: Self) -> Self {
                if S::FUSED {
                    self.mul_add(factor, summand)
                } else {
                    self * factor + summand
                }
            }

            #[inline(always)]
            fn power_of_two(self) -> Self {
                const MANTISSA: u32 = $float::MANTISSA_DIGITS - 1;
                let bits = self.to_bits().wrapping_add($float::MAX_EXP as $bits - 1);
                $float::from_bits(bits << MANTISSA)
            }

            #[inline(always)]
            fn keep_if(self, condition: bool) -> Self {
                $float::from_bits(self.to_bits() & $bits::from(condition).wrapping_neg())
            }
        }
    };
}

real!(f32, u32 {
    const LN2_HIGH: Self = 0.693_359_4;
    const LN2_LOW: Self = -2.121_944_4e-4;
    const SMALLEST_EXPONENT: Self = -87.3;
    const TAYLOR_DEGREE: usize = 7;
    const ERFC_TERMS: usize = 14;
});

real!(f64, u64 {
    const LN2_HIGH: Self = 0.693_147_180_369_123_8;
    const LN2_LOW: Self = 1.908_214_929_270_587_7e-10;
    const SMALLEST_EXPONENT: Self = -708.3;
    const TAYLOR_DEGREE: usize = 13;
    const ERFC_TERMS: usize = 28;
});
