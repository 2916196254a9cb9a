//! The core of batchformer: a whole transformer encoder layer as one forward and one backward.
//!
//! Data flows down, results and errors come back up the same way:
//!
//! ```text
//! py      unpack Python's arguments, release the GIL, call, wrap
//! layer   check the input once, choose the path, call
//! cpu     the layer in fused kernels on the CPU: float32 and float64, half precision widened to float32
//! cuda    the layer in kernels on CUDA, compiled at first use, where they have been verified: float32, half precision
//! aten    the layer through libtorch: any device, any dtype
//! call    what a call is made of: sizes, options, parameters, what is saved; every other module knows it
//! ```
//!
//! N samples, L positions, C channels, H heads; the layer attends over N at each of the L positions.

mod aten;
mod call;
mod cpu;
mod cuda;
mod layer;
mod py;
