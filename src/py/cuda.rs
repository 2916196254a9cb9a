//! CUDA kernels for tests and reports: launch one, set an emulator, describe what is installed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3_tch::PyTensor;
use tch::{Device, Tensor};

use super::ops::outside_gil;
use crate::cuda::{self, Access, Arg, CudaError, Define, Emulator, Kernel, RawArg, Source};
use crate::layer::LayerError;

/// Facts about CUDA by name; None for what is missing, "error" says why.
#[pyfunction]
pub fn cuda_status(py: Python<'_>) -> BTreeMap<&'static str, Option<String>> {
    py.allow_threads(cuda::status).into_iter().collect()
}

/// Calls `callback` for each launch on CPU tensors with the names of source and kernel, the defines, grid, block,
/// shared memory and, for each argument, `(access, address, bytes)`, None, or the bytes of a value. None removes it.
#[pyfunction]
pub fn emulate_cuda(py: Python<'_>, callback: Option<Py<PyAny>>) {
    let emulator = callback.map(|callback| -> Emulator {
        Box::new(move |kernel, args| {
            Python::with_gil(|py| call(py, &callback, kernel, args))
                .map_err(|error| error.to_string())
        })
    });
    py.allow_threads(|| cuda::set_emulator(emulator));
}

fn call(py: Python<'_>, callback: &Py<PyAny>, kernel: &Kernel, args: &[RawArg]) -> PyResult<()> {
    let Kernel { source, name, defines, grid, block, shared } = kernel;
    let args: PyResult<Vec<_>> = args.iter().map(|arg| argument(py, arg)).collect();
    let define = |(name, value): &(&'static str, Define)| (*name, value.to_string());
    let defines: Vec<_> = defines.iter().map(define).collect();
    let launch = (source.name(), *name, defines, *grid, *block, *shared, args?);
    callback.call1(py, launch).map(|_| ())
}

fn argument<'py>(py: Python<'py>, arg: &RawArg) -> PyResult<Bound<'py, PyAny>> {
    Ok(match arg {
        RawArg::Memory { access, address, bytes } => {
            let access = match access {
                Access::In => "in",
                Access::Out => "out",
                Access::InOut => "inout",
            };
            (access, address, bytes).into_pyobject(py)?.into_any()
        }
        RawArg::Null => py.None().into_bound(py),
        RawArg::Value(bytes) => PyBytes::new(py, bytes).into_any(),
    })
}

/// The hash of the text of a source and its defines: a changed kernel has another.
#[pyfunction]
pub fn cuda_hash(source: &str, defines: Vec<(String, String)>) -> PyResult<String> {
    let none = (source.to_owned(), String::new(), defines, [0; 3], 0, 0);
    Ok(kernel(none)?.hash())
}

/// Source, name, defines, grid, block, shared memory.
pub type PyKernel = (String, String, Vec<(String, String)>, [u32; 3], u32, u32);

/// For tests: the launch of one kernel, `times` times, on the device of that index, or by the emulator if it is None. The
/// arguments are `("in", tensor)`, `("out", tensor)`, `("inout", tensor)`, `("null", None)`, `("i32", 1)`, ..
/// and `("struct", [1, 2])`.
#[pyfunction]
#[pyo3(signature = (device, kernel, arguments, times = 1))]
pub fn launch_cuda(
    py: Python<'_>,
    device: Option<usize>,
    kernel: PyKernel,
    arguments: Vec<Owned>,
    times: usize,
) -> PyResult<()> {
    let device = device.map_or(Device::Cpu, Device::Cuda);
    let kernel = self::kernel(kernel)?;
    outside_gil(py, move || {
        let args: Vec<Arg> = arguments.iter().map(Owned::arg).collect();
        (0..times).try_for_each(|_| Ok(cuda::launch(device, &kernel, &args)?))
    })
}

fn kernel((source, name, defines, grid, block, shared): PyKernel) -> Result<Kernel, LayerError> {
    let known = Source::ALL.into_iter().find(|known| known.name() == source);
    let legal = Source::ALL.map(Source::name).join(", ");
    let source = known.ok_or(CudaError::Name { argument: "source", legal, got: source })?;
    let define = |(name, value): (String, String)| {
        let number = value.parse().map(Define::Number);
        (lasting(name), number.unwrap_or_else(|_| Define::Element(lasting(value))))
    };
    let defines = defines.into_iter().map(define).collect();
    Ok(Kernel { source, name: lasting(name), defines, grid, block, shared })
}

/// The same text for as long as the process runs, once for each text.
fn lasting(name: String) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    if let Some(known) = names.get(name.as_str()) {
        return known;
    }
    let name: &'static str = name.leak();
    names.insert(name);
    name
}

/// An [`Arg`] that is not borrowed.
pub enum Owned {
    In(Tensor),
    Out(Tensor),
    InOut(Tensor),
    Null,
    I32(i32),
    U32(u32),
    F32(f32),
    I64(i64),
    Struct(Vec<i32>),
}

impl<'py> FromPyObject<'py> for Owned {
    fn extract_bound(argument: &Bound<'py, PyAny>) -> PyResult<Self> {
        let (kind, value): (String, Bound<'py, PyAny>) = argument.extract()?;
        Ok(match kind.as_str() {
            "in" => Self::In(value.extract::<PyTensor>()?.0),
            "out" => Self::Out(value.extract::<PyTensor>()?.0),
            "inout" => Self::InOut(value.extract::<PyTensor>()?.0),
            "null" => Self::Null,
            "i32" => Self::I32(value.extract()?),
            "u32" => Self::U32(value.extract()?),
            "f32" => Self::F32(value.extract()?),
            "i64" => Self::I64(value.extract()?),
            "struct" => Self::Struct(value.extract()?),
            _ => {
                let legal = "in, out, inout, null, i32, u32, f32, i64, struct".to_owned();
                let error = CudaError::Name { argument: "argument", legal, got: kind };
                return Err(LayerError::from(error).into());
            }
        })
    }
}

impl Owned {
    fn arg(&self) -> Arg<'_> {
        match self {
            Self::In(tensor) => Arg::In(tensor),
            Self::Out(tensor) => Arg::Out(tensor),
            Self::InOut(tensor) => Arg::InOut(tensor),
            Self::Null => Arg::Null,
            Self::I32(number) => Arg::I32(*number),
            Self::U32(number) => Arg::U32(*number),
            Self::F32(number) => Arg::F32(*number),
            Self::I64(number) => Arg::I64(*number),
            Self::Struct(fields) => Arg::Struct(fields),
        }
    }
}
