//! What the forward leaves for the backward: activations and row statistics, no dropout mask and no attention
//! probability. Every path leaves the same, position after position.

use tch::Kind;

use super::config::{Activation, Config};
use super::needs::{Needs, Piece};
use super::shape::{Axis, Shape};
use super::{accumulate_kind, Kinds};

/// Which of the dtypes of a call a saved tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtypeOf {
    X,
    /// The four weights, which autocast may have made narrower.
    Linears,
    /// float32, or float64 for float64.
    Sums,
}

impl DtypeOf {
    pub fn kind(self, kinds: Kinds) -> Kind {
        match self {
            DtypeOf::X => kinds.x,
            DtypeOf::Linears => kinds.linears,
            DtypeOf::Sums => accumulate_kind(kinds.x),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            DtypeOf::X => "x",
            DtypeOf::Linears => "linears",
            DtypeOf::Sums => "sums",
        }
    }
}

/// Which calls have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    PostNorm,
    Relu,
    Gelu,
    /// With several positions the backward recomputes it, some at a time, while it stays in a core's cache.
    OnePosition,
}

/// What is known of a saved tensor whatever the call is.
pub struct SavedFact {
    pub name: &'static str,
    pub shape: Shape,
    pub dtype: DtypeOf,
    when: When,
    /// Where the backward first uses it: post-norm, pre-norm.
    used_at: [Piece; 2],
}

/// The table: a field of [`Saved`] and what is known of it, a line each.
macro_rules! saved {
    ($($(#[$doc:meta])* $name:ident: [$(($times:literal, $axis:ident)),*], $dtype:ident, $when:ident,
        [$post:ident, $pre:ident];)*) => {
        /// One of something for each saved tensor.
        #[derive(Clone, Copy)]
        pub struct Saved<T> {
            $($(#[$doc])* pub $name: T,)*
        }

        /// In the order of the fields.
        pub const SAVED: [SavedFact; [$(stringify!($name)),*].len()] = [$(SavedFact {
            name: stringify!($name),
            shape: &[$(($times, Axis::$axis)),*],
            dtype: DtypeOf::$dtype,
            when: When::$when,
            used_at: [Piece::$post, Piece::$pre],
        }),*];

        impl<T> Saved<T> {
            pub fn into_array(self) -> [T; SAVED.len()] {
                [$(self.$name),*]
            }

            pub fn from_array([$($name),*]: [T; SAVED.len()]) -> Self {
                Self { $($name),* }
            }

            pub fn as_mut(&mut self) -> Saved<&mut T> {
                Saved { $($name: &mut self.$name),* }
            }

            pub fn as_ref(&self) -> Saved<&T> {
                Saved { $($name: &self.$name),* }
            }

            pub fn try_map<U, E>(
                self,
                mut each: impl FnMut(T) -> Result<U, E>,
            ) -> Result<Saved<U>, E> {
                Ok(Saved { $($name: each(self.$name)?),* })
            }

            /// Together with what another holds under the same names.
            pub fn zip<U>(self, other: Saved<U>) -> Saved<(T, U)> {
                Saved { $($name: (self.$name, other.$name)),* }
            }
        }
    };
}

saved! {
    /// Query, key and value; the query alone for a call with `keys_values`.
    qkv: [(1, L), (1, N), (1, P)], Linears, Always, [OutProj, OutProj];
    /// Log-sum-exp of the scores of each query.
    logsumexp: [(1, L), (1, N), (1, H)], Sums, Always, [OutProj, OutProj];
    /// The heads' outputs side by side, before the output projection.
    attended: [(1, L), (1, N), (1, C)], Linears, OnePosition, [OutProj, OutProj];
    /// x plus the attention branch.
    residual1: [(1, L), (1, N), (1, C)], X, Always, [Linear1, Linear1];
    /// The output of ReLU, after dropout.
    activated: [(1, L), (1, N), (1, F)], Linears, Relu, [Linear2, Linear2];
    /// What the last norm of the post-norm layer normalises.
    residual2: [(1, L), (1, N), (1, C)], X, PostNorm, [Norm2, Norm2];
    /// Mean and reciprocal standard deviation of the input of norm1 and of norm2.
    mean1: [(1, L), (1, N)], Sums, Always, [Linear1, InProj];
    rstd1: [(1, L), (1, N)], Sums, Always, [Linear1, InProj];
    mean2: [(1, L), (1, N)], Sums, Always, [Norm2, Linear1];
    rstd2: [(1, L), (1, N)], Sums, Always, [Norm2, Linear1];
    /// The input of GELU, whose output is recomputed. Last of all, so that a tensor that a forward with ReLU saved is
    /// not taken for it, whatever the sizes are.
    preactivation: [(1, L), (1, N), (1, F)], Linears, Gelu, [Linear2, Linear2];
}

impl<T> Saved<T> {
    pub fn map<U>(self, each: impl FnMut(T) -> U) -> Saved<U> {
        Saved::from_array(self.into_array().map(each))
    }
}

impl Saved<&'static SavedFact> {
    pub fn facts() -> Self {
        Saved::from_array(SAVED.each_ref())
    }
}

impl SavedFact {
    /// Whether the forward makes it, to be kept or not.
    pub fn is_made(&self, config: &Config) -> bool {
        match self.when {
            When::Always | When::OnePosition | When::Relu => true,
            When::PostNorm => !config.norm_first,
            When::Gelu => config.activation == Activation::Gelu,
        }
    }

    /// Whether the forward keeps it for a backward with these needs.
    pub fn is_kept(&self, config: &Config, needs: &Needs, positions: i64) -> bool {
        let here = match self.when {
            When::OnePosition => positions == 1,
            When::Relu => config.activation == Activation::Relu,
            _ => self.is_made(config),
        };
        let [post_norm, pre_norm] = self.used_at;
        here && needs.reach(if config.norm_first { pre_norm } else { post_norm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::needs::NEEDS;
    use crate::call::Dropout;

    fn kept(flags: [bool; NEEDS], norm_first: bool, positions: i64) -> Vec<&'static str> {
        let config = Config {
            nhead: 1,
            dropout: Dropout { attention: 0.0, hidden: 0.0, residual1: 0.0, residual2: 0.0 },
            activation: Activation::Relu,
            norm_first,
            batch_first: false,
            layer_norm_eps: [1e-5; 2],
        };
        let needs = Needs::new(flags, norm_first);
        let kept = SAVED.iter().filter(|fact| fact.is_kept(&config, &needs, positions));
        kept.map(|fact| fact.name).collect()
    }

    #[test]
    fn what_no_gradient_needs_is_not_kept() {
        let mut norm2_alone = [false; NEEDS];
        norm2_alone[NEEDS - 2] = true; // its bias
        assert!(kept([false; NEEDS], false, 1).is_empty());
        assert_eq!(kept(norm2_alone, false, 1), ["residual2", "mean2", "rstd2"]);
        assert_eq!(kept(norm2_alone, true, 1), ["residual1", "activated", "mean2", "rstd2"]);
    }

    #[test]
    fn the_call_decides_what_is_kept() {
        let without = |names: [&str; 2]| -> Vec<_> {
            SAVED.iter().map(|fact| fact.name).filter(|name| !names.contains(name)).collect()
        };
        assert_eq!(kept([true; NEEDS], true, 1), without(["residual2", "preactivation"]));
        assert_eq!(kept([true; NEEDS], false, 2), without(["attended", "preactivation"]));
    }
}
