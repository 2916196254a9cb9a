//! From Python's tuples to the layer's structs.

use pyo3_tch::PyTensor;

use crate::call::{Config, Dropout, Input, Needs, NEEDS, PARAMETERS};
use crate::layer::{self, LayerError};

/// `batchformer.ops.Parameters`, in its order.
pub type PyParameters = [Option<PyTensor>; PARAMETERS.len()];
/// `batchformer.ops.Config`, in its order.
pub type PyConfig = (i64, [f64; 4], String, bool, bool, [f64; 2]);

/// Flags of x, of each parameter and of keys and values; torch's tracer takes lists of numbers, but none of bools.
pub type PyNeeds = [i64; NEEDS];

pub fn config(config: PyConfig) -> Result<Config, LayerError> {
    let (nhead, dropout, activation, norm_first, batch_first, layer_norm_eps) = config;
    let [attention, hidden, residual1, residual2] = dropout;
    Ok(Config {
        nhead,
        dropout: Dropout { attention, hidden, residual1, residual2 },
        activation: layer::activation(&activation)?,
        norm_first,
        batch_first,
        layer_norm_eps,
    })
}

/// The arguments that forward and backward share.
#[allow(clippy::too_many_arguments)] // those of the op
pub fn input(
    x: PyTensor,
    parameters: PyParameters,
    keys_values: Option<PyTensor>,
    key_count: Option<PyTensor>,
    seed: Option<PyTensor>,
    config: PyConfig,
    needs: PyNeeds,
    tf32: bool,
) -> Result<Input, LayerError> {
    let config = self::config(config)?;
    Ok(Input {
        x: x.0,
        params: layer::params(parameters.map(|parameter| Some(parameter?.0)))?,
        keys_values: keys_values.map(|keys_values| keys_values.0),
        key_count: key_count.map(|count| count.0),
        seed: seed.map(|seed| seed.0),
        needs: Needs::new(needs.map(|need| need != 0), config.norm_first),
        config,
        tf32,
    })
}
