//! Which Python exception an error of the layer becomes.

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::PyErr;

use crate::cuda::CudaError;
use crate::layer::LayerError;

impl From<LayerError> for PyErr {
    fn from(error: LayerError) -> Self {
        let sentence = error.to_string();
        match error {
            LayerError::NotFloating { .. } | LayerError::Absent { .. } => {
                PyTypeError::new_err(sentence)
            }
            LayerError::Cuda(CudaError::Name { .. })
            | LayerError::Shape { .. }
            | LayerError::Dtype { .. }
            | LayerError::Device { .. }
            | LayerError::Heads { .. }
            | LayerError::Probability { .. }
            | LayerError::Activation { .. }
            | LayerError::NoSeed
            | LayerError::KeyCount { .. }
            | LayerError::CountedKeys { .. }
            | LayerError::NoKeysToCount
            | LayerError::NeedsAbsent { .. }
            | LayerError::SavedCount { .. }
            | LayerError::Seed { .. } => PyValueError::new_err(sentence),
            LayerError::Torch(_)
            | LayerError::NoMemory { .. }
            | LayerError::NoKernels { .. }
            | LayerError::Cuda(_)
            | LayerError::OutOfMemory { .. }
            | LayerError::Panic { .. } => PyRuntimeError::new_err(sentence),
        }
    }
}
