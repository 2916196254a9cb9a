//! The encoder layer's two ops and the question which path ran them. The GIL is released here.

use pyo3::prelude::*;
use pyo3_tch::PyTensor;

use super::input::{input, PyConfig, PyParameters};
use crate::call::Saved;
use crate::layer;

/// `(y, *saved)`; without `save`, `(y,)`.
#[pyfunction]
pub fn encoder_layer_forward(
    py: Python<'_>,
    x: PyTensor,
    parameters: PyParameters,
    seed: Option<PyTensor>,
    config: PyConfig,
    save: bool,
) -> PyResult<Vec<PyTensor>> {
    let input = input(x, parameters, seed, config)?;
    let (y, saved) = py.allow_threads(move || layer::catch(|| layer::forward(&input, save)))?;
    let saved = saved.into_iter().flat_map(Saved::into_tensors);
    Ok(std::iter::once(y).chain(saved).map(PyTensor).collect())
}

/// `(grad_x, *grad_parameters)`, without the biases that are not there.
#[pyfunction]
pub fn encoder_layer_backward(
    py: Python<'_>,
    grad_y: PyTensor,
    x: PyTensor,
    parameters: PyParameters,
    seed: Option<PyTensor>,
    saved: [PyTensor; Saved::COUNT],
    config: PyConfig,
) -> PyResult<Vec<PyTensor>> {
    let input = input(x, parameters, seed, config)?;
    let saved = Saved::from_tensors(saved.map(|tensor| tensor.0));
    let grads =
        py.allow_threads(move || layer::catch(|| layer::backward(&grad_y.0, &input, &saved)))?;
    let params = grads.params.into_tensors();
    Ok(std::iter::once(grads.x).chain(params).map(PyTensor).collect())
}

/// How often each path has run a forward or a backward in this process, by its name.
#[pyfunction]
pub fn path_counts() -> [(&'static str, u64); 2] {
    layer::path_counts()
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
