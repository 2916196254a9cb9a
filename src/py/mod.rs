//! The extension module `batchformer._core`.

mod encoder_layer;
mod error;
mod input;
mod relations;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(encoder_layer::encoder_layer_forward, module)?)?;
    module.add_function(wrap_pyfunction!(encoder_layer::encoder_layer_backward, module)?)?;
    module.add_function(wrap_pyfunction!(encoder_layer::path_counts, module)?)?;
    module.add_function(wrap_pyfunction!(encoder_layer::instruction_set, module)?)?;
    module.add_function(wrap_pyfunction!(relations::relations, module)?)
}
