//! The most that torch's threads can compute together, for the benchmark, which takes the time.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::kernels::fma_chains::FmaChains;
use super::libtorch::in_every_thread;
use super::simd::{run, Real};

/// Runs `rounds` rounds of fused multiply-adds in each of torch's threads; returns the multiplications and additions
/// that all of them did.
pub fn fma_flops<T: Real>(rounds: usize) -> usize {
    let total = AtomicUsize::new(0);
    in_every_thread(&|| {
        let (mut sum, mut flops) = (T::ZERO, 0);
        run(FmaChains { rounds, sum: &mut sum, flops: &mut flops });
        total.fetch_add(flops, Ordering::Relaxed);
    });
    total.into_inner()
}
