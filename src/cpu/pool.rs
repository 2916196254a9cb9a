//! Blocks of memory that are used again from one step to the next, for scratch and for what tensors hold.
//!
//! # Rationale
//! The C library maps every block above 32 MiB afresh and gives it back when it is freed, and the kernel fills
//! each of its pages with zeros at the first touch: 58 MB took 19 ms to write when fresh and 2 ms when used before.
//! So freed blocks are kept: as many bytes as have been in use at once. Large ones lie on huge pages where the system
//! grants them. Blocks belong to who took them and to no thread, as two callers may run on one thread of OpenMP's.

use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, TryLockError};

use tch::kind::Element;
use tch::{TchError, Tensor};

use super::libtorch;
use super::simd::Real;

/// From here on, a block is put on huge pages.
const HUGE: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;
const CACHE_LINE: usize = 64;

/// Memory that was zeroed when it was new, and holds whatever it was used for since.
struct Chunk {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a chunk is owned by whoever holds it, as a Box would be.
unsafe impl Send for Chunk {}

impl Chunk {
    fn layout(bytes: usize) -> Layout {
        let align = if bytes >= HUGE { HUGE_PAGE } else { CACHE_LINE };
        // SAFETY: the alignment is a power of two, and `round_up` refuses sizes near isize::MAX.
        unsafe { Layout::from_size_align_unchecked(bytes, align) }
    }

    fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: `round_up` never gives 0 bytes.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: advice on memory that is ours alone; if it is refused, pages are small.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: `bytes` bytes were allocated. Any bits are a number, but memory has to be written once to be read.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Self { start, bytes }
    }

    fn free(self) {
        // SAFETY: it was allocated by `new` with this layout, and `self` is gone afterwards.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) };
    }
}

/// Sizes step by an eighth of a power of two, so that batches of nearly the same size share chunks.
fn round_up(bytes: usize) -> usize {
    assert!(bytes < isize::MAX as usize / 2, "{bytes} bytes cannot be allocated");
    let step = (bytes.next_power_of_two() / 16).max(CACHE_LINE);
    bytes.max(1).next_multiple_of(step)
}

/// The chunks that wait for their next use.
struct Pool {
    chunks: Vec<Chunk>,
    /// Bytes on the pool, bytes in use, and the most that were in use at once.
    kept: usize,
    used: usize,
    most_used: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { chunks: Vec::new(), kept: 0, used: 0, most_used: 0 });

/// Runs `work` on the pool, unless another thread holds it for long: after a fork, the holder may be gone.
fn with_pool<R>(work: impl FnOnce(&mut Pool) -> R) -> Option<R> {
    for _ in 0..1000 {
        match POOL.try_lock() {
            Ok(mut pool) => return Some(work(&mut pool)),
            Err(TryLockError::Poisoned(poisoned)) => return Some(work(&mut poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    None
}

impl Pool {
    /// The smallest chunk that is large enough and not wastefully large.
    fn take(&mut self, bytes: usize) -> Option<Chunk> {
        let sizes = self.chunks.iter().map(|chunk| chunk.bytes).enumerate();
        let fitting = sizes.filter(|(_, size)| (bytes..=2 * bytes).contains(size));
        let best = fitting.min_by_key(|&(_, size)| size).map(|(index, _)| index);
        let chunk = best.map(|index| self.chunks.swap_remove(index));
        let size = chunk.as_ref().map_or(bytes, |chunk| chunk.bytes);
        self.kept -= if chunk.is_some() { size } else { 0 };
        self.used += size;
        self.most_used = self.most_used.max(self.used);
        chunk
    }

    /// Keeps the chunk, or returns it to be freed.
    fn put(&mut self, chunk: Chunk) -> Option<Chunk> {
        self.used = self.used.saturating_sub(chunk.bytes);
        if self.kept + chunk.bytes > self.most_used {
            return Some(chunk);
        }
        self.kept += chunk.bytes;
        self.chunks.push(chunk);
        None
    }
}

/// `len` numbers of any value, to be written before they are read; the memory is kept when it is dropped.
pub struct Block<T: Real> {
    chunk: Option<Chunk>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Real> Block<T> {
    pub fn new(len: usize) -> Self {
        let bytes = round_up(len.saturating_mul(size_of::<T>()));
        let chunk =
            with_pool(|pool| pool.take(bytes)).flatten().unwrap_or_else(|| Chunk::new(bytes));
        Self { chunk: Some(chunk), len, of: PhantomData }
    }

    fn start(&self) -> *mut T {
        self.chunk.as_ref().map_or(NonNull::dangling(), |chunk| chunk.start.cast()).as_ptr()
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
            let mut chunk = Some(chunk);
            let refused =
                with_pool(|pool| chunk.take().and_then(|chunk| pool.put(chunk))).flatten();
            if let Some(chunk) = refused.or(chunk) {
                chunk.free();
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_by_less_than_an_eighth() {
        for bytes in [1, 64, 65, 1000, 4097, 5 << 20, (33 << 20) + 1] {
            let rounded = round_up(bytes);
            assert!(
                rounded >= bytes && rounded <= bytes + (bytes / 8).max(CACHE_LINE),
                "{bytes} {rounded}"
            );
        }
    }

    #[test]
    fn a_kept_piece_is_used_again_and_what_is_kept_has_a_bound() {
        let mut pool = Pool { chunks: Vec::new(), kept: 0, used: 0, most_used: 0 };
        assert!(pool.take(4096).is_none());
        let chunk = Chunk::new(4096);
        let start = chunk.start;
        assert!(pool.put(chunk).is_none());
        assert!(pool.take(1024).is_none(), "four times as much as is needed");
        assert_eq!(pool.take(2048).map(|chunk| (chunk.start, chunk.free()).0), Some(start));
        let (first, second) = (Chunk::new(4096), Chunk::new(4096));
        assert!(pool.put(first).is_none());
        assert!(pool.put(second).map(Chunk::free).is_some(), "more than was ever in use");
        assert!(pool.take(4096).map(Chunk::free).is_some());
    }
}
