//! The options of the layer: all that is not a tensor.

/// The constructor arguments of `torch.nn.TransformerEncoderLayer` that change the result.
#[derive(Clone)]
pub struct Config {
    pub nhead: i64,
    pub dropout: Dropout,
    pub activation: Activation,
    /// Normalise before attention and feed-forward instead of after.
    pub norm_first: bool,
    /// `x` is `[L, N, C]` in this crate's notation: the axis that is attended over comes second.
    pub batch_first: bool,
    /// Epsilon of the first and of the second layer norm.
    pub layer_norm_eps: [f64; 2],
}

/// The probability of dropping an element, at each of the four places.
#[derive(Clone, Copy)]
pub struct Dropout {
    /// On the attention probabilities.
    pub attention: f64,
    /// After the activation of the feed-forward.
    pub hidden: f64,
    /// On the output of the attention, before it is added to the residual.
    pub residual1: f64,
    /// On the output of the feed-forward, before it is added to the residual.
    pub residual2: f64,
}

impl Dropout {
    pub fn places(&self) -> [(&'static str, f64); 4] {
        [
            ("dropout of attention", self.attention),
            ("dropout of hidden", self.hidden),
            ("dropout of residual1", self.residual1),
            ("dropout of residual2", self.residual2),
        ]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Relu,
    /// The exact one, with the error function.
    Gelu,
}

impl Activation {
    pub const ALL: [Self; 2] = [Self::Relu, Self::Gelu];

    /// Its name as an argument of torch's layer.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Gelu => "gelu",
        }
    }
}

/// The fields in the order of the op's schema, with their types there.
pub const CONFIG: [(&str, &str); 6] = [
    ("nhead", "int"),
    ("dropout", "float[4]"),
    ("activation", "str"),
    ("norm_first", "bool"),
    ("batch_first", "bool"),
    ("layer_norm_eps", "float[2]"),
];
