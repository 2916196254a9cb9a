//! The contract of the op, checked before anything is computed.

use tch::{Device, Kind, Tensor};

use super::path::Path;
use super::LayerError;
use crate::call::{
    Activation, Config, Dims, Input, Linear, ParameterFact, Params, Saved, SavedTensors,
    PARAMETERS, SAVED,
};

/// The sizes of the call, if `input` is one that the kernels can run.
pub fn input(input: &Input) -> Result<Dims, LayerError> {
    let Input { x, params, keys_values, key_count, seed, config, .. } = input;
    check_floating("x", x)?;
    check_memory("x", x)?;
    let channels = square_size("out_proj_weight", &params.out_proj.weight)?;
    let (first, second) = token_shape(x, channels, config)?;
    let (samples, positions) = if config.batch_first { (second, first) } else { (first, second) };
    check_heads(config.nhead, channels)?;
    check_dropout(config, seed.as_ref())?;
    let feedforward = params.linear1.weight.size().first().copied().unwrap_or(0);
    let (keys, counted_keys) = match keys_values {
        None if key_count.is_some() => return Err(LayerError::NoKeysToCount),
        None => (samples, samples),
        Some(keys_values) => {
            let keys = keys_shape(keys_values, positions, channels, config)?;
            (keys, counted(key_count.as_ref(), keys)?)
        }
    };
    let dims = Dims {
        samples,
        positions,
        keys,
        counted_keys,
        own_keys: keys_values.is_none(),
        channels,
        heads: config.nhead,
        feedforward,
        batch_first: config.batch_first,
    };
    for (fact, tensor) in params.present() {
        check_shape(fact.name, tensor, &dims.shape(fact.shape))?;
        check_memory(fact.name, tensor)?;
    }
    check_dtypes(x, params)?;
    if let Some(keys_values) = keys_values {
        let expected = params.in_proj.weight.f_kind()?;
        check_dtype("keys_values", keys_values, "in_proj_weight", expected)?;
        check_device("keys_values", keys_values, x)?;
        check_memory("keys_values", keys_values)?;
    }
    check_devices(x, params, seed.as_ref())?;
    check_needs(input)?;
    Ok(dims)
}

/// The parameters from the list that the op passes on, where only a bias may be missing.
pub fn params(tensors: [Option<Tensor>; PARAMETERS.len()]) -> Result<Params<Tensor>, LayerError> {
    Params::from_options(tensors).map_err(|argument| LayerError::Absent { argument })
}

pub fn activation(name: &str) -> Result<Activation, LayerError> {
    Activation::ALL
        .into_iter()
        .find(|activation| activation.name() == name)
        .ok_or_else(|| LayerError::Activation { got: name.to_owned() })
}

/// The gradient of the output is like the output, which is like `x`.
pub fn grad_y(grad_y: &Tensor, x: &Tensor) -> Result<(), LayerError> {
    check_shape("grad_y", grad_y, &x.size())?;
    check_dtype("grad_y", grad_y, "x", x.f_kind()?)?;
    check_device("grad_y", grad_y, x)?;
    check_memory("grad_y", grad_y)
}

/// What a forward of this input would have kept, from the list that the op passes on.
pub fn saved(
    tensors: Vec<Tensor>,
    input: &Input,
    dims: &Dims,
    path: Path,
) -> Result<SavedTensors, LayerError> {
    let kept =
        SAVED.each_ref().map(|fact| fact.is_kept(&input.config, &input.needs, dims.positions));
    let (expected, got) = (kept.into_iter().filter(|&kept| kept).count(), tensors.len());
    if expected != got {
        return Err(LayerError::SavedCount { expected, got });
    }
    let mut rest = tensors.into_iter();
    let saved = Saved::from_array(kept.map(|kept| if kept { rest.next() } else { None }));
    let kinds = input.kinds()?;
    for (fact, tensor) in SAVED.iter().zip(saved.as_ref().into_array()) {
        let Some(tensor) = tensor else { continue };
        check_shape(fact.name, tensor, &dims.shape(fact.shape))?;
        check_dtype(fact.name, tensor, "the forward", path.saved_dtype(fact).kind(kinds))?;
        check_device(fact.name, tensor, &input.x)?;
        check_memory(fact.name, tensor)?;
    }
    Ok(saved)
}

