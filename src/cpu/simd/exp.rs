//! The exponential, and the error function that GELU needs, without branches, so that loops become vector code.

use super::{Real, Simd};

/// 1 / k!
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut table = [1.0; 14];
    let mut k = 1;
    while k < table.len() {
        table[k] = table[k - 1] / k as f64;
        k += 1;
    }
    table
};

/// e^x for x up to 88 (f32) or 709 (f64); 0 where the result would not be a normal number, NaN for NaN.
///
/// e^x = 2^n e^r with n = round(x / ln 2); for |r| <= ln 2 / 2 the Taylor series is cut off below the rounding
/// error.
#[inline(always)]
pub fn exp<T: Real, S: Simd>(x: T) -> T {
    let shifted = x.fused::<S>(T::LOG2_E, T::ROUNDING);
    let n = shifted - T::ROUNDING;
    let r = n.fused::<S>(-T::LN2_HIGH, x);
    let r = n.fused::<S>(-T::LN2_LOW, r);
    let mut sum = T::from_f64(INVERSE_FACTORIALS[T::TAYLOR_DEGREE]);
    for k in (0..T::TAYLOR_DEGREE).rev() {
        sum = sum.fused::<S>(r, T::from_f64(INVERSE_FACTORIALS[k]));
    }
    // A product, not a sum of exponents: NaN stays NaN.
    let result = sum * shifted.power_of_two();
    if x < T::SMALLEST_EXPONENT {
        T::ZERO
    } else {
        result
    }
}

/// Chebyshev coefficients of ln(erfc(z) exp(z²) / t) in 2t - 1, where t = 2 / (2 + z): smooth down to t = 0.
/// Computed in 60 digits.
#[allow(clippy::excessive_precision)] // digits that float64 rounds away show that it is rounded right
const ERFC: [f64; 29] = [
    -1.302_653_719_781_709_4,
    6.419_697_923_564_902_6e-1,
    1.947_647_320_418_583_6e-2,
    -9.561_514_786_808_631_6e-3,
    -9.465_953_444_820_368_7e-4,
    3.668_394_978_527_614_5e-4,
    4.252_332_480_690_777_2e-5,
    -2.027_857_811_253_424_3e-5,
    -1.624_290_004_647_025_5e-6,
    1.303_655_835_580_523_2e-6,
    1.562_644_172_206_614_3e-8,
    -8.523_809_591_492_654_3e-8,
    6.529_054_439_098_851_5e-9,
    5.059_343_495_551_468_9e-9,
    -9.913_641_564_930_330_9e-10,
    -2.273_651_222_931_835_9e-10,
    9.646_791_102_015_526_8e-11,
    2.394_038_083_039_114_7e-12,
    -6.886_027_526_497_553_4e-12,
    8.944_879_273_090_725_7e-13,
    3.130_921_399_342_958_1e-13,
    -1.127_082_236_125_236_7e-13,
    3.810_905_255_189_232_1e-16,
    7.106_097_613_609_237_0e-15,
    -1.523_028_201_457_104_3e-15,
    -9.457_494_571_291_234_0e-17,
    1.210_237_189_224_279_0e-16,
    -2.816_663_087_747_177_0e-17,
    5.003_005_555_944_590_2e-20,
];

/// erfc(z) for z >= 0, by Clenshaw's recurrence.
#[inline(always)]
pub fn erfc<T: Real, S: Simd>(z: T) -> T {
    let two = T::from_f64(2.0);
    let t = two / (two + z);
    let twice = t * T::from_f64(4.0) - two;
    let (mut current, mut previous) = (T::ZERO, T::ZERO);
    for k in (1..T::ERFC_TERMS).rev() {
        let next = twice.fused::<S>(current, T::from_f64(ERFC[k]) - previous);
        (current, previous) = (next, current);
    }
    let half = T::from_f64(0.5);
    let series = half * twice.fused::<S>(current, T::from_f64(ERFC[0])) - previous;
    t * exp::<T, S>(series - z * z)
}

#[cfg(test)]
mod tests {
    use super::super::{Avx512 as Fused, Baseline};
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for step in -8700..=880 {
            let x = f64::from(step) / 100.0;
            assert!((exp::<f64, Fused>(x) / x.exp() - 1.0).abs() < 4e-16, "{x}");
            assert!((exp::<f64, Baseline>(x) / x.exp() - 1.0).abs() < 4e-16, "{x}");
            let x = x as f32;
            assert!((exp::<f32, Fused>(x) / x.exp() - 1.0).abs() < 2e-7, "{x}");
        }
    }

    #[test]
    fn exp_of_what_is_no_number_or_too_small() {
        assert!(exp::<f32, Fused>(f32::NEG_INFINITY).abs() <= 0.0);
        assert!(exp::<f64, Baseline>(-1000.0).abs() <= 0.0);
        assert!(exp::<f32, Fused>(f32::NAN).is_nan());
        assert!(exp::<f64, Fused>(f64::NAN).is_nan());
    }

    #[test]
    fn erfc_is_the_tabulated_one() {
        // Abramowitz and Stegun, table 7.1 and 7.3, in more digits.
        let table = [
            (0.0, 1.0),
            (0.1, 0.887_537_083_981_715),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 4.677_734_981_047_266e-3),
            (3.0, 2.209_049_699_858_544e-5),
            (5.0, 1.537_459_794_428_035e-12),
        ];
        for (z, expected) in table {
            assert!((erfc::<f64, Fused>(z) / expected - 1.0).abs() < 1e-14, "{z}");
            assert!((erfc::<f32, Fused>(z as f32) / expected as f32 - 1.0).abs() < 4e-6, "{z}");
        }
    }
}
