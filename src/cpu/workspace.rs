//! The scratch of one thread, by what it is for.

use super::block::Block;
use super::simd::Real;

/// Buffers that grow to what is asked for and stay; what they hold is not kept from one use to the next.
pub struct Workspace<T: Real> {
    /// Of products: columns of the right factor.
    pub panel: Buffer<T>,
    /// Of attention: queries, scores and their gradients.
    pub attention: [Buffer<T>; 4],
}

impl<T: Real> Default for Workspace<T> {
    fn default() -> Self {
        Self { panel: Buffer::default(), attention: std::array::from_fn(|_| Buffer::default()) }
    }
}

/// Memory that is taken when it is first asked for.
pub struct Buffer<T: Real>(Option<Block<T>>);

impl<T: Real> Default for Buffer<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Real> Buffer<T> {
    /// `len` numbers of any value.
    pub fn get(&mut self, len: usize) -> &mut [T] {
        if self.0.as_ref().is_none_or(|block| block.len() < len) {
            self.0 = None; // given back before more is taken
        }
        &mut self.0.get_or_insert_with(|| Block::new(len))[..len]
    }
}
