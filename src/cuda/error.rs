//! What can be wrong between a kernel and its device: each variant carries the facts, Display writes the sentence.

use std::fmt;

use tch::Device;

#[derive(Clone, Debug)]
pub enum CudaError {
    /// None of these shared libraries can be opened.
    NoLibrary { names: String, reason: String },
    /// A shared library of another release.
    NoFunction { library: String, function: String },
    /// A function of the driver failed.
    Driver { call: &'static str, status: i32, text: String },
    /// A function of the compiler failed.
    Compiler { call: &'static str, status: i32, text: String },
    /// The compiler refused a kernel.
    Source { source: &'static str, options: String, log: String },
    /// Torch gave no stream.
    Stream { device: i32, status: i32 },
    /// A kernel is launched for the first time while a graph is captured, when no module can be loaded.
    Capturing { kernel: &'static str },
    /// A launch on CPU tensors without an emulator.
    NoEmulator { kernel: &'static str },
    /// The emulator failed.
    Emulator { kernel: &'static str, message: String },
    /// Tensors of a device that has no such kernels.
    Device { got: Device },
    /// No block of a kernel fits the device.
    NoCut { kernel: &'static str },
    /// Torch does not know the dtype of a tensor.
    Tensor { message: String },
    /// A name or value that cannot be handed to C.
    Text { text: String },
    /// A name that is none of those there are.
    Name { argument: &'static str, legal: String, got: String },
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaError::NoLibrary { names, reason } => {
                write!(f, "{names}: expected a library that can be loaded, got: {reason}")
            }
            CudaError::NoFunction { library, function } => {
                write!(f, "{library}: expected a function {function}, and there is none")
            }
            CudaError::Driver { call, status, text } => {
                write!(f, "{call}: the CUDA driver says: {text} (error {status})")
            }
            CudaError::Compiler { call, status, text } => {
                write!(f, "{call}: the CUDA compiler says: {text} (error {status})")
            }
            CudaError::Source { source, options, log } => {
                write!(f, "the kernels of {source} do not compile with {options}: {log}")
            }
            CudaError::Stream { device, status } => {
                write!(f, "torch gave no current stream of cuda:{device} (error {status})")
            }
            CudaError::Capturing { kernel } => write!(
                f,
                "{kernel}: no kernel can be loaded while a CUDA graph is captured: run one step before the capture"
            ),
            CudaError::NoEmulator { kernel } => {
                write!(f, "{kernel}: expected tensors on a CUDA device, as there is no emulator")
            }
            CudaError::Emulator { kernel, message } => {
                write!(f, "{kernel}: the emulator says: {message}")
            }
            CudaError::Device { got } => {
                write!(f, "expected tensors on a CUDA device, got {got:?}")
            }
            CudaError::NoCut { kernel } => write!(f, "{kernel}: no block fits this device"),
            CudaError::Tensor { message } => f.write_str(message),
            CudaError::Text { text } => {
                write!(f, "expected a text without zero bytes, got {text:?}")
            }
            CudaError::Name { argument, legal, got } => {
                write!(f, "{argument}: expected one of {legal}, got '{got}'")
            }
        }
    }
}
