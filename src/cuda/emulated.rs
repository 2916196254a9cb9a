//! Kernels on CPU tensors, run by the emulator that a test has set.

use std::sync::{Arc, PoisonError, RwLock};

use tch::{TchError, Tensor};

use super::error::CudaError;
use super::kernel::Kernel;
use super::launch::{address, Arg};

/// What a kernel does with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    In,
    Out,
    InOut,
}

/// An argument as memory.
#[derive(Debug)]
pub enum RawArg {
    /// So many bytes at that address, from the first element of a tensor to its last, with any gaps between them.
    Memory {
        access: Access,
        address: usize,
        bytes: usize,
    },
    Null,
    /// A number or struct as it lies in memory.
    Value(Vec<u8>),
}

pub type Emulator = Box<dyn Fn(&Kernel, &[RawArg]) -> Result<(), String> + Send + Sync>;

static EMULATOR: RwLock<Option<Arc<Emulator>>> = RwLock::new(None);

/// Sets what runs the kernels of CPU tensors from now on.
pub fn set_emulator(emulator: Option<Emulator>) {
    let emulator = emulator.map(Arc::new);
    let before =
        std::mem::replace(&mut *EMULATOR.write().unwrap_or_else(PoisonError::into_inner), emulator);
    drop(before); // without the lock, as it may run code of Python
}

/// Whether something runs the kernels of CPU tensors.
pub fn is_emulated() -> bool {
    EMULATOR.read().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Hands the launch to the emulator.
pub fn launch(kernel: &Kernel, args: &[Arg]) -> Result<(), CudaError> {
    let emulator = EMULATOR.read().unwrap_or_else(PoisonError::into_inner).clone();
    let emulator = emulator.ok_or(CudaError::NoEmulator { kernel: kernel.name })?;
    let failed = |message| CudaError::Emulator { kernel: kernel.name, message };
    let args: Result<Vec<RawArg>, TchError> = args.iter().map(raw).collect();
    let args = args.map_err(|error| failed(error.to_string()))?;
    emulator(kernel, &args).map_err(failed)
}

fn raw(arg: &Arg) -> Result<RawArg, TchError> {
    Ok(match *arg {
        Arg::In(tensor) => memory(Access::In, tensor, 0)?,
        Arg::Out(tensor) => memory(Access::Out, tensor, 0)?,
        Arg::InOut(tensor) => memory(Access::InOut, tensor, 0)?,
        Arg::InAt(tensor, element) => memory(Access::In, tensor, element)?,
        Arg::OutAt(tensor, element) => memory(Access::Out, tensor, element)?,
        Arg::Null => RawArg::Null,
        Arg::I32(number) => RawArg::Value(number.to_ne_bytes().into()),
        Arg::U32(number) => RawArg::Value(number.to_ne_bytes().into()),
        Arg::F32(number) => RawArg::Value(number.to_ne_bytes().into()),
        Arg::I64(number) => RawArg::Value(number.to_ne_bytes().into()),
        Arg::Struct(fields) => {
            RawArg::Value(fields.iter().flat_map(|field| field.to_ne_bytes()).collect())
        }
    })
}

/// From an element to the last.
fn memory(access: Access, tensor: &Tensor, first: i64) -> Result<RawArg, TchError> {
    let (sizes, strides) = (tensor.size(), tensor.stride());
    let last: i64 = sizes.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum();
    let elements = if sizes.contains(&0) { 0 } else { 1 + last as usize };
    let bytes = (elements - first as usize) * tensor.f_kind()?.elt_size_in_bytes();
    Ok(RawArg::Memory { access, address: address(tensor, first)?, bytes })
}
