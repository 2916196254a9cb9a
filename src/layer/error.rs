//! What can be wrong with a call: each variant carries the facts, Display writes the sentence.

use std::any::Any;
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};

use tch::{Device, Kind, TchError};

use crate::cpu::OutOfMemory;
use crate::cuda::CudaError;

#[derive(Debug)]
pub enum LayerError {
    /// `expected` is written out, with the sizes that are free as letters.
    Shape {
        argument: &'static str,
        expected: String,
        got: Vec<i64>,
    },
    /// `got` is None, here and below, where tch does not know the dtype.
    NotFloating {
        argument: &'static str,
        got: Option<Kind>,
    },
    Dtype {
        argument: &'static str,
        expected: Kind,
        reference: &'static str,
        got: Option<Kind>,
    },
    Device {
        argument: &'static str,
        expected: Device,
        got: Device,
    },
    /// As after `tensor.untyped_storage().resize_(0)`.
    NoMemory {
        argument: &'static str,
        elements: usize,
    },
    Heads {
        nhead: i64,
        channels: i64,
    },
    Probability {
        place: &'static str,
        got: f64,
    },
    Activation {
        got: String,
    },
    NoSeed,
    Seed {
        got: Option<Kind>,
        shape: Vec<i64>,
    },
    /// `key_count` is no 0-d int64 tensor on the CPU.
    KeyCount {
        got: Option<Kind>,
        shape: Vec<i64>,
        device: Device,
    },
    NoKeysToCount,
    CountedKeys {
        keys: i64,
        got: i64,
    },
    /// A gradient is asked for of a tensor that is None.
    NeedsAbsent {
        argument: &'static str,
    },
    SavedCount {
        expected: usize,
        got: usize,
    },
    /// A parameter that every layer has is None.
    Absent {
        argument: &'static str,
    },
    Torch(TchError),
    /// `BATCHFORMER_CUDA` asks for kernels where they do not serve.
    NoKernels {
        reason: String,
    },
    Cuda(CudaError),
    /// The memory of the CPU.
    OutOfMemory {
        bytes: usize,
    },
    /// A fault of this package.
    Panic {
        message: String,
    },
}

impl LayerError {
    /// The cause of an unwinding: a lack of memory, or else a panic.
    pub fn from_panic(payload: Box<dyn Any + Send>) -> Self {
        let payload = match payload.downcast::<OutOfMemory>() {
            Ok(out_of_memory) => return LayerError::OutOfMemory { bytes: out_of_memory.bytes },
            Err(payload) => payload,
        };
        let message = payload.downcast_ref::<&str>().map(|&message| message.to_owned());
        let message = message.or_else(|| payload.downcast_ref().cloned());
        std::mem::forget(payload); // dropping it may panic, too
        LayerError::Panic { message: message.unwrap_or_else(|| "no message".to_owned()) }
    }
}

/// Runs `work`, which may unwind, as a call that fails.
///
/// # Rationale
/// Unwinding that reaches Python becomes a `PanicException`, which `except Exception` does not catch. A call that
/// has been left this way has changed nothing that a later one reads: what it was writing is dropped.
pub fn catch<R>(work: impl FnOnce() -> Result<R, LayerError>) -> Result<R, LayerError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(LayerError::from_panic(panic)))
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerError::Shape { argument, expected, got } => {
                write!(f, "{argument}: expected shape {expected}, got {got:?}")
            }
            LayerError::NotFloating { argument, got } => {
                write!(
                    f,
                    "{argument}: expected a dtype of float16, bfloat16, float32 or float64, got {}",
                    name(*got)
                )
            }
            LayerError::Dtype { argument, expected, reference, got } => write!(
                f,
                "{argument}: expected dtype {} as {reference} has, got {}",
                dtype(*expected),
                name(*got)
            ),
            LayerError::Device { argument, expected, got } => write!(
                f,
                "{argument}: expected device {} as x has, got {}",
                device(*expected),
                device(*got)
            ),
            LayerError::NoMemory { argument, elements } => write!(
                f,
                "{argument}: expected memory for its {elements} elements, got a storage that has been freed"
            ),
            LayerError::Heads { nhead, channels } => {
                write!(f, "nhead: expected a divisor of the width {channels}, got {nhead}")
            }
            LayerError::Probability { place, got } => {
                write!(f, "{place}: expected a probability from 0 to 1, got {got}")
            }
            LayerError::Activation { got } => {
                write!(f, "activation: expected 'relu' or 'gelu', got '{got}'")
            }
            LayerError::NoSeed => {
                write!(f, "seed: expected a 0-d int64 tensor as dropout is on, got None")
            }
            LayerError::Seed { got, shape } => write!(
                f,
                "seed: expected a 0-d int64 tensor, got dtype {} and shape {shape:?}",
                name(*got)
            ),
            LayerError::KeyCount { got, shape, device: on } => write!(
                f,
                "key_count: expected a 0-d int64 tensor on cpu, got dtype {} and shape {shape:?} on {}",
                name(*got),
                device(*on)
            ),
            LayerError::NoKeysToCount => {
                write!(f, "key_count: expected None without keys_values, got a tensor")
            }
            LayerError::CountedKeys { keys, got } => {
                write!(f, "key_count: expected from 1 to the {keys} of keys_values, got {got}")
            }
            LayerError::NeedsAbsent { argument } => {
                write!(f, "needs: expected False for {argument}, which is None, got True")
            }
            LayerError::SavedCount { expected, got } => write!(
                f,
                "saved: expected the {expected} tensors that a forward with these needs leaves, got {got}"
            ),
            LayerError::Absent { argument } => {
                write!(f, "{argument}: expected a tensor, got None")
            }
            LayerError::NoKernels { reason } => write!(
                f,
                "BATCHFORMER_CUDA: expected a call that the kernels serve, as it is 'kernels', got one that they \
                 do not: {reason}"
            ),
            LayerError::Torch(TchError::Torch(message)) => f.write_str(first_lines(message)),
            LayerError::Torch(error) => error.fmt(f),
            LayerError::Cuda(error) => error.fmt(f),
            // In torch's own words.
            LayerError::OutOfMemory { bytes } => write!(
                f,
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate {bytes} bytes. Error code 12 \
                 (Cannot allocate memory)"
            ),
            LayerError::Panic { message } => write!(
                f,
                "a fault of batchformer itself: please report it with the call that led here ({})",
                first_lines(message)
            ),
        }
    }
}

