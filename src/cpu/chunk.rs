//! Memory from the system, in sizes that repeat, and what happens where there is none.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::panic::resume_unwind;
#[cfg(target_os = "linux")]
use std::ptr::null_mut;
use std::ptr::NonNull;

/// From here on, a chunk is put on huge pages.
const HUGE: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;
/// From here on, a chunk is mapped: in the heap of the C library, what is freed stays with the process for as long as
/// anything small lies above it.
const MAPPED: usize = 128 << 10;
const CACHE_LINE: usize = 64;

/// Memory that was zeroed when it was new, and holds whatever it was used for since.
pub struct Chunk {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a chunk is owned by whoever holds it, as a Box would be.
unsafe impl Send for Chunk {}
// SAFETY: as above; a shared one gives its address and its size alone.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// None if the system gives no more memory; `bytes` comes from [`round_up`].
    pub fn new(bytes: usize) -> Option<Self> {
        let start = if is_mapped(bytes) {
            map(bytes)?
        } else {
            // SAFETY: `round_up` never gives 0 bytes.
            NonNull::new(unsafe { alloc_zeroed(Self::layout(bytes)) })?
        };
        Some(Self { start, bytes })
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn layout(bytes: usize) -> Layout {
        // SAFETY: the alignment is a power of two, and `round_up` refuses sizes near isize::MAX.
        unsafe { Layout::from_size_align_unchecked(bytes, CACHE_LINE) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if is_mapped(self.bytes) {
            unmap(self.start, self.bytes);
        } else {
            // SAFETY: it was allocated by `new` with this layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) };
        }
    }
}

fn is_mapped(bytes: usize) -> bool {
    cfg!(target_os = "linux") && bytes >= MAPPED
}

/// Fresh pages, which the system fills with zeros at the first touch; large ones begin on a huge page.
#[cfg(target_os = "linux")]
fn map(bytes: usize) -> Option<NonNull<u8>> {
    let slack = if bytes >= HUGE { HUGE_PAGE } else { 0 };
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping wherever the system has room.
    let start = unsafe { libc::mmap(null_mut(), bytes + slack, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = NonNull::new(start.cast::<u8>())?;
    if slack == 0 {
        return Some(start);
    }
    let before = start.align_offset(HUGE_PAGE).min(slack);
    // SAFETY: `before` is at most `slack`, so all `bytes` after it are mapped.
    let (huge, end) = unsafe { (start.add(before), start.add(before + bytes)) };
    unmap(start, before);
    unmap(end, slack - before);
    // SAFETY: advice on memory that is ours alone; if it is refused, pages are small.
    unsafe { libc::madvise(huge.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    Some(huge)
}

/// Asks for huge pages under memory of torch's that is about to be written.
#[cfg(target_os = "linux")]
pub fn advise_huge_pages<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let (start, bytes) = (memory.as_mut_ptr().cast::<u8>(), size_of_val(memory));
    let before = start.align_offset(PAGE);
    if bytes >= HUGE + before {
        // SAFETY: advice on the whole pages that lie in the slice; what they hold stays.
        unsafe {
            let pages = (bytes - before) / PAGE * PAGE;
            libc::madvise(start.add(before).cast(), pages, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn advise_huge_pages<T>(_memory: &mut [T]) {}

#[cfg(not(target_os = "linux"))]
fn map(_bytes: usize) -> Option<NonNull<u8>> {
    None // not called
}

/// Gives a mapping or an end of it back, whole pages.
#[cfg(target_os = "linux")]
fn unmap(start: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller owns these pages and uses them no more.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    }
}

#[cfg(not(target_os = "linux"))]
fn unmap(_start: NonNull<u8>, _bytes: usize) {}

/// The size that is allocated for `bytes`; None if no allocator could. Sizes step by an eighth of a power of two, so
/// that batches of nearly the same size share chunks.
pub fn round_up(bytes: usize) -> Option<usize> {
    if bytes >= isize::MAX as usize / 2 {
        return None;
    }
    let step = (bytes.next_power_of_two() / 16).max(CACHE_LINE);
    Some(bytes.max(1).next_multiple_of(step))
}

/// How many size classes there are.
pub const CLASSES: usize = CLASSES_OF_A_DOUBLING * usize::BITS as usize;
/// So many classes further, chunks are twice as large.
pub const CLASSES_OF_A_DOUBLING: usize = 8;

/// The number of a size of [`round_up`], in the order of the sizes.
pub fn class(bytes: usize) -> usize {
    let above = bytes.next_power_of_two(); // at least CACHE_LINE
    let eighths = (bytes - above / 2) / (above / 16); // 1 to 8
    CLASSES_OF_A_DOUBLING * above.trailing_zeros() as usize + eighths - 1
}

/// The payload of an unwinding that a lack of memory has caused.
///
/// # Rationale
/// Memory is allocated in the middle of a call, also in threads that C++ started, where a `Result` would have to pass
/// through each closure that is run there. Unwinding drops what was allocated so far, is carried over from a thread to
/// its caller, and becomes an error in the binding. No panic hook runs, so nothing is printed.
#[derive(Debug)]
pub struct OutOfMemory {
    pub bytes: usize,
}

impl OutOfMemory {
    pub fn unwind(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_by_less_than_an_eighth() {
        for bytes in [1, 64, 65, 1000, 4097, 5 << 20, (33 << 20) + 1] {
            let rounded = round_up(bytes).unwrap_or(0);
            assert!(
                rounded >= bytes && rounded <= bytes + (bytes / 8).max(CACHE_LINE),
                "{bytes} {rounded}"
            );
        }
    }

    #[test]
    fn each_size_has_a_class_of_its_own_in_their_order() {
        let mut sizes: Vec<_> =
            (0..61).flat_map(|i| (8..16).filter_map(move |j| round_up(j << i))).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let classes: Vec<_> = sizes.iter().map(|&size| class(size)).collect();
        assert!(classes.is_sorted_by(|a, b| a < b), "{classes:?}");
        assert!(classes.iter().all(|&class| class < CLASSES));
        assert_eq!(class(10 << 20), class(5 << 20) + CLASSES_OF_A_DOUBLING);
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        assert!(round_up(usize::MAX).is_none());
        assert!(round_up(1 << 50).and_then(Chunk::new).is_none());
    }
}
