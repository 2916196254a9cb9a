//! Inverted dropout (Srivastava et al., 2014) with the masks of `call::random`.

use tch::{Device, Kind, Tensor};

use super::random;
use super::Result;
use crate::call::random::{scale, threshold, Site};
use crate::call::Dims;

/// Where one site drops and by how much the rest is scaled.
pub struct TensorMask {
    kept: KeptElements,
    scale: f64,
}

enum KeptElements {
    All,
    None,
    /// Bool, of the shape of what it is applied to.
    Some(Tensor),
}

impl TensorMask {
    /// The mask of a token tensor `[M, width]`, position after position.
    pub fn of_tokens(
        seed: Option<&Tensor>,
        site: Site,
        p: f64,
        dims: &Dims,
        width: i64,
        device: Device,
    ) -> Result<Self> {
        let Dims { samples, positions, .. } = *dims;
        Self::new(seed, site, p, &[samples, positions, width], device)?
            .map(|kept| kept.f_transpose(0, 1)?.f_reshape([dims.tokens(), width]))
    }

    /// The mask of the attention probabilities `[L H, N, K]`, of the keys that count.
    pub fn of_probabilities(
        seed: Option<&Tensor>,
        p: f64,
        dims: &Dims,
        device: Device,
    ) -> Result<Self> {
        let shape = [dims.positions * dims.heads, dims.samples, dims.keys];
        Self::new(seed, Site::Attention, p, &shape, device)?
            .map(|kept| kept.f_narrow(-1, 0, dims.counted_keys))
    }

    /// The scale of a mask that need not be drawn, as what it dropped is known from elsewhere.
    pub fn scale_only(p: f64) -> Self {
        Self { kept: KeptElements::All, scale: scale(threshold(p)) }
    }

    fn new(
        seed: Option<&Tensor>,
        site: Site,
        p: f64,
        shape: &[i64],
        device: Device,
    ) -> Result<Self> {
        let threshold = threshold(p);
        let kept = match seed {
            _ if threshold > u32::from(u16::MAX) => KeptElements::None,
            Some(seed) if threshold > 0 => {
                let count: i64 = shape.iter().product();
                let words = random::words(seed, site, (count + 3) / 4, device)?;
                // libtorch has no unsigned compare: 0..65535 is read as -32768..32767 after a shift by half.
                let bits = words.f_view_dtype(Kind::Int16)?.f_narrow(0, 0, count)?;
                let bits = bits.f_bitwise_xor(i64::from(i16::MIN))?;
                KeptElements::Some(
                    bits.f_ge(i64::from(threshold) + i64::from(i16::MIN))?.f_view(shape)?,
                )
            }
            _ => KeptElements::All,
        };
        Ok(Self { kept, scale: scale(threshold) })
    }

    fn map(self, reorder: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<Self> {
        let kept = match self.kept {
            KeptElements::Some(kept) => KeptElements::Some(reorder(kept)?),
            kept => kept,
        };
        Ok(Self { kept, ..self })
    }

    /// What a kept element is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// `x`, dropped and scaled; the same computes its gradient.
    pub fn apply(&self, x: Tensor) -> Result<Tensor> {
        match &self.kept {
            KeptElements::All => Ok(x),
            KeptElements::None => x.f_mul_scalar(0.0), // NaN stays, as in torch's dropout
            KeptElements::Some(kept) => x.f_mul(kept)?.f_mul_scalar(self.scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: Dims = Dims {
        samples: 3,
        positions: 5,
        keys: 3,
        counted_keys: 3,
        own_keys: true,
        channels: 7,
        heads: 1,
        feedforward: 7,
        batch_first: false,
    };

    fn mask(p: f64, dims: &Dims) -> Tensor {
        let seed = Tensor::from(11_i64);
        let mask =
            TensorMask::of_tokens(Some(&seed), Site::Hidden, p, dims, 7, Device::Cpu).unwrap();
        mask.apply(Tensor::ones([15, 7], (Kind::Double, Device::Cpu))).unwrap()
    }

    #[test]
    fn an_element_is_counted_sample_after_sample_and_lies_position_after_position() {
        let (samples, positions, width) = (DIMS.samples, DIMS.positions, DIMS.channels);
        let by_position = mask(0.5, &DIMS).view([positions, samples, width]);
        let one_by_one = Dims { samples: samples * positions, positions: 1, ..DIMS };
        let by_sample = mask(0.5, &one_by_one).view([samples, positions, width]);
        assert_eq!(by_position, by_sample.transpose(0, 1));
    }

    #[test]
    fn a_probability_that_rounds_to_nothing_or_to_all_does_that() {
        let options = (Kind::Double, Device::Cpu);
        assert_eq!(mask(1e-6, &DIMS), Tensor::ones([15, 7], options));
        assert_eq!(mask(1.0 - 1e-6, &DIMS), Tensor::zeros([15, 7], options));
    }
}
