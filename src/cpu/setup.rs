//! From the tensors of a call to what the steps take, and memory for the parameters' gradients.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::kernels::dropout::Mask;
use super::kernels::norm::NormView;
use super::layer_view::{LayerView, LinearView, Masks};
use super::matrix::{Matrix, MatrixMut};
use super::simd::Real;
use super::tensors::{elements, elements_mut, empty};
use super::totals::{ColumnTotal, WeightTotal};
use crate::call::random::Site;
use crate::call::{self, Dims, Input, Params};

/// The same parameters without gaps.
pub fn contiguous(params: &Params) -> Result<Params, TchError> {
    params.map(Tensor::f_contiguous)
}

/// Uninitialised parameters of the same shapes.
pub fn empty_like<T: Real + Element>(params: &Params) -> Result<Params, TchError> {
    params.map(|tensor| empty::<T>(&tensor.size()))
}

/// The layer over contiguous parameters.
pub fn layer<'a, T: Real + Element>(
    input: &Input,
    params: &'a Params,
    dims: &Dims,
) -> Result<LayerView<'a, T>, TchError> {
    let config = &input.config;
    let seed = match &input.seed {
        Some(seed) => seed.f_int64_value(&[])?,
        None => 0, // nothing is dropped
    };
    let mask = |site, p| Mask::new(seed, site, p);
    Ok(LayerView {
        in_proj: linear(&params.in_proj),
        out_proj: linear(&params.out_proj),
        linear1: linear(&params.linear1),
        linear2: linear(&params.linear2),
        norm1: norm(&params.norm1),
        norm2: norm(&params.norm2),
        eps: config.layer_norm_eps.map(T::from_f64),
        masks: Masks {
            attention: mask(Site::Attention, config.dropout.attention),
            hidden: mask(Site::Hidden, config.dropout.hidden),
            residual1: mask(Site::Residual1, config.dropout.residual1),
            residual2: mask(Site::Residual2, config.dropout.residual2),
        },
        activation: config.activation,
        norm_first: config.norm_first,
        heads: dims.heads as usize,
        samples: dims.samples as usize,
        positions: dims.positions as usize,
    })
}

fn linear<T: Real + Element>(linear: &call::Linear) -> LinearView<'_, T> {
    let (rows, columns) = shape(&linear.weight);
    LinearView {
        weight: Matrix::new(elements(&linear.weight), rows, columns),
        bias: linear.bias.as_ref().map(elements),
    }
}

fn norm<T: Real + Element>(norm: &call::Norm) -> NormView<'_, T> {
    NormView { weight: elements(&norm.weight), bias: norm.bias.as_ref().map(elements) }
}

/// Rows and columns of a weight.
fn shape(weight: &Tensor) -> (usize, usize) {
    let size = weight.size();
    (size[0] as usize, size[1] as usize)
}

/// Where the gradients of the parameters go.
pub struct ParamGrads<'a, T: Real> {
    /// `in_proj`, `out_proj`, linear1, linear2: `[out, in]` and `[out]`
    pub linears: [(WeightTotal<'a, T>, Option<ColumnTotal<'a, T>>); 4],
    /// norm1, norm2: `[C]` each
    pub norms: [(ColumnTotal<'a, T>, Option<ColumnTotal<'a, T>>); 2],
}

impl<'a, T: Real + Element> ParamGrads<'a, T> {
    /// For so many parts of the rows.
    pub fn new(grads: &'a mut Params, parts: usize) -> Self {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } = grads;
        let total = |tensor: &'a mut Tensor| ColumnTotal::new(elements_mut(tensor));
        let linear = |linear: &'a mut call::Linear| {
            let (rows, columns) = shape(&linear.weight);
            let weight = MatrixMut::new(elements_mut(&mut linear.weight), rows, columns);
            (WeightTotal::new(weight, parts), linear.bias.as_mut().map(total))
        };
        let norm =
            |norm: &'a mut call::Norm| (total(&mut norm.weight), norm.bias.as_mut().map(total));
        Self {
            linears: [in_proj, out_proj, linear1, linear2].map(linear),
            norms: [norm1, norm2].map(norm),
        }
    }
}
