//! The extension module `batchformer._core`.

mod exceptions;
mod input;
mod ops;
mod relations;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(ops::encoder_layer_forward, module)?)?;
    module.add_function(wrap_pyfunction!(ops::encoder_layer_backward, module)?)?;
    module.add_function(wrap_pyfunction!(ops::empty_cache, module)?)?;
    module.add_function(wrap_pyfunction!(ops::path_counts, module)?)?;
    module.add_function(wrap_pyfunction!(ops::instruction_set, module)?)?;
    module.add_function(wrap_pyfunction!(relations::relations, module)?)
}