/// The sizes of `relations`: `x` `[N, C]`, one position.
pub fn relations(x: &Tensor, in_proj: &Linear, nhead: i64) -> Result<Dims, LayerError> {
    check_floating("x", x)?;
    let channels = last_size(&in_proj.weight);
    let &[samples, width] = x.size().as_slice() else {
        return Err(shape_error("x", format!("[N, {channels}]"), x));
    };
    if width != channels {
        return Err(shape_error("x", format!("[N, {channels}]"), x));
    }
    check_heads(nhead, channels)?;
    check_floating("in_proj_weight", &in_proj.weight)?;
    let kind = in_proj.weight.f_kind()?;
    check_shape("in_proj_weight", &in_proj.weight, &[3 * channels, channels])?;
    check_dtype("x", x, "in_proj_weight", kind)?;
    check_device("in_proj_weight", &in_proj.weight, x)?;
    if let Some(bias) = &in_proj.bias {
        check_shape("in_proj_bias", bias, &[3 * channels])?;
        check_dtype("in_proj_bias", bias, "in_proj_weight", kind)?;
        check_device("in_proj_bias", bias, x)?;
    }
    Ok(Dims {
        samples,
        positions: 1,
        keys: samples,
        counted_keys: samples,
        own_keys: true,
        channels,
        heads: nhead,
        feedforward: channels,
        batch_first: false,
    })
}

/// C, of a weight `[C, C]`.
fn square_size(argument: &'static str, weight: &Tensor) -> Result<i64, LayerError> {
    match *weight.size().as_slice() {
        [rows, columns] if rows == columns => Ok(columns),
        _ => Err(shape_error(argument, "[C, C]".to_owned(), weight)),
    }
}

fn token_shape(x: &Tensor, channels: i64, config: &Config) -> Result<(i64, i64), LayerError> {
    let letters = if config.batch_first { "L, N" } else { "N, L" };
    let expected = || format!("[{letters}, {channels}]");
    let &[first, second, width] = x.size().as_slice() else {
        return Err(shape_error("x", expected(), x));
    };
    if width != channels {
        return Err(shape_error("x", expected(), x));
    }
    if first == 0 || second == 0 {
        let expected = format!("{} with at least one sample and one position", expected());
        return Err(shape_error("x", expected, x));
    }
    Ok((first, second))
}

/// K, of keys and values `[K, L, 2C]` or `[L, K, 2C]`.
fn keys_shape(
    keys_values: &Tensor,
    positions: i64,
    channels: i64,
    config: &Config,
) -> Result<i64, LayerError> {
    let width = 2 * channels;
    let expected = || {
        let letters =
            if config.batch_first { format!("{positions}, K") } else { format!("K, {positions}") };
        format!("[{letters}, {width}] with at least one key")
    };
    match (keys_values.size().as_slice(), config.batch_first) {
        (&[keys, second, last], false) | (&[second, keys, last], true)
            if keys > 0 && second == positions && last == width =>
        {
            Ok(keys)
        }
        _ => Err(shape_error("keys_values", expected(), keys_values)),
    }
}

/// How many of the keys count.
fn counted(key_count: Option<&Tensor>, keys: i64) -> Result<i64, LayerError> {
    let Some(count) = key_count else { return Ok(keys) };
    let got = count.f_kind().ok();
    if count.dim() != 0 || got != Some(Kind::Int64) || count.device() != Device::Cpu {
        return Err(LayerError::KeyCount { got, shape: count.size(), device: count.device() });
    }
    match count.f_int64_value(&[])? {
        counted if (1..=keys).contains(&counted) => Ok(counted),
        got => Err(LayerError::CountedKeys { keys, got }),
    }
}

fn check_heads(nhead: i64, channels: i64) -> Result<(), LayerError> {
    if nhead < 1 || channels < 1 || channels % nhead != 0 {
        return Err(LayerError::Heads { nhead, channels });
    }
    Ok(())
}

fn check_dropout(config: &Config, seed: Option<&Tensor>) -> Result<(), LayerError> {
    for (place, p) in config.dropout.places() {
        if !(0.0..=1.0).contains(&p) {
            return Err(LayerError::Probability { place, got: p });
        }
        if p > 0.0 && seed.is_none() {
            return Err(LayerError::NoSeed);
        }
    }
    match seed {
        Some(seed) if seed.dim() != 0 || seed.f_kind().ok() != Some(Kind::Int64) => {
            Err(LayerError::Seed { got: seed.f_kind().ok(), shape: seed.size() })
        }
        _ => Ok(()),
    }
}

