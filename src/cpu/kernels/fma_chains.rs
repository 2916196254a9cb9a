//! Nothing but fused multiply-adds in registers: the most that a core can compute, to measure the layer by.

use std::array;
use std::hint::black_box;

use crate::cpu::simd::{Kernel, Real, Simd, Vector, MOST_LANES};

/// Registers that are added to side by side: two instructions a cycle that take four cycles each need eight.
///
/// In pairs, as the compiler has to see from single elements that they are registers. On one core, AVX-512 and AVX2,
/// f32 and f64, in GF/s: four pairs 243, 116, 127, 63; six pairs 243, 118, 77, 64; twelve in a row 4, 109, 115, 45.
const REGISTERS: usize = 8;

/// `x = x / 2 + 1 / 2` in every lane of the registers, again and again.
pub struct FmaChains<'a, T: Real> {
    pub rounds: usize,
    /// The sum of all lanes at the end: their number, once enough rounds have made each of them 1.
    pub sum: &'a mut T,
    /// Multiplications and additions that were done.
    pub flops: &'a mut usize,
}

impl<T: Real> Kernel for FmaChains<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { rounds, sum, flops } = self;
        // Lanes are counted in elements: of float64 they are two registers.
        let pairs = if size_of::<T>() == size_of::<f64>() {
            *sum = pairs_of_chains::<T, S, { REGISTERS / 4 }>(rounds);
            REGISTERS / 4
        } else {
            *sum = pairs_of_chains::<T, S, { REGISTERS / 2 }>(rounds);
            REGISTERS / 2
        };
        *flops = 2 * rounds * 2 * pairs * S::Lanes::<T>::LANES;
    }
}

/// The compiler knows neither operand nor start, and no two starts are equal, so that it can optimise nothing away.
#[inline(always)]
fn pairs_of_chains<T: Real, S: Simd, const PAIRS: usize>(rounds: usize) -> T {
    let lanes = S::Lanes::<T>::LANES;
    let half = S::Lanes::<T>::splat(black_box(T::from_f64(0.5)));
    let starts: [T; MOST_LANES + REGISTERS] = black_box(array::from_fn(T::from_usize));
    let mut chains = [[S::Lanes::<T>::splat(T::ZERO); 2]; PAIRS];
    for i in 0..PAIRS {
        for j in 0..2 {
            chains[i][j] = S::Lanes::<T>::load(&starts[2 * i + j..]);
        }
    }
    for _ in 0..rounds {
        for i in 0..PAIRS {
            for j in 0..2 {
                chains[i][j] = half.mul_add::<S>(chains[i][j], half);
            }
        }
    }
    let mut ends = [T::ZERO; REGISTERS * MOST_LANES];
    for (i, pair) in chains.into_iter().enumerate() {
        for (j, chain) in pair.into_iter().enumerate() {
            chain.store(&mut ends[(2 * i + j) * lanes..]);
        }
    }
    black_box(ends).into_iter().fold(T::ZERO, |sum, end| sum + end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{run, with_each_set};

    fn assert_all_chains_run<T: Real>() {
        with_each_set(|set| {
            let (mut sum, mut flops) = (T::ZERO, 0);
            run(FmaChains { rounds: 100, sum: &mut sum, flops: &mut flops });
            assert!(flops > 0);
            assert_eq!(sum, T::from_usize(flops / 200), "{set:?}: each is 1, and counts 200");
        });
    }

    #[test]
    fn every_lane_of_every_chain_is_computed_in_every_round_that_counts() {
        assert_all_chains_run::<f32>();
        assert_all_chains_run::<f64>();
    }
}
