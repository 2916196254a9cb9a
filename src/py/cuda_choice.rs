//! Whether the kernels of CUDA serve a kind of call, and what was decided so far.

use pyo3::prelude::*;
use tch::{Device, Kind};

use super::ops::outside_gil;
use crate::cuda::{self, Asker, CudaError, Reason, Signature, Switch};
use crate::layer::LayerError;

/// `(device, dtypes of x, of linears and of norms, C, H, F, gelu, norm_first)`
pub type PySignature = (usize, String, String, String, i64, i64, i64, bool, bool);

/// Why not, and whether that is a fault; None if they do. With `may_try` a kind of call that comes for the first time is
/// tried, else it is not served.
#[pyfunction]
pub fn cuda_reason(
    py: Python<'_>,
    signature: PySignature,
    may_try: bool,
) -> PyResult<Option<(String, bool)>> {
    let signature = from_python(signature)?;
    outside_gil(py, move || {
        let reason = cuda::reason(&signature, Asker::Module { may_try });
        Ok(reason.map(|Reason { sentence, is_fault }| (sentence, is_fault)))
    })
}

/// By how much a small layer of this kind differs from libtorch's, relative in the 2-norm; an error if by too much.
#[pyfunction]
pub fn cuda_self_check(py: Python<'_>, signature: PySignature) -> PyResult<f64> {
    let signature = from_python(signature)?;
    outside_gil(py, move || {
        cuda::check(&signature).map_err(|reason| LayerError::NoKernels { reason })
    })
}

/// The kinds of calls that came so far, each with why it was not served or None.
#[pyfunction]
pub fn cuda_decisions(py: Python<'_>) -> Vec<(PySignature, Option<String>)> {
    let decisions = py.allow_threads(cuda::decisions).into_iter();
    decisions.map(|(of, reason)| (to_python(&of), reason.map(|reason| reason.sentence))).collect()
}

/// What `BATCHFORMER_CUDA` says in this process: "auto", "torch" or "kernels".
#[pyfunction]
pub fn cuda_switch() -> &'static str {
    match Switch::get() {
        Switch::Auto => "auto",
        Switch::Torch => "torch",
        Switch::Kernels => "kernels",
    }
}

/// `(compute capability, NVRTC, source, its hash)` for each source on a device: the lines of the ledger.
#[pyfunction]
pub fn cuda_sources(
    py: Python<'_>,
    device: usize,
) -> PyResult<Vec<(String, String, String, String)>> {
    let lines = outside_gil(py, move || Ok(cuda::sources(Device::Cuda(device))?))?;
    Ok(lines.into_iter().map(<[String; 4]>::into).collect())
}

fn from_python(signature: PySignature) -> Result<Signature, LayerError> {
    let (device, x, linears, norms, channels, heads, feedforward, gelu, norm_first) = signature;
    Ok(Signature {
        device: Device::Cuda(device),
        x: kind(&x)?,
        linears: kind(&linears)?,
        norms: kind(&norms)?,
        channels,
        heads,
        feedforward,
        gelu,
        norm_first,
    })
}

fn to_python(of: &Signature) -> PySignature {
    let device = if let Device::Cuda(index) = of.device { index } else { 0 };
    let [x, linears, norms] = [of.x, of.linears, of.norms].map(name);
    (device, x, linears, norms, of.channels, of.heads, of.feedforward, of.gelu, of.norm_first)
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Float, "float32"),
    (Kind::BFloat16, "bfloat16"),
    (Kind::Half, "float16"),
    (Kind::Double, "float64"),
];

fn kind(name: &str) -> Result<Kind, LayerError> {
    let known = KINDS.iter().find(|(_, known)| *known == name);
    known.map(|(kind, _)| *kind).ok_or_else(|| {
        let legal = KINDS.map(|(_, known)| known).join(", ");
        CudaError::Name { argument: "dtype", legal, got: name.to_owned() }.into()
    })
}

fn name(kind: Kind) -> String {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("float64", |(_, name)| name).to_owned()
}
