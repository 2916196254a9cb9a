//! The table of the op as data: what Python makes the schema and the fake tensors from.

use pyo3::prelude::*;

use super::arguments::{config as from_python, PyConfig, PyNeeds};
use crate::call::{Needs, Piece, Shape, CONFIG, PARAMETERS, SAVED};
use crate::layer::{self, OP_DEVICES};

/// `(times, letter)` for each axis: 3C is (3, "C").
type PyShape = Vec<(i64, &'static str)>;

fn shape(shape: Shape) -> PyShape {
    shape.iter().map(|&(times, axis)| (times, axis.letter())).collect()
}

/// `(name, shape, optional)` of each parameter.
#[pyfunction]
pub fn parameter_facts() -> Vec<(&'static str, PyShape, bool)> {
    PARAMETERS.iter().map(|fact| (fact.name, shape(fact.shape), fact.optional)).collect()
}

/// `(name, type)` of each field of the config.
#[pyfunction]
pub fn config_facts() -> [(&'static str, &'static str); CONFIG.len()] {
    CONFIG
}

/// `(name, shape)` of each tensor that the forward may leave.
#[pyfunction]
pub fn saved_facts() -> Vec<(&'static str, PyShape)> {
    SAVED.iter().map(|fact| (fact.name, shape(fact.shape))).collect()
}

/// Whether the backward continues past `in_proj`, `out_proj`, linear1 and linear2, and whether through attention.
#[pyfunction]
pub fn passed(config: PyConfig, needs: PyNeeds) -> PyResult<([bool; 4], bool)> {
    let config = from_python(config)?;
    let needs = Needs::new(needs.map(|need| need != 0), config.norm_first);
    let linears = [Piece::InProj, Piece::OutProj, Piece::Linear1, Piece::Linear2];
    Ok((linears.map(|linear| needs.pass(linear)), needs.reach(Piece::InProj)))
}

/// Types of devices whose tensors the modules hand to the op.
#[pyfunction]
pub fn op_devices() -> [&'static str; OP_DEVICES.len()] {
    OP_DEVICES
}

/// `(dtype, channels, divisor)`: on the CPU torch's own layer is faster in this half precision with C above `channels` and
/// fewer samples than C² / `divisor`.
#[pyfunction]
pub fn torch_is_faster() -> Vec<(&'static str, i64, i64)> {
    layer::torch_is_faster().map(|rule| (rule.dtype, rule.channels, rule.divisor)).collect()
}

/// Whose dtype each has on a device of this type, in a layer with hidden units or without: that of "x", of the
/// "linears", or in which "sums" are.
#[pyfunction]
pub fn saved_dtypes(device_type: &str, has_hidden: bool) -> [&'static str; SAVED.len()] {
    let path = layer::of_device_type(device_type, has_hidden);
    SAVED.each_ref().map(|fact| path.saved_dtype(fact).name())
}

/// Which of them it leaves.
#[pyfunction]
pub fn saved_kept(
    config: PyConfig,
    needs: PyNeeds,
    positions: i64,
) -> PyResult<[bool; SAVED.len()]> {
    let config = from_python(config)?;
    let needs = Needs::new(needs.map(|need| need != 0), config.norm_first);
    Ok(SAVED.each_ref().map(|fact| fact.is_kept(&config, &needs, positions)))
}
