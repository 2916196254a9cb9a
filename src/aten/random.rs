//! Random bits as a function of (seed, site, word), by integer ops on tensors.
//!
//! # Rationale
//! An op that takes its seed as an argument is a function: it gives the same result under recomputation,
//! in a compiled graph and in its own backward, which draws the dropout masks again instead of keeping them.
//! torch's generators cannot be asked for a given element, so the bits come from SplitMix64 (Steele, Lea and
//! Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), used as a counter: every word is two
//! multiplications and three shifts of its own index, on any device.
//!
//! Tried and dropped: Philox4x32-10, torch's own on CUDA. Ten rounds as tensor ops are some 120 kernel
//! launches a mask against 15.

use tch::{Device, Kind, Tensor};

use super::Result;

/// The places that draw bits; a site's bits are independent of another's.
#[derive(Clone, Copy)]
pub enum Site {
    Attention = 1,
    Hidden = 2,
    Residual1 = 3,
    Residual2 = 4,
}

/// 2^64 / φ, odd: the step between the states of consecutive words.
const GAMMA: i64 = 0x9E37_79B9_7F4A_7C15_u64 as i64;
const MULTIPLIER1: i64 = 0xBF58_476D_1CE4_E5B9_u64 as i64;
const MULTIPLIER2: i64 = 0x94D0_49BB_1331_11EB_u64 as i64;

/// `count` words of 64 bits: `mix(mix(mix(seed) + site γ) + (i + 1) γ)` for i from 0.
pub fn words(seed: &Tensor, site: Site, count: i64, device: Device) -> Result<Tensor> {
    let site = mix(&seed.f_to_device(device)?)?.f_add_scalar((site as i64).wrapping_mul(GAMMA))?;
    let index = Tensor::f_arange_start(1, count + 1, (Kind::Int64, device))?;
    mix(&index.f_mul_scalar(GAMMA)?.f_add(&mix(&site)?)?)
}

/// The finaliser of SplitMix64; libtorch's int64 products wrap.
fn mix(state: &Tensor) -> Result<Tensor> {
    let state = xor_shift(state, 30)?.f_mul_scalar_(MULTIPLIER1)?;
    let state = xor_shift(&state, 27)?.f_mul_scalar_(MULTIPLIER2)?;
    xor_shift(&state, 31)
}

/// `state ^ (state >>> bits)`; libtorch's own shift copies the sign, the mask takes the copies off.
fn xor_shift(state: &Tensor, bits: i64) -> Result<Tensor> {
    let mut shifted = state.f_bitwise_right_shift_tensor_scalar(bits)?;
    let _ = shifted.f_bitwise_and_((1_i64 << (64 - bits)) - 1)?;
    shifted.f_bitwise_xor_tensor_(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published SplitMix64, word by word.
    fn mix_one(mut state: u64) -> u64 {
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^ (state >> 31)
    }

    #[test]
    fn the_finaliser_gives_the_published_stream() {
        // The first outputs of the reference implementation for seed 1234567.
        let expected = [6_457_827_717_110_365_317_u64, 3_203_168_211_198_807_973];
        for (index, expected) in expected.into_iter().enumerate() {
            let state = 1_234_567_u64.wrapping_add((GAMMA as u64).wrapping_mul(index as u64 + 1));
            assert_eq!(mix_one(state), expected);
        }
    }

    #[test]
    fn tensor_words_are_the_scalar_words() {
        let seed = -8_765_432_109_i64;
        let words = words(&Tensor::from(seed), Site::Residual1, 1000, Device::Cpu).unwrap();
        let words = Vec::<i64>::try_from(words).unwrap();
        let site = mix_one(seed as u64).wrapping_add((GAMMA as u64).wrapping_mul(3));
        for (index, word) in words.into_iter().enumerate() {
            let step = (GAMMA as u64).wrapping_mul(index as u64 + 1);
            assert_eq!(word as u64, mix_one(mix_one(site).wrapping_add(step)));
        }
    }
}
