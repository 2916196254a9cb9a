//! The CUDA driver: `libcuda.so.1`.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::error::CudaError;
use super::kernel::Kernel;
use super::library::{c_functions, Library};

c_functions! {
    /// Those of every driver that runs with CUDA 12 or 13, under the names that cuda.h gives them.
    Functions {
        init = c"cuInit" (c_uint) -> c_int;
        driver_version = c"cuDriverGetVersion" (*mut c_int) -> c_int;
        error_string = c"cuGetErrorString" (c_int, *mut *const c_char) -> c_int;
        device_count = c"cuDeviceGetCount" (*mut c_int) -> c_int;
        device_get = c"cuDeviceGet" (*mut c_int, c_int) -> c_int;
        device_attribute = c"cuDeviceGetAttribute" (*mut c_int, c_int, c_int) -> c_int;
        primary_context_retain = c"cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int) -> c_int;
        context_current = c"cuCtxGetCurrent" (*mut *mut c_void) -> c_int;
        context_push = c"cuCtxPushCurrent_v2" (*mut c_void) -> c_int;
        context_pop = c"cuCtxPopCurrent_v2" (*mut *mut c_void) -> c_int;
        stream_is_capturing = c"cuStreamIsCapturing" (*mut c_void, *mut c_int) -> c_int;
        module_load = c"cuModuleLoadData" (*mut *mut c_void, *const c_void) -> c_int;
        module_function = c"cuModuleGetFunction" (*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
        function_attribute = c"cuFuncSetAttribute" (*mut c_void, c_int, c_int) -> c_int;
        launch = c"cuLaunchKernel" (
            *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void,
            *mut *mut c_void, *mut *mut c_void
        ) -> c_int;
    }
}

c_functions! {
    /// That of drivers from 12.4 on.
    Later {
        function_load = c"cuFuncLoad" (*mut c_void) -> c_int;
    }
}

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const MULTIPROCESSOR_COUNT: c_int = 16;
const MAX_SHARED_BYTES_OF_BLOCK: c_int = 97; // by opt-in
const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;

/// A handle that the driver gave, valid as long as the process runs: any thread may use it.
macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq)]
            pub struct $name(pub *mut c_void);
            // SAFETY: it is never read through; the driver's functions take it in any thread.
            unsafe impl Send for $name {}
            // SAFETY: as above.
            unsafe impl Sync for $name {}
        )*
    };
}

handles! {
    /// The primary context of a device, which is torch's.
    Context
    Module
    Function
    /// Null is the stream that a device starts with.
    Stream
}

pub struct Driver {
    functions: Functions,
    later: Option<Later>,
}

/// The driver, initialised; an error of the first call is returned by all later ones.
pub fn driver() -> Result<&'static Driver, CudaError> {
    static DRIVER: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
    DRIVER.get_or_init(Driver::load).as_ref().map_err(Clone::clone)
}