/// Torch's message without the C++ stack that some builds put below it.
fn first_lines(message: &str) -> &str {
    message.split("\nException raised from").next().unwrap_or(message)
}

fn name(got: Option<Kind>) -> &'static str {
    got.map_or("another", dtype)
}

/// The dtype as torch prints it, without the `torch.`.
fn dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::Uint8 => "uint8",
        Kind::Int8 => "int8",
        Kind::Int16 => "int16",
        Kind::Int => "int32",
        Kind::Int64 => "int64",
        Kind::Half => "float16",
        Kind::Float => "float32",
        Kind::Double => "float64",
        Kind::ComplexHalf => "complex32",
        Kind::ComplexFloat => "complex64",
        Kind::ComplexDouble => "complex128",
        Kind::Bool => "bool",
        Kind::QInt8 => "qint8",
        Kind::QUInt8 => "quint8",
        Kind::QInt32 => "qint32",
        Kind::BFloat16 => "bfloat16",
        Kind::Float8e5m2 => "float8_e5m2",
        Kind::Float8e4m3fn => "float8_e4m3fn",
        Kind::Float8e5m2fnuz => "float8_e5m2fnuz",
        Kind::Float8e4m3fnuz => "float8_e4m3fnuz",
    }
}

/// The device as torch prints it.
fn device(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Mps => "mps".to_owned(),
        Device::Vulkan => "vulkan".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    #[test]
    fn a_message_of_torch_comes_without_its_stack() {
        let message =
            "mat1 and mat2 cannot be multiplied\nException raised from meta at /pytorch/x.cpp:1";
        let error = LayerError::Torch(TchError::Torch(message.to_owned()));
        assert_eq!(error.to_string(), "mat1 and mat2 cannot be multiplied");
    }

    #[test]
    fn what_unwinds_a_call_becomes_its_error() {
        let sentence = |unwind: fn()| {
            let caught = catch(|| {
                unwind();
                Ok(())
            });
            caught.err().map(|error| error.to_string()).unwrap_or_default()
        };
        let no_memory = sentence(|| OutOfMemory { bytes: 4096 }.unwind());
        assert!(no_memory
            .ends_with("tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"));
        let fault = sentence(|| resume_unwind(Box::new("index out of range")));
        assert!(
            fault.contains("please report") && fault.ends_with("(index out of range)"),
            "{fault}"
        );
        assert!(sentence(|| resume_unwind(Box::new("5 of 4".to_owned()))).contains("5 of 4"));
        assert!(sentence(|| resume_unwind(Box::new(5))).contains("please report"));
    }

    #[test]
    fn dtypes_and_devices_read_as_torch_prints_them() {
        let error = LayerError::Device {
            argument: "norm1_bias",
            expected: Device::Cuda(1),
            got: Device::Cpu,
        };
        assert_eq!(error.to_string(), "norm1_bias: expected device cuda:1 as x has, got cpu");
        let error = LayerError::NotFloating { argument: "x", got: Some(Kind::Int64) };
        assert!(error.to_string().ends_with("got int64"));
    }
}
