//! One layer as the steps see it: parameters as rows, masks, sizes.

use std::ops::Range;

use super::kernels::dropout::Mask;
use super::kernels::norm::NormView;
use super::kernels::product::Start;
use super::kernels::right::Right;
use super::matrix::Matrix;
use super::simd::Real;
use crate::call::Activation;

/// `y = x weightᵀ + bias`
#[derive(Clone, Copy)]
pub struct LinearView<'a, T> {
    /// `[out, in]`
    pub weight: Matrix<'a, T>,
    pub bias: Option<&'a [T]>,
}

impl<'a, T> LinearView<'a, T> {
    /// What the products with the weight start from.
    pub fn start(&self) -> Start<'a, T> {
        self.bias.map_or(Start::Zero, Start::Row)
    }
}

/// The right factors of the four linears: of the forward or of the backward.
#[derive(Clone, Copy)]
pub struct RightFactors<'a, T> {
    pub in_proj: Right<'a, T>,
    pub out_proj: Right<'a, T>,
    pub linear1: Right<'a, T>,
    pub linear2: Right<'a, T>,
}

#[derive(Clone, Copy)]
pub struct Masks<T> {
    pub attention: Mask<T>,
    pub hidden: Mask<T>,
    pub residual1: Mask<T>,
    pub residual2: Mask<T>,
}

/// What is the same for all rows.
pub struct LayerView<'a, T> {
    pub in_proj: LinearView<'a, T>,
    pub out_proj: LinearView<'a, T>,
    pub linear1: LinearView<'a, T>,
    pub linear2: LinearView<'a, T>,
    pub norm1: NormView<'a, T>,
    pub norm2: NormView<'a, T>,
    /// Of norm1 and of norm2.
    pub eps: [T; 2],
    pub masks: Masks<T>,
    pub activation: Activation,
    pub norm_first: bool,
    pub heads: usize,
    /// What the scores are multiplied by.
    pub attention_scale: T,
    /// N
    pub samples: usize,
    /// L
    pub positions: usize,
    /// Keys of each position, which its samples attend to.
    pub keys: usize,
    /// K, with those that do not count: the dropout of attention is drawn for all.
    pub all_keys: usize,
}

impl<'a, T: Real> LayerView<'a, T> {
    /// The rows of the keys of the positions that some rows of tokens belong to.
    pub fn keys_of(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start / self.samples * self.keys..rows.end.div_ceil(self.samples) * self.keys
    }

    /// C
    pub fn channels(&self) -> usize {
        self.out_proj.weight.rows()
    }

    pub fn feedforward(&self) -> usize {
        self.linear1.weight.rows()
    }

    /// `x weightᵀ`
    pub fn forward_factors(&self) -> RightFactors<'a, T> {
        RightFactors {
            in_proj: Right::Transposed(self.in_proj.weight),
            out_proj: Right::Transposed(self.out_proj.weight),
            linear1: Right::Transposed(self.linear1.weight),
            linear2: Right::Transposed(self.linear2.weight),
        }
    }

    /// `grad_y weight`
    pub fn backward_factors(&self) -> RightFactors<'a, T> {
        RightFactors {
            in_proj: Right::Plain(self.in_proj.weight),
            out_proj: Right::Plain(self.out_proj.weight),
            linear1: Right::Plain(self.linear1.weight),
            linear2: Right::Plain(self.linear2.weight),
        }
    }
}
