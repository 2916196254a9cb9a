//! What a call of the layer is made of, and the table of the op: what it takes and leaves, under which names, in which
//! shapes and order. Python makes the schema and the fake tensors from it. Nothing here computes on tensors.

mod config;
mod dims;
mod needs;
mod params;
pub mod random;
mod saved;
mod shape;

use tch::{Kind, TchError, Tensor};

pub use config::{Activation, Config, Dropout, CONFIG};
pub use dims::{accumulate_kind, Dims};
pub use needs::{Needs, Piece, NEEDS};
pub use params::{Affine, Linear, Norm, ParameterFact, Params, PARAMETERS};
pub use saved::{DtypeOf, Saved, SavedFact, SAVED};
pub use shape::Shape;

/// What the layer is applied to, forward and backward alike.
pub struct Input {
    /// `[N, L, C]`, or `[L, N, C]` if `config.batch_first`.
    pub x: Tensor,
    pub params: Params<Tensor>,
    /// `[K, L, 2C]`, or `[L, K, 2C]`: what the samples attend to instead of each other.
    pub keys_values: Option<Tensor>,
    /// A 0-d int64 tensor on the CPU: how many of the K count, from the first on. All, if it is not there.
    pub key_count: Option<Tensor>,
    /// A 0-d int64 tensor; the dropout masks are a function of it.
    pub seed: Option<Tensor>,
    pub config: Config,
    pub needs: Needs,
    /// Whether float32 may be multiplied in TF32 on CUDA, which torch allows or not for its own products.
    pub tf32: bool,
}

/// The dtypes of a call.
#[derive(Clone, Copy)]
pub struct Kinds {
    pub x: Kind,
    /// Of the four weights, which autocast may have made narrower.
    pub linears: Kind,
}

impl Input {
    pub fn kinds(&self) -> Result<Kinds, TchError> {
        Ok(Kinds { x: self.x.f_kind()?, linears: self.params.in_proj.weight.f_kind()? })
    }
}

/// What the forward leaves for the backward: a tensor under the name of each that is kept.
pub type SavedTensors = Saved<Option<Tensor>>;

/// The gradients that are needed: of the input, of the parameters under their names, and of keys and values.
pub struct Grads {
    pub x: Option<Tensor>,
    pub params: Params<Option<Tensor>, Option<Tensor>>,
    pub keys_values: Option<Tensor>,
}

impl Grads {
    pub fn none() -> Self {
        let params = Params::from_array([const { None }; PARAMETERS.len()]);
        Self { x: None, params, keys_values: None }
    }

    /// Those that exist, in the order of the needs.
    pub fn into_tensors(self) -> impl Iterator<Item = Tensor> {
        let Self { x, params, keys_values } = self;
        std::iter::once(x).chain(params.into_array()).chain([keys_values]).flatten()
    }
}
