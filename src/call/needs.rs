//! Which gradients a call is asked for, and how far the backward has to go for them.

use super::params::{Params, PARAMETERS};

/// What has gradients, in pieces: the input and the layer's modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    X,
    InProj,
    OutProj,
    Linear1,
    Linear2,
    Norm1,
    Norm2,
}

/// The pieces in the order in which the backward comes to them.
const POST_NORM: [Piece; 7] = [
    Piece::Norm2,
    Piece::Linear2,
    Piece::Linear1,
    Piece::Norm1,
    Piece::OutProj,
    Piece::InProj,
    Piece::X,
];
const PRE_NORM: [Piece; 7] = [
    Piece::Linear2,
    Piece::Linear1,
    Piece::Norm2,
    Piece::OutProj,
    Piece::InProj,
    Piece::Norm1,
    Piece::X,
];

/// The gradients that are asked for. What needs none is neither computed nor saved for: a piece's backward runs if it,
/// or one that the backward comes to later, needs a gradient.
#[derive(Clone, Copy)]
pub struct Needs {
    pub x: bool,
    pub params: Params<bool, bool>,
    pub keys_values: bool,
    norm_first: bool,
}

/// One flag for x, then one for each parameter, then one for `keys_values`.
pub const NEEDS: usize = 1 + PARAMETERS.len() + 1;

impl Needs {
    pub fn new([x, params @ .., keys_values]: [bool; NEEDS], norm_first: bool) -> Self {
        Self { x, params: Params::from_array(params), keys_values, norm_first }
    }

    fn of(&self, piece: Piece) -> bool {
        let Params { in_proj, out_proj, linear1, linear2, norm1, norm2 } = &self.params;
        let affine = match piece {
            Piece::X => return self.x,
            Piece::InProj => in_proj,
            Piece::OutProj => out_proj,
            Piece::Linear1 => linear1,
            Piece::Linear2 => linear2,
            Piece::Norm1 => norm1,
            Piece::Norm2 => norm2,
        };
        // Keys and values are where the output of `in_proj` is.
        affine.weight || affine.bias || (piece == Piece::InProj && self.keys_values)
    }

    /// Whether the backward reaches this piece.
    pub fn reach(&self, piece: Piece) -> bool {
        self.order_from(piece).any(|piece| self.of(piece))
    }

    /// Whether any gradient is needed.
    pub fn any(&self) -> bool {
        POST_NORM.into_iter().any(|piece| self.of(piece))
    }

    /// Whether the backward continues past this piece.
    pub fn pass(&self, piece: Piece) -> bool {
        self.order_from(piece).skip(1).any(|piece| self.of(piece))
    }

    /// This piece and those that the backward reaches later.
    fn order_from(&self, piece: Piece) -> impl Iterator<Item = Piece> {
        let order = if self.norm_first { PRE_NORM } else { POST_NORM };
        order.into_iter().skip_while(move |&each| each != piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backward_stops_behind_the_last_piece_that_needs_a_gradient() {
        let mut flags = [false; NEEDS];
        flags[8] = true; // linear2_bias
        for norm_first in [false, true] {
            let needs = Needs::new(flags, norm_first);
            assert!(needs.reach(Piece::Linear2) && !needs.pass(Piece::Linear2));
            assert_eq!(needs.reach(Piece::Norm2), !norm_first);
            assert!(!needs.reach(Piece::Linear1) && !needs.reach(Piece::X));
        }
    }
}
