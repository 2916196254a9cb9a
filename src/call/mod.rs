//! What a call of the layer is made of. Nothing here computes on tensors.

mod config;
mod dims;
mod params;
pub mod random;
mod saved;

use tch::Tensor;

pub use config::{Activation, Config, Dropout};
pub use dims::{accumulate_kind, Dims};
pub use params::{Linear, Norm, Params};
pub use saved::Saved;

/// What the layer is applied to, forward and backward alike.
pub struct Input {
    /// `[N, L, C]`, or `[L, N, C]` if `config.batch_first`.
    pub x: Tensor,
    pub params: Params,
    /// A 0-d int64 tensor; the dropout masks are a function of it.
    pub seed: Option<Tensor>,
    pub config: Config,
}

/// The gradients of the input and, under the names of the parameters, of the parameters.
pub struct Grads {
    pub x: Tensor,
    pub params: Params,
}
