//! A kernel on a device, with its arguments.

use std::ffi::c_void;

use tch::{Device, TchError, Tensor};

use super::driver::driver;
use super::emulated;
use super::error::CudaError;
use super::kernel::Kernel;
use super::loaded;
use super::stream;

/// An argument of a kernel, of the type of its parameter. The variant of a tensor says what the kernel does with it,
/// which the emulator checks and a device ignores.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    In(&'a Tensor),
    Out(&'a Tensor),
    InOut(&'a Tensor),
    /// From this element of a tensor on.
    InAt(&'a Tensor, i64),
    OutAt(&'a Tensor, i64),
    /// A tensor that is not there.
    Null,
    I32(i32),
    U32(u32),
    F32(f32),
    I64(i64),
    /// A struct of ints, by value.
    Struct(&'a [i32]),
}

impl<'a> Arg<'a> {
    pub fn optional(tensor: Option<&'a Tensor>) -> Self {
        tensor.map_or(Self::Null, Self::In)
    }

    /// An output, or nothing if it is undefined.
    pub fn out(tensor: &'a Tensor) -> Self {
        if tensor.defined() {
            Self::Out(tensor)
        } else {
            Self::Null
        }
    }
}

/// The address of an element, counted from the first.
pub fn address(tensor: &Tensor, element: i64) -> Result<usize, TchError> {
    let size = tensor.f_kind()?.elt_size_in_bytes();
    Ok(tensor.data_ptr() as usize + element as usize * size)
}

/// Enqueues the kernel on torch's current stream of the device; the emulator runs it on the CPU. The tensors are on the
/// device, and fit the kernel: the caller has checked it.
pub fn launch(device: Device, kernel: &Kernel, args: &[Arg]) -> Result<(), CudaError> {
    match device {
        Device::Cuda(index) => launch_on_device(index as i32, kernel, args),
        Device::Cpu => emulated::launch(kernel, args),
        got => Err(CudaError::Device { got }),
    }
}

fn launch_on_device(device: i32, kernel: &Kernel, args: &[Arg]) -> Result<(), CudaError> {
    let stream = stream::current(device)?;
    let loaded = loaded::function(device, kernel, stream)?;
    let values =
        Values::new(args).map_err(|error| CudaError::Tensor { message: error.to_string() })?;
    let mut addresses = values.addresses();
    let driver = driver()?;
    driver.within(loaded.context, || {
        // SAFETY: an address for each argument, and the arguments are what the kernel takes, by the contract of `launch`.
        unsafe { driver.launch(loaded.function, kernel, stream, &mut addresses) }
    })
}

/// The values of the arguments in memory, each at an address that is a multiple of 8.
struct Values {
    words: Vec<u64>,
    /// Of each argument, its first word.
    starts: Vec<usize>,
}

impl Values {
    fn new(args: &[Arg]) -> Result<Self, TchError> {
        let mut words = Vec::with_capacity(2 * args.len());
        let mut starts = Vec::with_capacity(args.len());
        for arg in args {
            starts.push(words.len());
            match *arg {
                Arg::In(tensor) | Arg::Out(tensor) | Arg::InOut(tensor) => {
                    words.push(tensor.data_ptr() as u64);
                }
                Arg::InAt(tensor, element) | Arg::OutAt(tensor, element) => {
                    words.push(address(tensor, element)? as u64);
                }
                Arg::Null => words.push(0),
                Arg::I32(number) => words.push(two(number as u32, 0)),
                Arg::U32(number) => words.push(two(number, 0)),
                Arg::F32(number) => words.push(two(number.to_bits(), 0)),
                Arg::I64(number) => words.push(number as u64),
                Arg::Struct(fields) => words.extend(fields.chunks(2).map(|pair| {
                    two(pair[0] as u32, pair.get(1).copied().unwrap_or_default() as u32)
                })),
            }
        }
        Ok(Self { words, starts })
    }

    fn addresses(&self) -> Vec<*mut c_void> {
        let word = |&start: &usize| self.words[start..].as_ptr().cast_mut().cast();
        self.starts.iter().map(word).collect()
    }
}

/// Two numbers of 32 bits, one after the other in memory: every host of a CUDA device is little-endian.
fn two(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_at_its_address_as_c_would_have_it() {
        let tensor = Tensor::from_slice(&[1.0_f32]);
        let fields = [5, -6, 7];
        let values = Values::new(&[
            Arg::I32(-2),
            Arg::Struct(&fields),
            Arg::F32(0.5),
            Arg::Struct(&[]),
            Arg::In(&tensor),
            Arg::Null,
            Arg::U32(3),
            Arg::I64(-4),
        ])
        .unwrap();
        let addresses = values.addresses();
        // SAFETY: each address is that of a value of this type and size in `values`.
        unsafe {
            assert_eq!(addresses[0].cast::<i32>().read(), -2);
            assert_eq!(std::slice::from_raw_parts(addresses[1].cast::<i32>(), 3), fields);
            assert_eq!(addresses[2].cast::<f32>().read().to_bits(), 0.5_f32.to_bits());
            assert_eq!(addresses[4].cast::<*mut c_void>().read(), tensor.data_ptr());
            assert!(addresses[5].cast::<*mut c_void>().read().is_null());
            assert_eq!(addresses[6].cast::<u32>().read(), 3);
            assert_eq!(addresses[7].cast::<i64>().read(), -4);
        }
    }
}
