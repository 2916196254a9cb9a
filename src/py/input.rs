//! From Python's named tuples to the layer's structs.

use pyo3::prelude::*;
use pyo3_tch::PyTensor;

use crate::call::{Activation, Config, Dropout, Input, Linear, Norm, Params};
use crate::layer::LayerError;

/// `batchformer.ops.Parameters`
#[derive(FromPyObject)]
pub struct PyParameters {
    in_proj_weight: PyTensor,
    in_proj_bias: Option<PyTensor>,
    out_proj_weight: PyTensor,
    out_proj_bias: Option<PyTensor>,
    linear1_weight: PyTensor,
    linear1_bias: Option<PyTensor>,
    linear2_weight: PyTensor,
    linear2_bias: Option<PyTensor>,
    norm1_weight: PyTensor,
    norm1_bias: Option<PyTensor>,
    norm2_weight: PyTensor,
    norm2_bias: Option<PyTensor>,
}

/// `batchformer.ops.Config`
#[derive(FromPyObject)]
pub struct PyConfig {
    nhead: i64,
    dropout: [f64; 4],
    activation: String,
    norm_first: bool,
    batch_first: bool,
    layer_norm_eps: [f64; 2],
}

impl From<PyParameters> for Params {
    fn from(py: PyParameters) -> Self {
        let linear = |weight: PyTensor, bias: Option<PyTensor>| Linear {
            weight: weight.0,
            bias: bias.map(|bias| bias.0),
        };
        let norm = |weight: PyTensor, bias: Option<PyTensor>| Norm {
            weight: weight.0,
            bias: bias.map(|bias| bias.0),
        };
        Params {
            in_proj: linear(py.in_proj_weight, py.in_proj_bias),
            out_proj: linear(py.out_proj_weight, py.out_proj_bias),
            linear1: linear(py.linear1_weight, py.linear1_bias),
            linear2: linear(py.linear2_weight, py.linear2_bias),
            norm1: norm(py.norm1_weight, py.norm1_bias),
            norm2: norm(py.norm2_weight, py.norm2_bias),
        }
    }
}

impl TryFrom<PyConfig> for Config {
    type Error = LayerError;

    fn try_from(py: PyConfig) -> Result<Self, LayerError> {
        let [attention, hidden, residual1, residual2] = py.dropout;
        let activation = match py.activation.as_str() {
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            _ => return Err(LayerError::Activation { got: py.activation }),
        };
        Ok(Config {
            nhead: py.nhead,
            dropout: Dropout { attention, hidden, residual1, residual2 },
            activation,
            norm_first: py.norm_first,
            batch_first: py.batch_first,
            layer_norm_eps: py.layer_norm_eps,
        })
    }
}

/// The arguments that forward and backward share.
pub fn input(
    x: PyTensor,
    parameters: PyParameters,
    seed: Option<PyTensor>,
    config: PyConfig,
) -> Result<Input, LayerError> {
    Ok(Input {
        x: x.0,
        params: parameters.into(),
        seed: seed.map(|seed| seed.0),
        config: config.try_into()?,
    })
}
