//! The CUDA compiler, NVRTC, which torch brings: from source to what a device runs.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::cache;
use super::error::CudaError;
use super::fnv::Fnv;
use super::kernel::Kernel;
use super::library::{c_functions, Library};

c_functions! {
    Functions {
        version = c"nvrtcVersion" (*mut c_int, *mut c_int) -> c_int;
        create = c"nvrtcCreateProgram" (
            *mut *mut c_void, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> c_int;
        destroy = c"nvrtcDestroyProgram" (*mut *mut c_void) -> c_int;
        compile = c"nvrtcCompileProgram" (*mut c_void, c_int, *const *const c_char) -> c_int;
        log_size = c"nvrtcGetProgramLogSize" (*mut c_void, *mut usize) -> c_int;
        log = c"nvrtcGetProgramLog" (*mut c_void, *mut c_char) -> c_int;
        cubin_size = c"nvrtcGetCUBINSize" (*mut c_void, *mut usize) -> c_int;
        cubin = c"nvrtcGetCUBIN" (*mut c_void, *mut c_char) -> c_int;
        error_string = c"nvrtcGetErrorString" (c_int) -> *const c_char;
    }
}

/// The status of a source that does not compile.
const COMPILATION: c_int = 6;

pub struct Compiler {
    functions: Functions,
    /// Major and minor.
    pub version: [i32; 2],
}

/// The compiler that torch has brought.
pub fn compiler() -> Result<&'static Compiler, CudaError> {
    static COMPILER: OnceLock<Result<Compiler, CudaError>> = OnceLock::new();
    COMPILER.get_or_init(Compiler::load).as_ref().map_err(Clone::clone)
}

/// That of torch's own CUDA first: a driver just new enough for torch does not load what a later compiler makes.
fn libraries() -> &'static [&'static CStr] {
    match Library::mapped(&[c"libcudart.so.12"]) {
        Ok(_) => &[c"libnvrtc.so.12", c"libnvrtc.so.13"],
        Err(_) => &[c"libnvrtc.so.13", c"libnvrtc.so.12"],
    }
}

/// A kernel's module for the device of this capability, from the cache if it has it.
pub fn cubin(kernel: &Kernel, capability: i32) -> Result<Vec<u8>, CudaError> {
    let compiler = compiler()?;
    let text = kernel.source.text();
    let options = options(kernel, capability);
    let version = compiler.version.map(|number| number.to_string());
    let hash = version.iter().chain([&text]).chain(&options).fold(Fnv::new(), |h, t| h.text(t));
    if let Some(cubin) = cache::read(hash) {
        return Ok(cubin);
    }
    let cubin = compiler.compile(kernel, text, &options)?;
    cache::write(hash, &cubin);
    Ok(cubin)
}

fn options(kernel: &Kernel, capability: i32) -> Vec<String> {
    let fixed = ["--std=c++17", "-default-device"].map(str::to_owned);
    let defines = kernel.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
    [format!("--gpu-architecture=sm_{capability}")]
        .into_iter()
        .chain(fixed)
        .chain(defines)
        .collect()
}

fn c_string(text: String) -> Result<CString, CudaError> {
    CString::new(text).map_err(|error| CudaError::Text {
        text: String::from_utf8_lossy(&error.into_vec()).into(),
    })
}

impl Compiler {
    fn load() -> Result<Self, CudaError> {
        let library = Library::load(libraries())?;
        let mut compiler = Self { functions: Functions::find(&library)?, version: [0; 2] };
        let [major, minor] = &mut compiler.version;
        // SAFETY: the function writes two numbers.
        let status = unsafe { (compiler.functions.version)(major, minor) };
        compiler.check("nvrtcVersion", status)?;
        Ok(compiler)
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function gives null, or a text that is never freed.
        let text = unsafe {
            let text = (self.functions.error_string)(status);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let text = text.unwrap_or_else(|| "an error that it does not describe".to_owned());
        Err(CudaError::Compiler { call, status, text })
    }

    fn compile(
        &self,
        kernel: &Kernel,
        text: String,
        options: &[String],
    ) -> Result<Vec<u8>, CudaError> {
        let (text, name) = (c_string(text)?, c_string(format!("{}.cu", kernel.source.name()))?);
        let mut program = null_mut();
        // SAFETY: the function writes one pointer, and copies the two texts, which end with zeros; there are no headers.
        self.check("nvrtcCreateProgram", unsafe {
            let (text, name) = (text.as_ptr(), name.as_ptr());
            (self.functions.create)(&raw mut program, text, name, 0, null(), null())
        })?;
        let cubin = self.compile_program(program, kernel, options);
        // SAFETY: the program is the one made above, and is not used any more.
        let destroyed = unsafe { (self.functions.destroy)(&raw mut program) };
        let cubin = cubin?;
        self.check("nvrtcDestroyProgram", destroyed)?;
        Ok(cubin)
    }

    /// `program` is one that nvrtcCreateProgram gave.
    fn compile_program(
        &self,
        program: *mut c_void,
        kernel: &Kernel,
        options: &[String],
    ) -> Result<Vec<u8>, CudaError> {
        let functions = &self.functions;
        let texts = options.iter().cloned().map(c_string).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = texts.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: as many options as it is told, which end with zeros and outlive the call.
        let status =
            unsafe { (functions.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        if status == COMPILATION {
            let log =
                self.read("nvrtcGetProgramLog", program, functions.log_size, functions.log)?;
            let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
            let options = options.join(" ");
            return Err(CudaError::Source { source: kernel.source.name(), options, log });
        }
        self.check("nvrtcCompileProgram", status)?;
        self.read("nvrtcGetCUBIN", program, functions.cubin_size, functions.cubin)
    }

    /// What a program gives in two calls, first its size, then its bytes.
    fn read(
        &self,
        call: &'static str,
        program: *mut c_void,
        size: unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int,
        bytes: unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, CudaError> {
        let mut count = 0;
        // SAFETY: the function writes one number.
        self.check(call, unsafe { size(program, &raw mut count) })?;
        let mut buffer = vec![0_u8; count];
        // SAFETY: the function writes as many bytes as the other has said.
        self.check(call, unsafe { bytes(program, buffer.as_mut_ptr().cast()) })?;
        Ok(buffer)
    }
}
