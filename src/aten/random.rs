//! The random bits of `call::random` by integer ops on tensors.

use tch::{Device, Kind, Tensor};

use super::Result;
use crate::call::random::{Site, GAMMA, MULTIPLIERS, SHIFTS};

/// `count` words of 64 bits.
pub fn words(seed: &Tensor, site: Site, count: i64, device: Device) -> Result<Tensor> {
    let step = GAMMA as i64;
    let site = mix(&seed.f_to_device(device)?)?.f_add_scalar((site as i64).wrapping_mul(step))?;
    let index = Tensor::f_arange_start(1, count + 1, (Kind::Int64, device))?;
    mix(&index.f_mul_scalar(step)?.f_add(&mix(&site)?)?)
}

/// The finaliser of SplitMix64; libtorch's int64 products wrap.
fn mix(state: &Tensor) -> Result<Tensor> {
    let [first, second] = MULTIPLIERS.map(|multiplier| multiplier as i64);
    let state = xor_shift(state, SHIFTS[0])?.f_mul_scalar_(first)?;
    let state = xor_shift(&state, SHIFTS[1])?.f_mul_scalar_(second)?;
    xor_shift(&state, SHIFTS[2])
}

/// `state ^ (state >>> bits)`; libtorch's own shift copies the sign, the mask removes the copies.
fn xor_shift(state: &Tensor, bits: u32) -> Result<Tensor> {
    let mut shifted = state.f_bitwise_right_shift_tensor_scalar(i64::from(bits))?;
    let _ = shifted.f_bitwise_and_((1_i64 << (64 - bits)) - 1)?;
    shifted.f_bitwise_xor_tensor_(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::random;

    #[test]
    fn tensor_words_are_the_scalar_words() {
        let seed = -8_765_432_109_i64;
        let words = words(&Tensor::from(seed), Site::Residual1, 1000, Device::Cpu).unwrap();
        let words = Vec::<i64>::try_from(words).unwrap();
        let site = random::site_state(seed, Site::Residual1);
        for (index, word) in words.into_iter().enumerate() {
            let step = GAMMA.wrapping_mul(index as u64 + 1);
            assert_eq!(word as u64, random::mix(site.wrapping_add(step)));
        }
    }
}
