//! The extension module `batchformer._core`.

mod arguments;
mod cuda;
mod cuda_choice;
mod exceptions;
mod ops;
mod relations;
mod table;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(ops::encoder_layer_forward, module)?)?;
    module.add_function(wrap_pyfunction!(ops::encoder_layer_backward, module)?)?;
    module.add_function(wrap_pyfunction!(ops::empty_cache, module)?)?;
    module.add_function(wrap_pyfunction!(ops::path_counts, module)?)?;
    module.add_function(wrap_pyfunction!(ops::aten_alone, module)?)?;
    module.add_function(wrap_pyfunction!(ops::instruction_set, module)?)?;
    module.add_function(wrap_pyfunction!(ops::fma_flops, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_choice::cuda_reason, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_choice::cuda_self_check, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_choice::cuda_decisions, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_choice::cuda_switch, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_choice::cuda_sources, module)?)?;
    module.add_function(wrap_pyfunction!(cuda::cuda_hash, module)?)?;
    module.add_function(wrap_pyfunction!(cuda::cuda_status, module)?)?;
    module.add_function(wrap_pyfunction!(cuda::emulate_cuda, module)?)?;
    module.add_function(wrap_pyfunction!(cuda::launch_cuda, module)?)?;
    module.add_function(wrap_pyfunction!(relations::relations, module)?)?;
    module.add_function(wrap_pyfunction!(table::parameter_facts, module)?)?;
    module.add_function(wrap_pyfunction!(table::config_facts, module)?)?;
    module.add_function(wrap_pyfunction!(table::saved_facts, module)?)?;
    module.add_function(wrap_pyfunction!(table::passed, module)?)?;
    module.add_function(wrap_pyfunction!(table::op_devices, module)?)?;
    module.add_function(wrap_pyfunction!(table::torch_is_faster, module)?)?;
    module.add_function(wrap_pyfunction!(table::saved_dtypes, module)?)?;
    module.add_function(wrap_pyfunction!(table::saved_kept, module)?)
}
