//! Whether the kernels serve a call, decided once for each kind of call in a process; and if not, why.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind};

use super::call::per_piece;
use super::device::{self, Toolchain};
use super::error::CudaError;
use super::kernel::Source;
use super::{ledger, norm, self_check};
use crate::call::{Activation, Config, Dims, Input};

/// What of a call decides; numbers of samples, positions and keys do not.
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

/// What the environment variable `BATCHFORMER_CUDA` says.
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
    /// As the process began.
    pub fn get() -> Self {
        static SWITCH: OnceLock<Switch> = OnceLock::new();
        *SWITCH.get_or_init(|| match std::env::var("BATCHFORMER_CUDA").as_deref() {
            Ok("torch") => Self::Torch,
            Ok("kernels") => Self::Kernels,
            _ => Self::Auto,
        })
    }
}

type Decisions = Mutex<HashMap<Signature, Option<Reason>>>;

fn memory() -> &'static Decisions {
    static DECISIONS: OnceLock<Decisions> = OnceLock::new();
    DECISIONS.get_or_init(Decisions::default)
}

/// Who asks whether kernels serve a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A module, which hands the call to torch's layer if not. A kind that has not come yet is not tried where torch's
    /// ops are traced.
    Module { may_try: bool },
    /// The op, which runs through libtorch if not.
    Op,
}

/// Why the kernels do not serve such calls; None if they do. The first call of its kind compiles them and compares a
/// small layer with libtorch's, unless a graph is captured.
///
/// A forward and its backward are of one kind, and what the op is told once holds for good: so both run on one path, as
/// what the forward leaves lies in another order here than on the others.
pub fn reason(of: &Signature, asker: Asker) -> Option<Reason> {
    if of.device == Device::Cpu {
        return uncovered(of); // emulated
    }
    let mut decisions = memory().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = decisions.get(of) {
        return known.clone();
    }
    let found = match settled(of) {
        Some(reason) => Some(reason),
        None => match hindrance(of, asker) {
            Some(reason) if asker != Asker::Op => return Some(reason),
            Some(reason) => Some(reason),
            None => decide(of),
        },
    };
    decisions.insert(*of, found.clone());
    found
}

/// What needs no device to be said.
fn settled(of: &Signature) -> Option<Reason> {
    if Switch::get() == Switch::Torch {
        let sentence = "BATCHFORMER_CUDA is torch".to_owned();
        return Some(Reason { sentence, is_fault: false });
    }
    uncovered(of)
}

/// Why nothing can be tried now, while it may be later.
fn hindrance(of: &Signature, asker: Asker) -> Option<Reason> {
    let not_yet = |sentence: &str| Some(Reason { sentence: sentence.to_owned(), is_fault: false });
    if asker == (Asker::Module { may_try: false }) {
        return not_yet("no such call has run yet outside of what traces this one");
    }
    match device::is_capturing(of.device) {
        Ok(true) => not_yet("a CUDA graph was being captured before any such call outside of it"),
        Ok(false) => None,
        Err(error) => Some(Reason { sentence: error.to_string(), is_fault: true }),
    }
}

/// All that was decided so far.
pub fn decisions() -> Vec<(Signature, Option<Reason>)> {
    let decisions = memory().lock().unwrap_or_else(PoisonError::into_inner);
    decisions.iter().map(|(signature, reason)| (*signature, reason.clone())).collect()
}

/// What a ledger says of a device on which all is right: a line's words but for the report.
pub fn sources(device: Device) -> Result<Vec<(String, String, String, String)>, CudaError> {
    let Toolchain { sm, nvrtc: [major, minor] } = device::toolchain(device)?;
    let line = |source: Source| {
        let (sm, nvrtc) = (format!("sm_{sm}"), format!("{major}.{minor}"));
        (sm, nvrtc, source.name().to_owned(), source.hash())
    };
    Ok(ledger::SOURCES.into_iter().map(line).collect())
}

/// What [`self_check::run`] finds, whether the device is listed or not.
pub fn check(of: &Signature) -> Result<f64, String> {
    match uncovered(of) {
        Some(reason) => Err(reason.sentence),
        None => self_check::run(of),
    }
}

fn decide(of: &Signature) -> Option<Reason> {
    let no = |sentence: String| Some(Reason { sentence, is_fault: false });
    let fault = |sentence: String| Some(Reason { sentence, is_fault: true });
    let toolchain = match device::toolchain(of.device) {
        Ok(toolchain) => toolchain,
        Err(error) => return fault(error.to_string()),
    };
    if Switch::get() == Switch::Auto {
        if let Some(sentence) = ledger::missing(&toolchain) {
            return no(sentence);
        }
    }
    self_check::run(of).err().and_then(fault)
}

/// What no kernel covers.
fn uncovered(of: &Signature) -> Option<Reason> {
    let no = |sentence: String| Some(Reason { sentence, is_fault: false });
    if of.x == Kind::Double {
        return no("float64 has no kernels".to_owned());
    }
    if of.x != of.linears && of.x != Kind::Float {
        return no("x and the weights are of two half precisions".to_owned());
    }
    for (name, width) in [("channels", of.channels), ("hidden units", of.feedforward)] {
        let piece = per_piece(of.linears);
        if width % piece != 0 {
            return no(format!("{width} {name} are no multiple of {piece}, which are 16 bytes"));
        }
    }
    if !norm::covers(of.channels, of.x) {
        return no(format!("{} channels are more than a norm's kernel takes", of.channels));
    }
    None
}
