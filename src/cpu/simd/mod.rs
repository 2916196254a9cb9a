//! Which instructions the kernels are compiled for, and which of them this process runs.
//!
//! # Rationale
//! A kernel is written once, in plain Rust over slices and small arrays, and compiled several times: every
//! [`Kernel`] is inlined into one function for each instruction set, where the compiler may use its registers.
//! Tried and dropped: intrinsics, which gave no more and would be one source for each set.

mod exp;
mod lanes;
mod real;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
use std::sync::OnceLock;

pub use exp::{erfc, exp};
pub use lanes::{Lanes, Vector};
pub use real::Real;

/// The instruction sets that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What every processor of the architecture has.
    Baseline,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The environment variable that asks for less than the processor has, for tests.
pub const VARIABLE: &str = "BATCHFORMER_ISA";

impl InstructionSet {
    /// The best that this processor has, or the lower one that [`VARIABLE`] names; the same for the whole process.
    pub fn current() -> Self {
        static CURRENT: OnceLock<InstructionSet> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let asked = std::env::var(VARIABLE).ok();
            let asked = asked.and_then(|name| Self::ALL.into_iter().find(|set| set.name() == name));
            asked.map_or(Self::detected(), |asked| asked.min(Self::detected()))
        })
    }

    /// All that this processor has.
    #[cfg(test)]
    fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|&set| set <= Self::detected())
    }

    const ALL: [Self; 3] = [Self::Baseline, Self::Avx2, Self::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn detected() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            _ => Self::Baseline,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected() -> Self {
        Self::Baseline
    }
}

/// What a kernel knows of the instruction set that it is compiled for.
pub trait Simd: 'static {
    /// Whether a multiplication and an addition are one instruction.
    const FUSED: bool;
    /// Bytes of a row of a register tile: six rows of it and the factors fill the registers.
    const PANEL_BYTES: usize;
    /// Elements that are computed in parallel.
    type Lanes<T: Real>: Vector<T>;
}

/// Prefetches numbers that will be read soon, while others are computed with.
#[inline(always)]
pub fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(64 / size_of::<T>()) {
        // SAFETY: a hint to the processor, which reads nothing and has the address of a number.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

pub const fn panel_width<S: Simd, T>() -> usize {
    S::PANEL_BYTES / size_of::<T>()
}

/// Elements of a panel's row, for each instruction set and each format.
pub const PANEL_WIDTHS: [usize; 6] = [
    panel_width::<Baseline, f32>(),
    panel_width::<Baseline, f64>(),
    panel_width::<Avx2, f32>(),
    panel_width::<Avx2, f64>(),
    panel_width::<Avx512, f32>(),
    panel_width::<Avx512, f64>(),
];
/// The widest of them.
pub const WIDEST_PANEL: usize = largest(&PANEL_WIDTHS);
/// The most lanes of any instruction set; the others' numbers divide it.
pub const MOST_LANES: usize = largest(&LANES);

const LANES: [usize; 3] = [lanes::<Baseline>(), lanes::<Avx2>(), lanes::<Avx512>()];
const _: () = assert!(divide_all(&LANES, MOST_LANES));

const fn lanes<S: Simd>() -> usize {
    <S::Lanes<f32> as Vector<f32>>::LANES
}

const fn largest(sizes: &[usize]) -> usize {
    let (mut largest, mut i) = (0, 0);
    while i < sizes.len() {
        largest = if sizes[i] > largest { sizes[i] } else { largest };
        i += 1;
    }
    largest
}

/// Whether each of the sizes divides `multiple`.
pub const fn divide_all(sizes: &[usize], multiple: usize) -> bool {
    let mut i = 0;
    while i < sizes.len() {
        if !multiple.is_multiple_of(sizes[i]) {
            return false;
        }
        i += 1;
    }
    true
}

pub struct Baseline;
pub struct Avx2;
pub struct Avx512;

impl Simd for Baseline {
    // On aarch64 the baseline has it; on x86-64 `mul_add` would be a call into the C library.
    const FUSED: bool = cfg!(target_arch = "aarch64");
    const PANEL_BYTES: usize = if cfg!(target_arch = "aarch64") { 64 } else { 32 };
    type Lanes<T: Real> = Lanes<T, 4>;
}

impl Simd for Avx2 {
    const FUSED: bool = true;
    const PANEL_BYTES: usize = 64;
    type Lanes<T: Real> = Lanes<T, 8>;
}

impl Simd for Avx512 {
    const FUSED: bool = true;
    const PANEL_BYTES: usize = 256;
    type Lanes<T: Real> = Lanes<T, 16>;
}

/// Work that is compiled for every instruction set. `run` and all that it calls must be `#[inline(always)]`.
pub trait Kernel {
    fn run<S: Simd>(self);
}

/// Runs the kernel with the instructions of [`InstructionSet::current`]; tests may ask for others.
pub fn run(kernel: impl Kernel) {
    #[cfg(test)]
    if let Some(set) = ASKED.get() {
        return run_with(set, kernel);
    }
    run_with(InstructionSet::current(), kernel);
}

#[cfg(test)]
thread_local! {
    static ASKED: std::cell::Cell<Option<InstructionSet>> = const { std::cell::Cell::new(None) };
}

/// Runs a test with every instruction set of this processor.
#[cfg(test)]
pub fn with_each_set(test: impl Fn(InstructionSet)) {
    for set in InstructionSet::available() {
        ASKED.set(Some(set));
        test(set);
    }
    ASKED.set(None);
}

/// Runs the kernel with the instructions of a set that the processor has.
fn run_with(set: InstructionSet, kernel: impl Kernel) {
    match set {
        InstructionSet::Baseline => kernel.run::<Baseline>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `current` and `available`, where sets come from, never exceed `detected`.
        InstructionSet::Avx2 => unsafe { x86_64::avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        InstructionSet::Avx512 => unsafe { x86_64::avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        InstructionSet::Avx2 | InstructionSet::Avx512 => kernel.run::<Baseline>(),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{Avx2, Avx512, Kernel};

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(kernel: impl Kernel) {
        kernel.run::<Avx2>();
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn avx512(kernel: impl Kernel) {
        kernel.run::<Avx512>();
    }
}