impl Driver {
    fn load() -> Result<Self, CudaError> {
        let library = Library::load(&[c"libcuda.so.1"])?;
        let driver =
            Self { functions: Functions::find(&library)?, later: Later::find(&library).ok() };
        // SAFETY: a call without pointers.
        driver.check("cuInit", unsafe { (driver.functions.init)(0) })?;
        Ok(driver)
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: the function writes one pointer: null, or a text that is never freed.
        let text = unsafe {
            let known = (self.functions.error_string)(status, &raw mut text);
            let known = known == 0 && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let text = text.unwrap_or_else(|| "an error that it does not describe".to_owned());
        Err(CudaError::Driver { call, status, text })
    }

    /// As CUDA counts: 13020 is 13.2.
    pub fn version(&self) -> Result<i32, CudaError> {
        let mut version = 0;
        // SAFETY: the function writes one number.
        self.check("cuDriverGetVersion", unsafe {
            (self.functions.driver_version)(&raw mut version)
        })?;
        Ok(version)
    }

    pub fn devices(&self) -> Result<i32, CudaError> {
        let mut count = 0;
        // SAFETY: the function writes one number.
        self.check("cuDeviceGetCount", unsafe { (self.functions.device_count)(&raw mut count) })?;
        Ok(count)
    }

    /// The driver's number of the device that torch and `CUDA_VISIBLE_DEVICES` call `index`.
    fn device(&self, index: i32) -> Result<c_int, CudaError> {
        let mut device = 0;
        // SAFETY: the function writes one number.
        self.check("cuDeviceGet", unsafe { (self.functions.device_get)(&raw mut device, index) })?;
        Ok(device)
    }

    fn attribute(&self, index: i32, attribute: c_int) -> Result<i32, CudaError> {
        let device = self.device(index)?;
        let mut value = 0;
        // SAFETY: the function writes one number.
        let status =
            unsafe { (self.functions.device_attribute)(&raw mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", status).map(|()| value)
    }

    /// 90 for an H100: the number of `sm_90`.
    pub fn capability(&self, index: i32) -> Result<i32, CudaError> {
        Ok(10 * self.attribute(index, CAPABILITY_MAJOR)?
            + self.attribute(index, CAPABILITY_MINOR)?)
    }

    /// How many multiprocessors the device has.
    pub fn multiprocessors(&self, index: i32) -> Result<i32, CudaError> {
        self.attribute(index, MULTIPROCESSOR_COUNT)
    }

    /// The most shared memory that a block may be allowed.
    pub fn shared_bytes(&self, index: i32) -> Result<i32, CudaError> {
        self.attribute(index, MAX_SHARED_BYTES_OF_BLOCK)
    }

    /// Kept until the process ends, as modules are.
    pub fn primary_context(&self, index: i32) -> Result<Context, CudaError> {
        let device = self.device(index)?;
        let mut context = null_mut();
        // SAFETY: the function writes one pointer.
        let status = unsafe { (self.functions.primary_context_retain)(&raw mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", status)?;
        Ok(Context(context))
    }

    /// Runs `work` with the context current in this thread. Another device's is current again afterwards; where there was
    /// none, as in a new thread of autograd's, it stays, as CUDA's runtime would leave it: torch's next call of cuBLAS
    /// warns of a thread without one.
    pub fn within<R>(
        &self,
        context: Context,
        work: impl FnOnce() -> Result<R, CudaError>,
    ) -> Result<R, CudaError> {
        let mut current = null_mut();
        // SAFETY: the function writes one pointer.
        self.check("cuCtxGetCurrent", unsafe {
            (self.functions.context_current)(&raw mut current)
        })?;
        if current == context.0 {
            return work();
        }
        // SAFETY: the context is one of the driver's, and is never released.
        self.check("cuCtxPushCurrent", unsafe { (self.functions.context_push)(context.0) })?;
        let result = work();
        if current.is_null() {
            return result;
        }
        // SAFETY: the function writes one pointer. The work has left the stack of contexts as it was.
        let popped = unsafe { (self.functions.context_pop)(&raw mut current) };
        let result = result?;
        self.check("cuCtxPopCurrent", popped)?;
        Ok(result)
    }

    /// Whether the stream records a graph. The context of the stream is current.
    pub fn is_capturing(&self, stream: Stream) -> Result<bool, CudaError> {
        let mut status = 0;
        // SAFETY: the function writes one number; the stream is one of torch's, which keeps them all.
        self.check("cuStreamIsCapturing", unsafe {
            (self.functions.stream_is_capturing)(stream.0, &raw mut status)
        })?;
        Ok(status != 0)
    }

    /// Into the current context.
    pub fn load_module(&self, cubin: &[u8]) -> Result<Module, CudaError> {
        let mut module = null_mut();
        // SAFETY: the function writes one pointer. A cubin is an ELF file, which says itself how long it is; this one is
        // what the compiler gave, whole.
        self.check("cuModuleLoadData", unsafe {
            (self.functions.module_load)(&raw mut module, cubin.as_ptr().cast())
        })?;
        Ok(Module(module))
    }

    /// A function of a module, loaded now: otherwise its first launch would load it, which a capture may forbid.
    pub fn function(&self, module: Module, name: &CStr) -> Result<Function, CudaError> {
        let mut function = null_mut();
        // SAFETY: the function writes one pointer; the module is one of the current context.
        self.check("cuModuleGetFunction", unsafe {
            (self.functions.module_function)(&raw mut function, module.0, name.as_ptr())
        })?;
        if let Some(later) = self.later {
            // SAFETY: it is the function of that module.
            self.check("cuFuncLoad", unsafe { (later.function_load)(function) })?;
        }
        Ok(Function(function))
    }

    /// Lets the function be launched with that much dynamic shared memory, of which 48 KiB need no permission.
    pub fn allow_shared(&self, function: Function, bytes: u32) -> Result<(), CudaError> {
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        // SAFETY: a call that only reads numbers; the function's module is never unloaded.
        self.check("cuFuncSetAttribute", unsafe {
            (self.functions.function_attribute)(function.0, MAX_DYNAMIC_SHARED_BYTES, bytes)
        })
    }

    /// # Safety
    /// `arguments` are the addresses of as many values as the function has parameters, each of its parameter's type, and
    /// every pointer among them leads to memory of the function's device that the kernel may read and write as it does.
    pub unsafe fn launch(
        &self,
        function: Function,
        kernel: &Kernel,
        stream: Stream,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let [x, y, z] = kernel.grid;
        // SAFETY: the driver copies the arguments before it returns; the caller vouches for them.
        let status = unsafe {
            let (block, shared, values) = (kernel.block, kernel.shared, arguments.as_mut_ptr());
            let launch = self.functions.launch;
            launch(function.0, x, y, z, block, 1, 1, shared, stream.0, values, null_mut())
        };
        self.check("cuLaunchKernel", status)
    }
}
