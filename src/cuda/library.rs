//! C functions of shared libraries that are looked for when the process runs: the package is linked with nothing of CUDA.

use std::ffi::{c_int, c_void, CStr};
use std::ptr::NonNull;

use super::error::CudaError;

/// An open shared library, which stays open as long as the process runs.
#[derive(Clone, Copy)]
pub struct Library {
    name: &'static CStr,
    handle: NonNull<c_void>,
}

// SAFETY: a handle of dlopen is an address that dlsym takes in any thread; nobody closes it.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// The first of these that the process has mapped already.
    pub fn mapped(names: &[&'static CStr]) -> Result<Self, CudaError> {
        Self::first(names, libc::RTLD_NOLOAD)
    }

    /// The first of these that the process has mapped already or can load.
    pub fn load(names: &[&'static CStr]) -> Result<Self, CudaError> {
        Self::first(names, 0)
    }

    fn first(names: &[&'static CStr], flag: c_int) -> Result<Self, CudaError> {
        for name in names {
            // SAFETY: the name ends with a zero. Loading runs code of a library that torch itself loads.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | flag) };
            if let Some(handle) = NonNull::new(handle) {
                return Ok(Self { name, handle });
            }
        }
        let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
        Err(CudaError::NoLibrary { names: names.join(" or "), reason: last_error() })
    }

    /// The address of a function.
    pub fn function(&self, name: &CStr) -> Result<NonNull<c_void>, CudaError> {
        // SAFETY: the handle is open, the name ends with a zero.
        let address = unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) };
        NonNull::new(address).ok_or_else(|| CudaError::NoFunction {
            library: self.name.to_string_lossy().into_owned(),
            function: name.to_string_lossy().into_owned(),
        })
    }
}

/// Why the last `dlopen` of this thread failed.
fn last_error() -> String {
    // SAFETY: dlerror gives null, or a text of this thread that lives until the next call of its kind.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    text.unwrap_or_else(|| "it is not loaded".to_owned())
}

/// A struct of C functions, `field = "symbol" (types of the arguments) -> type;`, and its `find(library)`.
macro_rules! c_functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal ($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $name {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $name {
            fn find(library: &$crate::cuda::library::Library) -> Result<Self, $crate::cuda::error::CudaError> {
                Ok(Self {
                    $($field: {
                        let address = library.function($symbol)?.as_ptr();
                        // SAFETY: a function of that name has had these arguments since it has been public.
                        unsafe {
                            std::mem::transmute::<
                                *mut std::ffi::c_void,
                                unsafe extern "C" fn($($argument),*) -> $result,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}
pub(super) use c_functions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let error = |result: Result<Library, CudaError>| {
            result.err().map(|error| error.to_string()).unwrap_or_default()
        };
        let names = [c"libno_such.so.13", c"libno_such.so.12"];
        assert!(error(Library::load(&names))
            .starts_with("libno_such.so.13 or libno_such.so.12: expected"));
        assert!(!error(Library::mapped(&names)).is_empty());
        let c = Library::mapped(&[c"libc.so.6"]).unwrap();
        assert!(c.function(c"strlen").is_ok());
        let error = c.function(c"no_such").err().map(|error| error.to_string());
        assert_eq!(
            error.as_deref(),
            Some("libc.so.6: expected a function no_such, and there is none")
        );
    }
}
