//! The layer in fused kernels on the CPU, in float32 and float64 from one source.
//!
//! From the top down: `forward` and `backward` take tensors apart, `plan` says how their rows are divided,
//! `forward_steps` and `backward_steps` are the steps on some rows, `linear` and `attention` distribute a step over
//! threads, `kernels` compute. Besides: `matrix`, rows of numbers and the right to write them; `pool`, memory that is
//! used again; `threads`, torch's own; `simd`, the instruction sets; `fma_peak`, what they could do at best.
//!
//! Unsafe code is in six files, each for one reason: `tensors`, which trusts libtorch's pointers; `matrix`, as blocks
//! of columns are no slices; `chunk`, which allocates; `block`, which makes numbers of that; `libtorch`, which calls C;
//! `simd`, which calls what was compiled for instructions that the processor was found to have.

mod attention;
mod backward;
mod backward_steps;
mod block;
mod buffers;
mod chain;
mod chunk;
mod fma_peak;
mod forward;
mod forward_steps;
mod kernels;
mod layer_view;
mod libtorch;
mod linear;
mod matrix;
mod packed;
mod plan;
mod pool;
mod rows;
mod saved_rows;
mod setup;
mod simd;
mod tensors;
mod threads;
mod totals;
mod widened;
mod workspace;

use tch::{Kind, TchError, Tensor};

pub use chunk::OutOfMemory;
pub use pool::empty as empty_cache;

use crate::call::{Dims, Grads, Input, Kinds, SavedTensors};

/// See [`forward::forward`]; in float64, in float32, or widened to it.
pub fn forward(input: &Input, dims: &Dims) -> Result<(Tensor, SavedTensors), TchError> {
    pool::count_call();
    match input.kinds()? {
        Kinds { x: Kind::Double, .. } => forward::forward::<f64>(input, dims),
        Kinds { x: Kind::Float, linears: Kind::Float } => forward::forward::<f32>(input, dims),
        _ => widened::forward(input, dims),
    }
}

/// See [`backward::backward`].
pub fn backward(
    grad_y: &Tensor,
    input: &Input,
    saved: &SavedTensors,
    dims: &Dims,
) -> Result<Grads, TchError> {
    pool::count_call();
    match input.kinds()? {
        Kinds { x: Kind::Double, .. } => backward::backward::<f64>(grad_y, input, saved, dims),
        Kinds { x: Kind::Float, linears: Kind::Float } => {
            backward::backward::<f32>(grad_y, input, saved, dims)
        }
        _ => widened::backward(grad_y, input, saved, dims),
    }
}

/// See [`fma_peak::fma_flops`]; in float64 or float32.
pub fn fma_flops(kind: Kind, rounds: usize) -> usize {
    match kind {
        Kind::Double => fma_peak::fma_flops::<f64>(rounds),
        _ => fma_peak::fma_flops::<f32>(rounds),
    }
}

/// The instruction set that the kernels run with in this process: "avx512", "avx2" or "baseline".
pub fn instruction_set() -> &'static str {
    simd::InstructionSet::current().name()
}
