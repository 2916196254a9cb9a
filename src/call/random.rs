//! The definition of the dropout masks, which every path draws alike: a function of (seed, site, element).
//!
//! # Rationale
//! An op that takes its seed as an argument is a function: it gives the same result under recomputation,
//! in a compiled graph and in its own backward, which draws the dropout masks again instead of keeping them.
//! torch's generators cannot be asked for a given element, so the bits come from SplitMix64 (Steele, Lea and
//! Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), used as a counter: every word is two
//! multiplications and three shifts of its own index, on any device.
//!
//! Word i of a site is `mix(mix(mix(seed) + site γ) + (i + 1) γ)`. Four elements share a word, 16 bits each, lowest
//! bits first. An element is kept if its bits, as a number from 0 to 65535, are at least [`threshold`]; the scale is
//! that of the rounded p, so that the mean is exact. An element's index is its place in `[N, L, ..]` or
//! `[L, H, N, K]`, whatever the strides are.
//!
//! Tried and dropped: Philox4x32-10, torch's own on CUDA. Ten rounds as tensor ops are some 120 kernel
//! launches a mask against 15.

/// The places that draw bits; a site's bits are independent of another's.
#[derive(Clone, Copy)]
pub enum Site {
    Attention = 1,
    Hidden = 2,
    Residual1 = 3,
    Residual2 = 4,
}

/// 2^64 / φ, odd: the step between the states of consecutive words.
pub const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
pub const MULTIPLIERS: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];
pub const SHIFTS: [u32; 3] = [30, 27, 31];

const LEVELS: f64 = 65_536.0;

/// The finaliser of SplitMix64.
#[inline(always)]
pub fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> SHIFTS[0])).wrapping_mul(MULTIPLIERS[0]);
    state = (state ^ (state >> SHIFTS[1])).wrapping_mul(MULTIPLIERS[1]);
    state ^ (state >> SHIFTS[2])
}

/// What the words of a site start from.
pub fn site_state(seed: i64, site: Site) -> u64 {
    mix(mix(seed as u64).wrapping_add((site as u64).wrapping_mul(GAMMA)))
}

/// Of the 65536 values of an element's bits, how many drop it.
pub fn threshold(p: f64) -> u32 {
    (p * LEVELS).round() as u32
}

/// What a kept element is multiplied by.
pub fn scale(threshold: u32) -> f64 {
    let threshold = f64::from(threshold);
    if threshold < LEVELS {
        LEVELS / (LEVELS - threshold)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finaliser_gives_the_published_stream() {
        // The first outputs of the reference implementation for seed 1234567.
        let expected = [6_457_827_717_110_365_317_u64, 3_203_168_211_198_807_973];
        for (index, expected) in expected.into_iter().enumerate() {
            let state = 1_234_567_u64.wrapping_add(GAMMA.wrapping_mul(index as u64 + 1));
            assert_eq!(mix(state), expected);
        }
    }
}
