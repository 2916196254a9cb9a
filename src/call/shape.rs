//! Shapes in letters: what every module calls a size, and what a tensor of the op looks like.

use super::Dims;

/// A size of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Samples, which attend to each other.
    N,
    /// Positions, which do not see each other.
    L,
    /// Channels.
    C,
    /// The width of the feed-forward network.
    F,
    /// Heads.
    H,
    /// What `in_proj` makes of a token: query, key and value, or the query alone.
    P,
}

impl Axis {
    pub fn letter(self) -> &'static str {
        match self {
            Axis::N => "N",
            Axis::L => "L",
            Axis::C => "C",
            Axis::F => "F",
            Axis::H => "H",
            Axis::P => "P",
        }
    }
}

/// The size of each axis of a tensor, as a multiple of one of the call's.
pub type Shape = &'static [(i64, Axis)];

impl Dims {
    pub fn size(&self, axis: Axis) -> i64 {
        match axis {
            Axis::N => self.samples,
            Axis::L => self.positions,
            Axis::C => self.channels,
            Axis::F => self.feedforward,
            Axis::H => self.heads,
            Axis::P => self.in_proj_parts() * self.channels,
        }
    }

    /// The sizes of a tensor of this shape.
    pub fn shape(&self, shape: Shape) -> Vec<i64> {
        shape.iter().map(|&(times, axis)| times * self.size(axis)).collect()
    }

    /// Elements of a token in a tensor `[L, N, ..]`.
    pub fn token_width(&self, shape: Shape) -> usize {
        self.shape(shape).into_iter().skip(2).product::<i64>() as usize
    }
}
