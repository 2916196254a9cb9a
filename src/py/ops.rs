//! The layer's two ops and the question which path ran them. The GIL is released here.

use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use tch::Kind;

use super::arguments::{input, PyConfig, PyNeeds, PyParameters};
use crate::layer::{self, LayerError};

/// Runs `work` without the GIL; a panic, or a lack of memory, becomes an error like others.
pub fn outside_gil<R: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<R, LayerError> + Send,
) -> PyResult<R> {
    Ok(py.allow_threads(|| layer::catch(work))?)
}

/// y, and the tensors that the backward takes.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // those of the op
pub fn encoder_layer_forward(
    py: Python<'_>,
    x: PyTensor,
    parameters: PyParameters,
    keys_values: Option<PyTensor>,
    key_count: Option<PyTensor>,
    seed: Option<PyTensor>,
    config: PyConfig,
    needs: PyNeeds,
    tf32: bool,
) -> PyResult<(PyTensor, Vec<PyTensor>)> {
    let input = input(x, parameters, keys_values, key_count, seed, config, needs, tf32)?;
    let (y, saved) = outside_gil(py, move || layer::forward(&input))?;
    Ok((PyTensor(y), saved.into_array().into_iter().flatten().map(PyTensor).collect()))
}

/// The gradients that are needed, in the order of the needs.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // those of the op
pub fn encoder_layer_backward(
    py: Python<'_>,
    grad_y: PyTensor,
    x: PyTensor,
    parameters: PyParameters,
    keys_values: Option<PyTensor>,
    key_count: Option<PyTensor>,
    seed: Option<PyTensor>,
    config: PyConfig,
    saved: Vec<PyTensor>,
    needs: PyNeeds,
    tf32: bool,
) -> PyResult<Vec<PyTensor>> {
    let input = input(x, parameters, keys_values, key_count, seed, config, needs, tf32)?;
    let saved = saved.into_iter().map(|tensor| tensor.0).collect();
    let grads = outside_gil(py, move || layer::backward(&grad_y.0, &input, saved))?;
    Ok(grads.into_tensors().map(PyTensor).collect())
}

/// How often each path has run a forward or a backward in this process, by its name.
#[pyfunction]
pub fn path_counts() -> [(&'static str, u64); 3] {
    layer::path_counts()
}

/// For tests: every call through libtorch, whose results the fused path is checked by.
#[pyfunction]
pub fn aten_alone(alone: bool) {
    layer::aten_alone(alone);
}

/// The instruction set that the fused path runs with in this process.
#[pyfunction]
pub fn instruction_set() -> &'static str {
    layer::instruction_set()
}

/// Gives back the memory that the fused path has kept for its next calls.
#[pyfunction]
pub fn empty_cache(py: Python<'_>) {
    py.allow_threads(layer::empty_cache);
}

/// The floating point operations of `rounds` rounds of fused multiply-adds in each of torch's threads.
#[pyfunction]
#[pyo3(signature = (rounds, *, double))]
pub fn fma_flops(py: Python<'_>, rounds: usize, double: bool) -> PyResult<usize> {
    let kind = if double { Kind::Double } else { Kind::Float };
    outside_gil(py, move || Ok(layer::fma_flops(kind, rounds)))
}
