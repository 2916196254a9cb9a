//! Numbers in memory of the pool.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::chunk::Chunk;
use super::libtorch;
use super::pool;
use super::simd::Real;

/// `len` numbers of any value, to be written before they are read; the memory is kept when it is dropped.
pub struct Block<T: Real> {
    chunk: Option<Chunk>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Real> Block<T> {
    /// Unwinds with [`super::chunk::OutOfMemory`] if there is no memory for it.
    pub fn new(len: usize) -> Self {
        let chunk = pool::take(len.saturating_mul(size_of::<T>()));
        Self { chunk: Some(chunk), len, of: PhantomData }
    }

    fn start(&self) -> *mut T {
        self.chunk.as_ref().map_or(NonNull::dangling(), |chunk| chunk.start().cast()).as_ptr()
    }

    /// A tensor that holds the block, and drops it with its last reference.
    pub fn into_tensor(self, shape: &[usize]) -> Result<Tensor, TchError>
    where
        T: Element,
    {
        assert_eq!(shape.iter().product::<usize>(), self.len);
        // SAFETY: the block has that many numbers to itself, and moving it does not move them.
        unsafe { libtorch::tensor_over(self.start(), shape, self) }
    }
}

impl<T: Real> Drop for Block<T> {
    fn drop(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            pool::put(chunk);
        }
    }
}

impl<T: Real> Deref for Block<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the chunk has room for `len` numbers, is aligned to a cache line, and was zeroed at first.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl<T: Real> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the chunk is this block's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}
