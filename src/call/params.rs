//! The twelve tensors of the layer, under torch's names.

use tch::Tensor;

/// `y = x weightᵀ + bias`, weight `[out, in]`.
pub struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// Scale and shift `[C]` of a layer norm.
pub struct Norm {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// The parameters; their gradients go by the same names.
pub struct Params {
    /// `[3C, C]`: query, key and value.
    pub in_proj: Linear,
    pub out_proj: Linear,
    pub linear1: Linear,
    pub linear2: Linear,
    pub norm1: Norm,
    pub norm2: Norm,
}

impl Params {
    /// Every tensor that is there, with its name in the op's schema.
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let pairs = [
            ("in_proj_weight", Some(&self.in_proj.weight)),
            ("in_proj_bias", self.in_proj.bias.as_ref()),
            ("out_proj_weight", Some(&self.out_proj.weight)),
            ("out_proj_bias", self.out_proj.bias.as_ref()),
            ("linear1_weight", Some(&self.linear1.weight)),
            ("linear1_bias", self.linear1.bias.as_ref()),
            ("linear2_weight", Some(&self.linear2.weight)),
            ("linear2_bias", self.linear2.bias.as_ref()),
            ("norm1_weight", Some(&self.norm1.weight)),
            ("norm1_bias", self.norm1.bias.as_ref()),
            ("norm2_weight", Some(&self.norm2.weight)),
            ("norm2_bias", self.norm2.bias.as_ref()),
        ];
        pairs.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))).collect()
    }

    /// The same parameters with every tensor that is there replaced.
    pub fn map<E>(&self, mut replace: impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let mut linear = |linear: &Linear| {
            let bias = linear.bias.as_ref().map(&mut replace).transpose()?;
            Ok(Linear { weight: replace(&linear.weight)?, bias })
        };
        let (in_proj, out_proj) = (linear(&self.in_proj)?, linear(&self.out_proj)?);
        let (linear1, linear2) = (linear(&self.linear1)?, linear(&self.linear2)?);
        let mut norm = |norm: &Norm| {
            let bias = norm.bias.as_ref().map(&mut replace).transpose()?;
            Ok(Norm { weight: replace(&norm.weight)?, bias })
        };
        let (norm1, norm2) = (norm(&self.norm1)?, norm(&self.norm2)?);
        Ok(Self { in_proj, out_proj, linear1, linear2, norm1, norm2 })
    }

    /// Every tensor that is there, in the order of the op's schema.
    pub fn into_tensors(self) -> Vec<Tensor> {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } = self;
        let linears = [in_proj, out_proj, linear1, linear2].map(|l| [Some(l.weight), l.bias]);
        let norms = [norm1, norm2].map(|n| [Some(n.weight), n.bias]);
        linears.into_iter().chain(norms).flatten().flatten().collect()
    }
}
