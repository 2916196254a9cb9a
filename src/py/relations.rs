//! The attention probabilities as a NumPy array.

use numpy::ndarray::ArrayD;
use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use tch::kind::Element;
use tch::TchError;

use super::ops::outside_gil;
use crate::call::Linear;
use crate::layer::{self, LayerError};

/// `[H, N, N]` in float32, float64 for float64 input.
#[pyfunction]
pub fn relations(
    py: Python<'_>,
    x: PyTensor,
    in_proj_weight: PyTensor,
    in_proj_bias: Option<PyTensor>,
    nhead: i64,
) -> PyResult<Bound<'_, PyAny>> {
    let in_proj = Linear { weight: in_proj_weight.0, bias: in_proj_bias.map(|bias| bias.0) };
    let relations = outside_gil(py, move || layer::relations(&x.0, &in_proj, nhead))?;
    Ok(match relations.f_kind().map_err(LayerError::from)? {
        tch::Kind::Double => into_array::<f64>(&relations)?.into_pyarray(py).into_any(),
        _ => into_array::<f32>(&relations)?.into_pyarray(py).into_any(),
    })
}

fn into_array<T: Element + Copy>(tensor: &tch::Tensor) -> Result<ArrayD<T>, LayerError> {
    let count = tensor.numel();
    let mut elements = Vec::new();
    let reserved = elements.try_reserve_exact(count);
    reserved.map_err(|_| LayerError::OutOfMemory { bytes: count * size_of::<T>() })?;
    elements.resize(count, T::ZERO);
    tensor.f_copy_data(&mut elements, count).map_err(LayerError::from)?;
    let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
    Ok(ArrayD::from_shape_vec(shape, elements).map_err(TchError::from)?)
}
