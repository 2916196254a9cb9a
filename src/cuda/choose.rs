//! Whether the kernels serve a call, decided once for each kind of call in a process; and if not, why.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind};

use super::call::per_piece;
use super::device;
use super::error::CudaError;
use super::ledger::{self, Line};
use super::{norm, self_check, Error};
use crate::call::{Activation, Config, Dims, Input};

/// The properties of a call that decide; numbers of samples, positions and keys do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    pub device: Device,
    pub x: Kind,
    pub linears: Kind,
    pub norms: Kind,
    pub channels: i64,
    pub heads: i64,
    pub feedforward: i64,
    pub gelu: bool,
    pub norm_first: bool,
}

impl Signature {
    pub fn of(input: &Input, dims: &Dims) -> Result<Self, tch::TchError> {
        let kinds = input.kinds()?;
        let Config { activation, norm_first, .. } = input.config;
        Ok(Self {
            device: input.x.device(),
            x: kinds.x,
            linears: kinds.linears,
            norms: input.params.norm1.weight.f_kind()?,
            channels: dims.channels,
            heads: dims.heads,
            feedforward: dims.feedforward,
            gelu: activation == Activation::Gelu,
            norm_first,
        })
    }
}

/// Why a call is not served.
#[derive(Clone, Debug)]
pub struct Reason {
    pub sentence: String,
    /// Something that should work does not, as opposed to what was never promised.
    pub is_fault: bool,
}

impl Reason {
    fn plain(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), is_fault: false }
    }

    fn fault(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), is_fault: true }
    }
}

/// The value of the environment variable `BATCHFORMER_CUDA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Kernels where they have been verified, else torch's layer.
    Auto,
    /// Torch's layer.
    Torch,
    /// Kernels, verified or not, and an error where they do not serve.
    Kernels,
}

impl Switch {
    /// Read once in a process.
    pub fn get() -> Self {
        static SWITCH: OnceLock<Switch> = OnceLock::new();
        *SWITCH.get_or_init(|| match std::env::var("BATCHFORMER_CUDA").as_deref() {
            Ok("torch") => Self::Torch,
            Ok("kernels") => Self::Kernels,
            _ => Self::Auto,
        })
    }
}

/// What was decided for each kind of call.
type Memory<T> = Mutex<HashMap<Signature, T>>;

fn memory() -> &'static Memory<Option<Reason>> {
    static DECISIONS: OnceLock<Memory<Option<Reason>>> = OnceLock::new();
    DECISIONS.get_or_init(Memory::default)
}

/// Who asks whether kernels serve a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A module, which hands the call to torch's layer if not. A new kind is not tried while torch's ops are traced.
    Module { may_try: bool },
    /// The op, which runs through libtorch if not.
    Op,
}

/// Why the kernels do not serve such calls; None if they do. The first call of its kind compiles them and compares a
/// small layer with libtorch's, unless a graph is captured.
///
/// A forward and its backward are of one kind, and an answer to the op is final. So both run on one path, as they must:
/// saved tensors are in another order here than on the other paths.
pub fn reason(of: &Signature, asker: Asker) -> Option<Reason> {
    if of.device == Device::Cpu {
        return uncovered(of); // emulated
    }
    let mut decisions = memory().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = decisions.get(of) {
        return known.clone();
    }
    let mut found = settled(of);
    if found.is_none() {
        found = hindrance(of, asker);
        if found.is_some() && asker != Asker::Op {
            return found;
        }
    }
    let found = found.or_else(|| decide(of));
    decisions.insert(*of, found.clone());
    found
}

/// Whether attention runs in TF32: if torch allows it for float32, and its kernels agree with libtorch, too. Otherwise
/// those without it run, which are served already; so a call that comes first while a graph is captured has these.
pub fn tf32(input: &Input, dims: &Dims) -> Result<bool, Error> {
    static AGREES: OnceLock<Memory<bool>> = OnceLock::new();
    if !input.tf32 || input.kinds()?.linears != Kind::Float {
        return Ok(false);
    }
    let of = Signature::of(input, dims)?;
    if of.device == Device::Cpu {
        return Ok(true); // emulated
    }
    let memory = AGREES.get_or_init(Memory::default);
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(agrees) = memory.get(&of) {
        return Ok(*agrees);
    }
    if device::is_capturing(of.device)? {
        return Ok(false);
    }
    let agrees = self_check::run(&of, true).is_ok();
    memory.insert(of, agrees);
    Ok(agrees)
}

/// Reasons that need no device.
fn settled(of: &Signature) -> Option<Reason> {
    if Switch::get() == Switch::Torch {
        return Some(Reason::plain("BATCHFORMER_CUDA is torch"));
    }
    uncovered(of)
}

/// Why nothing can be tried now, though it may be later.
fn hindrance(of: &Signature, asker: Asker) -> Option<Reason> {
    if asker == (Asker::Module { may_try: false }) {
        return Some(Reason::plain("no such call has run yet outside of what traces this one"));
    }
    match device::is_capturing(of.device) {
        Ok(true) => Some(Reason::plain(
            "a CUDA graph was being captured before any such call outside of it",
        )),
        Ok(false) => None,
        Err(error) => Some(Reason::fault(error.to_string())),
    }
}

/// All that was decided so far.
pub fn decisions() -> Vec<(Signature, Option<Reason>)> {
    let decisions = memory().lock().unwrap_or_else(PoisonError::into_inner);
    decisions.iter().map(|(signature, reason)| (*signature, reason.clone())).collect()
}

/// The lines of the ledger for a device on which all sources are verified.
pub fn sources(device: Device) -> Result<Vec<Line>, CudaError> {
    Ok(ledger::lines(&device::toolchain(device)?))
}

/// What [`self_check::run`] finds, whether the device is listed or not; in TF32 a call of float32 has to agree, too.
pub fn check(of: &Signature) -> Result<f64, String> {
    if let Some(reason) = uncovered(of) {
        return Err(reason.sentence);
    }
    let difference = self_check::run(of, false)?;
    if of.linears == Kind::Float {
        self_check::run(of, true)?;
    }
    Ok(difference)
}

fn decide(of: &Signature) -> Option<Reason> {
    let toolchain = match device::toolchain(of.device) {
        Ok(toolchain) => toolchain,
        Err(error) => return Some(Reason::fault(error.to_string())),
    };
    if Switch::get() == Switch::Auto {
        if let Some(sentence) = ledger::missing(&toolchain) {
            return Some(Reason::plain(sentence));
        }
    }
    self_check::run(of, false).err().map(Reason::fault)
}

/// What no kernel supports.
fn uncovered(of: &Signature) -> Option<Reason> {
    if of.x == Kind::Double {
        return Some(Reason::plain("float64 has no kernels"));
    }
    if of.x != of.linears && of.x != Kind::Float {
        return Some(Reason::plain("x and the weights are of two half precisions"));
    }
    for (name, width) in [("channels", of.channels), ("hidden units", of.feedforward)] {
        let piece = per_piece(of.linears);
        if width % piece != 0 {
            let sentence = format!("{width} {name} are no multiple of {piece}, which are 16 bytes");
            return Some(Reason::plain(sentence));
        }
    }
    if !norm::covers(of.channels, of.x) {
        let channels = of.channels;
        return Some(Reason::plain(format!(
            "{channels} channels are more than a norm's kernel takes"
        )));
    }
    None
}
