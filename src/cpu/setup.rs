//! From the tensors of a call to what the steps take, and memory for the parameters' gradients.

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::kernels::dropout::Mask;
use super::kernels::norm::NormView;
use super::layer_view::{LayerView, LinearView, Masks};
use super::matrix::{Matrix, MatrixMut};
use super::simd::Real;
use super::tensors::{self, elements, elements_mut, empty_of_pool, readable};
use super::totals::{ColumnTotal, WeightTotal};
use crate::call::random::Site;
use crate::call::{self, Affine, Dims, Grads, Input, Params, PARAMETERS};

/// The same parameters without gaps.
pub fn contiguous(params: &Params<Tensor>) -> Result<Params<Tensor>, TchError> {
    params.map(tensors::contiguous)
}

/// Uninitialised gradients of x, the parameters, and keys and values, those that are needed; 0 of keys that do not count.
pub fn empty_grads<T: Real + Element>(input: &Input, dims: &Dims) -> Result<Grads, TchError> {
    let mut grads = Grads::none();
    if input.needs.x {
        grads.x = Some(empty_of_pool::<T>(&input.x.size())?);
    }
    let needs = input.needs.params.into_array();
    let mut params = [const { None }; PARAMETERS.len()];
    for ((grad, fact), needed) in params.iter_mut().zip(&PARAMETERS).zip(needs) {
        if needed {
            *grad = Some(empty_of_pool::<T>(&dims.shape(fact.shape))?);
        }
    }
    grads.params = Params::from_array(params);
    if let (Some(keys_values), true) = (&input.keys_values, input.needs.keys_values) {
        let grad = empty_of_pool::<T>(&keys_values.size())?;
        let axis = i64::from(dims.batch_first);
        let uncounted = dims.keys - dims.counted_keys;
        let _ = grad.f_narrow(axis, dims.counted_keys, uncounted)?.f_zero_()?;
        grads.keys_values = Some(grad);
    }
    Ok(grads)
}

/// The keys and values that count, if the call has any.
pub fn counted_keys(input: &Input, dims: &Dims) -> Result<Option<Tensor>, TchError> {
    let axis = i64::from(dims.batch_first);
    let counted = |each: &Tensor| readable(&each.f_narrow(axis, 0, dims.counted_keys)?);
    input.keys_values.as_ref().map(counted).transpose()
}

/// The layer over contiguous parameters.
pub fn layer_view<'a, T: Real + Element>(
    input: &Input,
    params: &'a Params<Tensor>,
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
        attention_scale: T::from_f64(dims.attention_scale()),
        samples: dims.samples as usize,
        positions: dims.positions as usize,
        keys: dims.counted_keys as usize,
        all_keys: dims.keys as usize,
    })
}

fn linear<T: Real + Element>(linear: &call::Linear) -> LinearView<'_, T> {
    let size = linear.weight.size();
    LinearView {
        weight: Matrix::new(elements(&linear.weight), size[0] as usize, size[1] as usize),
        bias: linear.bias.as_ref().map(elements),
    }
}

fn norm<T: Real + Element>(norm: &call::Norm) -> NormView<'_, T> {
    NormView { weight: elements(&norm.weight), bias: norm.bias.as_ref().map(elements) }
}

/// Where the gradients of a weight and its bias go, if they are needed.
type AffineGrads<W, B> = (Option<W>, Option<B>);

/// Where the gradients of the parameters go.
pub struct ParamGrads<'a, T: Real> {
    /// `in_proj`, `out_proj`, linear1, linear2: `[out, in]` and `[out]`
    pub linears: [AffineGrads<WeightTotal<'a, T>, ColumnTotal<'a, T>>; 4],
    /// norm1, norm2: `[C]` each
    pub norms: [AffineGrads<ColumnTotal<'a, T>, ColumnTotal<'a, T>>; 2],
}

impl<'a, T: Real + Element> ParamGrads<'a, T> {
    /// For `units` units of the rows.
    pub fn new(grads: &'a mut Params<Option<Tensor>, Option<Tensor>>, units: usize) -> Self {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } = grads;
        let weight = |grad: &'a mut Tensor| {
            let size = grad.size();
            let (rows, columns) = (size[0] as usize, size[1] as usize);
            WeightTotal::new(MatrixMut::new(elements_mut(grad), rows, columns), units)
        };
        let vector = |grad: &'a mut Tensor| ColumnTotal::new(elements_mut(grad));
        let linear = |linear: &'a mut Affine<Option<Tensor>, Option<Tensor>>| {
            (linear.weight.as_mut().map(weight), linear.bias.as_mut().map(vector))
        };
        let norm = |norm: &'a mut Affine<Option<Tensor>, Option<Tensor>>| {
            (norm.weight.as_mut().map(vector), norm.bias.as_mut().map(vector))
        };
        Self {
            linears: [in_proj, out_proj, linear1, linear2].map(linear),
            norms: [norm1, norm2].map(norm),
        }
    }
}
