//! The state of CUDA on this machine, for bug reports.

use super::cache;
use super::compile::compiler;
use super::driver::driver;
use super::error::CudaError;
use super::stream;

/// Facts by their names, None for what is not there; "error" is the first sentence that says why.
///
/// # Limitations
/// It initialises the driver, which a process that forks may not want yet.
pub fn status() -> [(&'static str, Option<String>); 6] {
    let mut error = None;
    let mut fact = |found: Result<String, CudaError>| match found {
        Ok(fact) => Some(fact),
        Err(failed) => {
            error.get_or_insert(failed.to_string());
            None
        }
    };
    let facts = [
        (
            "driver",
            fact(driver().and_then(|driver| {
                let version = driver.version()?;
                Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
            })),
        ),
        ("devices", fact(devices())),
        (
            "nvrtc",
            fact(compiler().map(|compiler| compiler.version.map(|n| n.to_string()).join("."))),
        ),
        ("torch", fact(stream::is_there().map(|()| "libtorch_cuda.so".to_owned()))),
        ("cache", cache::folder().map(|folder| folder.to_string_lossy().into_owned())),
    ];
    let [driver, devices, nvrtc, torch, cache] = facts;
    [driver, devices, nvrtc, torch, cache, ("error", error)]
}

/// "`sm_90` `sm_90`" for two of them.
fn devices() -> Result<String, CudaError> {
    let driver = driver()?;
    let name = |index| Ok(format!("sm_{}", driver.capability(index)?));
    let names: Result<Vec<String>, CudaError> = (0..driver.devices()?).map(name).collect();
    Ok(names?.join(" "))
}
