//! Compares a small layer by the kernels with libtorch's, with the same seed: kernels that differ are not run.

use tch::{Device, Kind, Tensor};

use super::{steps, Result, Signature};
use crate::aten;
use crate::call::random::Site;
use crate::call::{Activation, Config, Dims, Dropout, Input, Needs, Params, NEEDS, PARAMETERS};

const SAMPLES: i64 = 3;
const POSITIONS: i64 = 2;
/// Biases so large that no hidden unit is near 0, where rounding would decide what ReLU lets through.
const OFF_THE_KINK: f64 = 6.0;
/// Of the call with `keys_values`.
const KEYS: i64 = 5;

/// The largest relative difference of forward and backward, with the samples' own keys and with others, if rounding
/// explains it; else an error. With `tf32` attention runs in it.
pub fn run(of: &Signature, tf32: bool) -> std::result::Result<f64, String> {
    let mut largest = 0.0_f64;
    for own_keys in [true, false] {
        let error = difference(of, own_keys, tf32).map_err(|error| error.to_string())?;
        let bound = bound(of.linears);
        if error.is_nan() || error > bound {
            return Err(format!(
                "the kernels' result differs from libtorch's by {error:.1e}, more than {bound:.0e}"
            ));
        }
        largest = largest.max(error);
    }
    Ok(largest)
}

/// The largest relative difference, in the 2-norm, that rounding leaves with margin; a wrong mask gives about 1.
fn bound(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => 3e-2,
        Kind::Half => 1e-2,
        _ => 2e-3, // torch may allow TF32
    }
}

/// The largest over output and gradients.
fn difference(of: &Signature, own_keys: bool, tf32: bool) -> Result<f64> {
    let (input, dims) = small_call(of, own_keys)?;
    let grad_y = numbers(&input.x.size(), 100, 1.0, of.x, of.device)?;
    let (y, saved) = steps::forward(&input, &dims, tf32)?;
    let grads = steps::backward(&grad_y, &input, saved, &dims, tf32)?;
    let (expected_y, saved) = aten::steps::forward(&input, &dims)?;
    let expected = aten::steps::backward(&grad_y, &input, saved, &dims)?;
    let mut largest = relative(&y, &expected_y)?;
    for (grad, expected) in grads.into_tensors().zip(expected.into_tensors()) {
        largest = larger(largest, relative(&grad, &expected)?);
    }
    Ok(largest)
}

/// NaN is larger than any number, and stays.
fn larger(largest: f64, error: f64) -> f64 {
    if largest.is_nan() || error <= largest {
        largest
    } else {
        error
    }
}

fn relative(got: &Tensor, expected: &Tensor) -> Result<f64> {
    let expected = expected.f_to_kind(Kind::Double)?;
    let error = got.f_to_kind(Kind::Double)?.f_sub(&expected)?.f_norm()?;
    Ok(error.f_div(&expected.f_norm()?.f_clamp_min(1e-30)?)?.f_double_value(&[])?)
}

fn small_call(of: &Signature, own_keys: bool) -> Result<(Input, Dims)> {
    let dims = Dims {
        samples: SAMPLES,
        positions: POSITIONS,
        keys: if own_keys { SAMPLES } else { KEYS },
        counted_keys: if own_keys { SAMPLES } else { KEYS - 1 },
        own_keys,
        channels: of.channels,
        heads: of.heads,
        feedforward: of.feedforward,
        batch_first: false,
    };
    let mut params = Vec::with_capacity(PARAMETERS.len());
    for (index, fact) in PARAMETERS.iter().enumerate() {
        let shape = dims.shape(fact.shape);
        let kind = if fact.of_norm { of.norms } else { of.linears };
        let scale = if shape.len() == 2 { (3.0 / shape[1] as f64).sqrt() } else { 0.5 };
        let parameter = numbers(&shape, index as i64, scale, kind, of.device)?;
        params.push(Some(match fact.name {
            "linear1_bias" if !of.gelu => parameter.f_sign()?.f_mul_scalar(OFF_THE_KINK)?,
            _ if fact.of_norm => parameter.f_add_scalar(1.0)?,
            _ => parameter,
        }));
    }
    let params: [Option<Tensor>; PARAMETERS.len()] = std::array::from_fn(|i| params[i].take());
    let keys_values = [KEYS, POSITIONS, 2 * of.channels];
    let keys_values =
        (!own_keys).then(|| numbers(&keys_values, 50, 1.0, of.linears, of.device)).transpose()?;
    let mut needs = [true; NEEDS];
    needs[NEEDS - 1] = !own_keys;
    let p = 0.5;
    let input = Input {
        x: numbers(&[SAMPLES, POSITIONS, of.channels], 51, 1.0, of.x, of.device)?,
        params: Params::from_options(params)
            .map_err(|name| tch::TchError::Kind(format!("the self-check made no {name}")))?,
        key_count: (!own_keys).then(|| Tensor::from(KEYS - 1)),
        keys_values,
        seed: Some(Tensor::f_full([0_i64; 0], 1234, (Kind::Int64, of.device))?),
        config: Config {
            nhead: of.heads,
            dropout: Dropout { attention: p, hidden: p, residual1: p, residual2: p },
            activation: if of.gelu { Activation::Gelu } else { Activation::Relu },
            norm_first: of.norm_first,
            batch_first: false,
            layer_norm_eps: [1e-5; 2],
        },
        needs: Needs::new(needs, of.norm_first),
        tf32: false, // libtorch's products are as torch allows them
    };
    Ok((input, dims))
}

/// Numbers from -scale to scale, the same every time, that take nothing from torch's generators.
fn numbers(shape: &[i64], seed: i64, scale: f64, kind: Kind, device: Device) -> Result<Tensor> {
    let count: i64 = shape.iter().product();
    let words = aten::random_words(&Tensor::from(seed), Site::Hidden, (count + 3) / 4, device)?;
    let bits = words.f_view_dtype(Kind::Int16)?.f_narrow(0, 0, count)?.f_to_kind(Kind::Float)?;
    Ok(bits.f_mul_scalar(scale / 32768.0)?.f_view(shape)?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_the_largest_error() {
        assert!(larger(f64::NAN, 0.0).is_nan());
        assert!(larger(0.0, f64::NAN).is_nan());
        assert!(larger(1.0, 2.0) > 1.5 && larger(2.0, 1.0) > 1.5);
    }
}
