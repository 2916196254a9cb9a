//! The stream that torch computes on.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use super::driver::Stream;
use super::error::CudaError;
use super::library::{c_functions, Library};

c_functions! {
    /// Of libtorch's stable C interface (`torch/csrc/inductor/aoti_torch/c/shim.h`).
    Functions {
        current_stream = c"aoti_torch_get_current_cuda_stream" (i32, *mut *mut c_void) -> c_int;
    }
}

/// A torch without CUDA has no such library.
fn functions() -> Result<Functions, CudaError> {
    static FUNCTIONS: OnceLock<Result<Functions, CudaError>> = OnceLock::new();
    let find = || Functions::find(&Library::mapped(&[c"libtorch_cuda.so"])?);
    FUNCTIONS.get_or_init(find).clone()
}

/// Whether this torch has streams of CUDA at all.
pub fn is_there() -> Result<(), CudaError> {
    functions().map(|_| ())
}

/// Of that device and this thread; to be asked for at every launch, as the backward's may be another.
pub fn current(device: i32) -> Result<Stream, CudaError> {
    let mut stream = null_mut();
    // SAFETY: the function writes one pointer.
    let status = unsafe { (functions()?.current_stream)(device, &raw mut stream) };
    if status == 0 {
        Ok(Stream(stream))
    } else {
        Err(CudaError::Stream { device, status })
    }
}