/// One dtype everywhere, or what autocast makes of it: the linears in half precision, the norms in float32,
/// `x` in either.
fn check_dtypes(x: &Tensor, params: &Params<Tensor>) -> Result<(), LayerError> {
    check_floating("in_proj_weight", &params.in_proj.weight)?;
    let x_kind = x.f_kind()?;
    let linear_kind = params.in_proj.weight.f_kind()?;
    let half = matches!(linear_kind, Kind::Half | Kind::BFloat16);
    if half && x_kind == Kind::Float {
        // From autocast alone: the module refuses it elsewhere.
        check_dtype("norm1_weight", &params.norm1.weight, "x", Kind::Float)?;
    }
    let autocast = half
        && params.norm1.weight.f_kind().ok() == Some(Kind::Float)
        && (x_kind == Kind::Float || x_kind == linear_kind);
    if !autocast {
        check_dtype("x", x, "in_proj_weight", linear_kind)?;
    }
    for (fact, tensor) in params.present() {
        if autocast && fact.of_norm {
            check_dtype(fact.name, tensor, "norm1_weight", Kind::Float)?;
        } else {
            check_dtype(fact.name, tensor, "in_proj_weight", linear_kind)?;
        }
    }
    Ok(())
}

fn check_devices(
    x: &Tensor,
    params: &Params<Tensor>,
    seed: Option<&Tensor>,
) -> Result<(), LayerError> {
    let tensors = params.present().map(|(fact, tensor)| (fact.name, tensor));
    tensors
        .chain(seed.map(|seed| ("seed", seed)))
        .try_for_each(|(name, t)| check_device(name, t, x))
}

/// What is not there has no gradient.
fn check_needs(Input { params, keys_values, needs, .. }: &Input) -> Result<(), LayerError> {
    if needs.keys_values && keys_values.is_none() {
        return Err(LayerError::NeedsAbsent { argument: "keys_values" });
    }
    let present = |fact: &ParameterFact| params.present().any(|(each, _)| each.name == fact.name);
    let mut needed = PARAMETERS.iter().zip(needs.params.into_array());
    match needed.find(|(fact, needed)| *needed && !present(fact)) {
        Some((fact, _)) => Err(LayerError::NeedsAbsent { argument: fact.name }),
        None => Ok(()),
    }
}

fn check_floating(argument: &'static str, tensor: &Tensor) -> Result<(), LayerError> {
    match tensor.f_kind().ok() {
        Some(Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) => Ok(()),
        got => Err(LayerError::NotFloating { argument, got }),
    }
}

fn check_dtype(
    argument: &'static str,
    tensor: &Tensor,
    reference: &'static str,
    expected: Kind,
) -> Result<(), LayerError> {
    let got = tensor.f_kind().ok();
    if got == Some(expected) {
        return Ok(());
    }
    Err(LayerError::Dtype { argument, expected, reference, got })
}

fn check_device(argument: &'static str, tensor: &Tensor, x: &Tensor) -> Result<(), LayerError> {
    let (expected, got) = (x.device(), tensor.device());
    if got == expected {
        return Ok(());
    }
    Err(LayerError::Device { argument, expected, got })
}

/// A tensor whose storage was freed has a null pointer, which neither a slice nor a kernel may start from.
fn check_memory(argument: &'static str, tensor: &Tensor) -> Result<(), LayerError> {
    let elements = tensor.numel();
    if elements > 0 && tensor.data_ptr().is_null() {
        return Err(LayerError::NoMemory { argument, elements });
    }
    Ok(())
}

fn check_shape(argument: &'static str, tensor: &Tensor, shape: &[i64]) -> Result<(), LayerError> {
    if tensor.size() == shape {
        return Ok(());
    }
    Err(shape_error(argument, format!("{shape:?}"), tensor))
}

fn shape_error(argument: &'static str, expected: String, tensor: &Tensor) -> LayerError {
    LayerError::Shape { argument, expected, got: tensor.size() }
}

fn last_size(tensor: &Tensor) -> i64 {
    tensor.size().last().copied().unwrap_or(0)
}
