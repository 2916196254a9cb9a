//! The twelve tensors of the layer, under torch's names, and other structs of twelve: gradients, needs.

use tch::Tensor;

use super::shape::{Axis, Shape};

/// A weight `W` with its bias `B`: of a linear `y = x weightᵀ + bias`, weight `[out, in]`, or of a norm, `[C]` each.
#[derive(Clone, Copy)]
pub struct Affine<W, B = Option<W>> {
    pub weight: W,
    pub bias: B,
}

/// A linear's tensors.
pub type Linear = Affine<Tensor>;
/// A layer norm's tensors.
pub type Norm = Affine<Tensor>;

/// One of something for each parameter.
#[derive(Clone, Copy)]
pub struct Params<W, B = Option<W>> {
    /// `[3C, C]`: query, key and value; `[C, C]`, the query alone, for a call with `keys_values`.
    pub in_proj: Affine<W, B>,
    pub out_proj: Affine<W, B>,
    pub linear1: Affine<W, B>,
    pub linear2: Affine<W, B>,
    pub norm1: Affine<W, B>,
    pub norm2: Affine<W, B>,
}

/// What is known of a parameter whatever the call is.
pub struct ParameterFact {
    /// In the op's schema and in the layer's `state_dict`, with dots there.
    pub name: &'static str,
    pub shape: Shape,
    /// A bias, which a layer may do without.
    pub optional: bool,
    /// It belongs to a norm, which autocast treats apart.
    pub of_norm: bool,
}

const fn linear(name: &'static str, shape: Shape, optional: bool) -> ParameterFact {
    ParameterFact { name, shape, optional, of_norm: false }
}

const fn norm(name: &'static str, optional: bool) -> ParameterFact {
    ParameterFact { name, shape: &[(1, Axis::C)], optional, of_norm: true }
}

/// In the order of the op's schema, which is that of [`Params::into_array`].
pub const PARAMETERS: [ParameterFact; 12] = [
    linear("in_proj_weight", &[(1, Axis::P), (1, Axis::C)], false),
    linear("in_proj_bias", &[(1, Axis::P)], true),
    linear("out_proj_weight", &[(1, Axis::C), (1, Axis::C)], false),
    linear("out_proj_bias", &[(1, Axis::C)], true),
    linear("linear1_weight", &[(1, Axis::F), (1, Axis::C)], false),
    linear("linear1_bias", &[(1, Axis::F)], true),
    linear("linear2_weight", &[(1, Axis::C), (1, Axis::F)], false),
    linear("linear2_bias", &[(1, Axis::C)], true),
    norm("norm1_weight", false),
    norm("norm1_bias", true),
    norm("norm2_weight", false),
    norm("norm2_bias", true),
];

impl<T> Params<T, T> {
    pub fn into_array(self) -> [T; PARAMETERS.len()] {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } = self;
        [
            in_proj.weight,
            in_proj.bias,
            out_proj.weight,
            out_proj.bias,
            linear1.weight,
            linear1.bias,
            linear2.weight,
            linear2.bias,
            norm1.weight,
            norm1.bias,
            norm2.weight,
            norm2.bias,
        ]
    }

    pub fn from_array(array: [T; PARAMETERS.len()]) -> Self {
        let [w1, b1, w2, b2, w3, b3, w4, b4, w5, b5, w6, b6] = array;
        let pair = |weight, bias| Affine { weight, bias };
        Self {
            in_proj: pair(w1, b1),
            out_proj: pair(w2, b2),
            linear1: pair(w3, b3),
            linear2: pair(w4, b4),
            norm1: pair(w5, b5),
            norm2: pair(w6, b6),
        }
    }
}

impl Params<Tensor> {
    /// From the order of the schema, where any may be missing; the error is the name of the first missing weight.
    pub fn from_options(tensors: [Option<Tensor>; PARAMETERS.len()]) -> Result<Self, &'static str> {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } =
            Params::from_array(tensors);
        let affine =
            |index: usize, Affine { weight, bias }: Affine<Option<Tensor>, Option<Tensor>>| {
                Ok(Affine { weight: weight.ok_or(PARAMETERS[index].name)?, bias })
            };
        Ok(Self {
            in_proj: affine(0, in_proj)?,
            out_proj: affine(2, out_proj)?,
            linear1: affine(4, linear1)?,
            linear2: affine(6, linear2)?,
            norm1: affine(8, norm1)?,
            norm2: affine(10, norm2)?,
        })
    }

    /// In the order of the schema.
    pub fn as_options(&self) -> [Option<&Tensor>; PARAMETERS.len()] {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } = self;
        let affines = [in_proj, out_proj, linear1, linear2, norm1, norm2];
        std::array::from_fn(|i| {
            let Affine { weight, bias } = affines[i / 2];
            if i % 2 == 0 {
                Some(weight)
            } else {
                bias.as_ref()
            }
        })
    }

    /// Every tensor that exists, with its fact.
    pub fn present(&self) -> impl Iterator<Item = (&'static ParameterFact, &Tensor)> {
        PARAMETERS.iter().zip(self.as_options()).filter_map(|(fact, tensor)| Some((fact, tensor?)))
    }

    /// The same parameters with every existing tensor replaced.
    pub fn map<E>(&self, mut replace: impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let mut affine = |affine: &Affine<Tensor>| {
            let bias = affine.bias.as_ref().map(&mut replace).transpose()?;
            Ok(Affine { weight: replace(&affine.weight)?, bias })
        };
        Ok(Self {
            in_proj: affine(&self.in_proj)?,
            out_proj: affine(&self.out_proj)?,
            linear1: affine(&self.linear1)?,
            linear2: affine(&self.linear2)?,
            norm1: affine(&self.norm1)?,
            norm2: affine(&self.norm2)?,
        })
    }
}
