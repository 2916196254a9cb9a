//! What the path asks of a device before it launches anything.

use std::sync::OnceLock;

use tch::Device;

use super::compile::compiler;
use super::driver::driver;
use super::error::CudaError;
use super::stream;

/// What decides which machine code a kernel becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// 90 for `sm_90`.
    pub sm: i32,
    /// Major and minor.
    pub nvrtc: [i32; 2],
}

/// Of a CUDA device.
pub fn toolchain(device: Device) -> Result<Toolchain, CudaError> {
    let sm = driver()?.capability(index(device)?)?;
    stream::is_there()?;
    Ok(Toolchain { sm, nvrtc: compiler()?.version })
}

/// Whether the device's current stream records a graph instead of running.
pub fn is_capturing(device: Device) -> Result<bool, CudaError> {
    let (driver, index) = (driver()?, index(device)?);
    let stream = stream::current(index)?;
    driver.within(driver.primary_context(index)?, || driver.is_capturing(stream))
}

/// The properties of a device that decide how work is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// How many multiprocessors it has.
    pub multiprocessors: i64,
    /// Bytes of shared memory that a block may have.
    pub shared: i64,
}

const EMULATED: Facts = Facts { multiprocessors: 4, shared: 227 << 10 };
/// Of devices with a higher index the driver is asked each time.
const KNOWN: usize = 64;

pub fn facts(device: Device) -> Result<Facts, CudaError> {
    static FACTS: [OnceLock<Facts>; KNOWN] = [const { OnceLock::new() }; KNOWN];
    if device == Device::Cpu {
        return Ok(EMULATED);
    }
    let index = index(device)?;
    let known = FACTS.get(index as usize);
    if let Some(facts) = known.and_then(OnceLock::get) {
        return Ok(*facts);
    }
    let facts = Facts {
        multiprocessors: driver()?.multiprocessors(index)?.into(),
        shared: driver()?.shared_bytes(index)?.into(),
    };
    Ok(known.map_or(facts, |known| *known.get_or_init(|| facts)))
}

fn index(device: Device) -> Result<i32, CudaError> {
    match device {
        Device::Cuda(index) => Ok(index as i32),
        got => Err(CudaError::Device { got }),
    }
}
