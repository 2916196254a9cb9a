//! The sizes of one call.

use tch::Kind;

/// N, L, K, C, H and the feed-forward width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// N: the samples that attend to each other.
    pub samples: i64,
    /// L: the positions that do not see each other.
    pub positions: i64,
    /// K: the keys at each position: the samples' own N, or those of `keys_values`.
    pub keys: i64,
    /// How many of them are attended to, from the first on.
    pub counted_keys: i64,
    /// Whether they are the samples' own.
    pub own_keys: bool,
    /// C
    pub channels: i64,
    /// H
    pub heads: i64,
    pub feedforward: i64,
    /// Tokens lie position after position (`[L, N, C]`) instead of sample after sample (`[N, L, C]`).
    pub batch_first: bool,
}

impl Dims {
    /// M = N L, the rows of every linear.
    pub fn tokens(&self) -> i64 {
        self.samples * self.positions
    }

    /// Of query, key and value, how many `in_proj` makes.
    pub fn in_proj_parts(&self) -> i64 {
        if self.own_keys {
            3
        } else {
            1
        }
    }

    /// C / H
    pub fn head_width(&self) -> i64 {
        self.channels / self.heads
    }

    /// What the scores are multiplied by: 1 / sqrt(C / H).
    pub fn attention_scale(&self) -> f64 {
        1.0 / (self.head_width() as f64).sqrt()
    }
}

/// The dtype in which half precision sums: softmax, statistics, log-sum-exp.
pub fn accumulate_kind(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}
