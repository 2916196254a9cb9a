//! Inverted dropout (Srivastava et al., 2014) with the masks of `call::random`, on rows.
//!
//! Masks are drawn where they are needed, forward and backward, and never kept: a step takes the same time with p = 0.5
//! as with p = 0.

use crate::call::random::{mix, scale, site_state, threshold, Site, GAMMA};
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::rows::TokenRows;
use crate::cpu::simd::{Kernel, Real, Simd};

/// A site's mask: which elements it keeps and what those are multiplied by.
#[derive(Clone, Copy)]
pub struct Mask<T> {
    /// What the words of the site start from.
    pub state: u64,
    /// Elements whose 16 bits are below it are dropped; 0: dropout is off.
    pub threshold: u32,
    pub scale: T,
}

/// Words that are drawn at a time.
const WORDS: usize = 16;
const ELEMENTS: usize = 4 * WORDS;

impl<T: Real> Mask<T> {
    /// The mask of a site for dropout with probability p.
    pub fn new(seed: i64, site: Site, p: f64) -> Self {
        let threshold = threshold(p);
        Self { state: site_state(seed, site), threshold, scale: T::from_f64(scale(threshold)) }
    }

    /// Keeps everything.
    pub fn off() -> Self {
        Self { state: 0, threshold: 0, scale: T::ONE }
    }

    #[inline(always)]
    pub fn is_off(&self) -> bool {
        self.threshold == 0
    }

    /// Word `index` of the site: the bits of elements 4 `index` to 4 `index` + 3.
    #[inline(always)]
    pub fn word(&self, index: u64) -> u64 {
        mix(self.state.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA)))
    }

    /// What an element with these bits is multiplied by.
    #[inline(always)]
    pub fn factor(&self, bits: u32) -> T {
        self.scale.keep_if(bits >= self.threshold)
    }

    /// Drops and scales `values`, the elements from `first` on.
    #[inline(always)]
    pub fn apply(&self, first: u64, values: &mut [T]) {
        if self.is_off() {
            return;
        }
        let skipped = (first % 4) as usize;
        let mut word = first / 4;
        let mut rest = values;
        let mut skip = skipped;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut((ELEMENTS - skip).min(rest.len()));
            let mut bytes = [[0; 8]; WORDS];
            for i in 0..WORDS {
                bytes[i] = self.word(word + i as u64).to_le_bytes();
            }
            let bits = &bytes.as_flattened()[2 * skip..];
            for (value, bits) in now.iter_mut().zip(bits.chunks_exact(2)) {
                *value *= self.factor(u32::from(u16::from_le_bytes([bits[0], bits[1]])));
            }
            rest = later;
            word += WORDS as u64;
            skip = 0;
        }
    }
}

/// `to = dropout(from)`: also the gradient of it.
pub struct Drop<'a, T: Real> {
    pub from: Matrix<'a, T>,
    pub mask: Mask<T>,
    pub tokens: TokenRows,
    pub to: MatrixMut<'a, T>,
}

impl<T: Real> Kernel for Drop<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { from, mask, tokens, mut to } = self;
        for row in 0..from.rows() {
            let to = to.row(row);
            to.copy_from_slice(from.row(row));
            mask.apply(tokens.element(row, to.len()), to);
        }
    }
}
