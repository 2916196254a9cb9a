//! The functions that are loaded in this process, each found again by its kernel at every launch.

use std::collections::HashMap;
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use super::compile;
use super::driver::{driver, Context, Function, Module, Stream};
use super::error::CudaError;
use super::kernel::{Define, Kernel, Source};

/// A function on its device. Like all that the driver keeps of it, it stays as long as the process runs.
pub struct Loaded {
    pub context: Context,
    pub function: Function,
    /// Bytes of dynamic shared memory that the function may be launched with.
    allowed: AtomicU32,
}

/// Dynamic shared memory that needs no opt-in.
const SHARED: u32 = 48 << 10;

/// What is compiled as one, for one device.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Unit {
    device: i32,
    source: Source,
    defines: Vec<(&'static str, Define)>,
}

struct Entry {
    unit: Unit,
    name: &'static str,
    loaded: &'static Loaded,
}

impl Entry {
    fn is(&self, device: i32, kernel: &Kernel) -> bool {
        self.name == kernel.name
            && self.unit.device == device
            && self.unit.source == kernel.source
            && self.unit.defines == kernel.defines
    }
}

/// By the hash of their kernels, which narrows the search; equality is checked.
static ENTRIES: RwLock<Option<HashMap<u64, Vec<Entry>>>> = RwLock::new(None);

/// Held by the one thread that compiles and loads.
static MODULES: Mutex<Option<HashMap<Unit, (Context, Module)>>> = Mutex::new(None);

/// The function of a kernel, to be launched on that stream with the kernel's shared memory.
pub fn function(
    device: i32,
    kernel: &Kernel,
    stream: Stream,
) -> Result<&'static Loaded, CudaError> {
    let loaded = match find(device, kernel) {
        Some(loaded) => loaded,
        None => load(device, kernel, stream)?,
    };
    if kernel.shared > loaded.allowed.load(Ordering::Acquire) {
        // Of two threads the one that asks for more may be first, so under the lock.
        let _one_by_one = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if kernel.shared > loaded.allowed.load(Ordering::Acquire) {
            let driver = driver()?;
            driver
                .within(loaded.context, || driver.allow_shared(loaded.function, kernel.shared))?;
            loaded.allowed.store(kernel.shared, Ordering::Release);
        }
    }
    Ok(loaded)
}

fn hash(device: i32, kernel: &Kernel) -> u64 {
    let mut hasher = DefaultHasher::new(); // never kept beyond the process
    (device, kernel.source, kernel.name, &kernel.defines).hash(&mut hasher);
    hasher.finish()
}

fn find(device: i32, kernel: &Kernel) -> Option<&'static Loaded> {
    let entries = ENTRIES.read().unwrap_or_else(PoisonError::into_inner);
    let alike = entries.as_ref()?.get(&hash(device, kernel))?;
    alike.iter().find(|entry| entry.is(device, kernel)).map(|entry| entry.loaded)
}

/// Nothing is loaded while a graph is captured: the driver may abort the capture, at this kernel or at one that another
/// thread captures.
fn load(device: i32, kernel: &Kernel, stream: Stream) -> Result<&'static Loaded, CudaError> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = find(device, kernel) {
        return Ok(loaded); // another thread has been first
    }
    let driver = driver()?;
    let name =
        CString::new(kernel.name).map_err(|_| CudaError::Text { text: kernel.name.to_owned() })?;
    let unit = Unit { device, source: kernel.source, defines: kernel.defines.clone() };
    let modules = modules.get_or_insert_default();
    let known = modules.get(&unit).copied();
    let context = match known {
        Some((context, _)) => context,
        None => driver.primary_context(device)?,
    };
    let function = driver.within(context, || {
        if driver.is_capturing(stream)? {
            return Err(CudaError::Capturing { kernel: kernel.name });
        }
        let module = match known {
            Some((_, module)) => module,
            None => driver.load_module(&compile::cubin(kernel, driver.capability(device)?)?)?,
        };
        modules.insert(unit.clone(), (context, module));
        driver.function(module, &name)
    })?;
    let loaded = Loaded { context, function, allowed: AtomicU32::new(SHARED) };
    let loaded = &*Box::leak(Box::new(loaded));
    let mut entries = ENTRIES.write().unwrap_or_else(PoisonError::into_inner);
    let alike = entries.get_or_insert_default().entry(hash(device, kernel)).or_default();
    alike.push(Entry { unit, name: kernel.name, loaded });
    Ok(loaded)
}
