//! Numbers for the kernels' tests, and how near two results have to be.

use crate::call::random::mix;
use crate::cpu::simd::Real;

/// Numbers from -1 to 1 without a pattern, other ones for another length.
pub fn numbers<T: Real>(len: usize) -> Vec<T> {
    let number = |i| (mix((len * 1_000_003 + i) as u64) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
    (0..len).map(|i| T::from_f64(number(i))).collect()
}

/// Fails unless the largest difference is a rounding error of the largest expected value, or of 1.
pub fn assert_near<T: Real>(actual: &[T], expected: &[T], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let bound = T::from_f64(if size_of::<T>() == 8 { 1e-13 } else { 1e-5 });
    let larger = |a: T, b: T| if a > b { a } else { b };
    let largest = expected.iter().fold(T::ONE, |largest, each| larger(largest, each.abs()));
    for (i, (&a, &b)) in actual.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= bound * largest, "{what}: at {i} {a:?} instead of {b:?}");
    }
}
