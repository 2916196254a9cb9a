//! Memory that is kept from one step to the next, for scratch, for what the forward saves, and for large gradients.
//!
//! # Rationale
//! The C library maps every block above 32 MiB afresh and gives it back when it is freed, and the kernel fills
//! each of its pages with zeros at the first touch: 58 MB took 19 ms to write when fresh and 2 ms when used before.
//! So freed chunks are kept and used again. Large ones lie on huge pages where the system grants them. Chunks belong
//! to who took them and to no thread, as two callers may run on one thread of OpenMP's.
//!
//! Outputs are in memory of torch's: they can be resized, and those that are kept from an evaluation are freed when
//! they are deleted. Gradients live for a step and are not resized. Tried: those in memory of torch's, too. The C
//! library keeps as much as twice its largest block, which y alone stays below: with the gradients a step of N = 16, L
//! = 850, C = 256 took 7,600 page faults where it takes 800.
//!
//! # Limitations
//! As much is kept as was in use at once in the last [`CALLS`] to twice as many calls, at most [`MOST_CHUNKS`] chunks
//! and [`cap`] bytes; the oldest goes first. Nothing but a call gives back: after the last one, what is kept stays
//! until [`empty`].

use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};

use super::chain::{Chain, Links};
use super::chunk::{class, round_up, Chunk, OutOfMemory, CLASSES, CLASSES_OF_A_DOUBLING};

/// Chunks that are kept at most, so that the pool needs no memory of its own. A training step of one layer keeps 30.
const MOST_CHUNKS: usize = 1024;
/// Calls, forward and backward, that a step of a deep model makes without using all of its memory.
const CALLS: u32 = 256;
/// The environment variable for the most that is kept, in MiB.
const VARIABLE: &str = "BATCHFORMER_POOL_MB";
/// How often a caller asks for the pool before it does without.
const ATTEMPTS: usize = 1000;
/// A training step of one layer keeps 28 to 135 MiB at the benchmark's shapes, so this is enough for several.
const DEFAULT_CAP: usize = 1024;

/// The chunks that wait for their next use, in chains by class and in one by age.
struct Pool {
    chunks: [Option<Chunk>; MOST_CHUNKS],
    by_class: ([Chain; CLASSES], [Links; MOST_CHUNKS]),
    by_age: (Chain, [Links; MOST_CHUNKS]),
    /// Places that were given up, linked by age; those from `fresh` on were never used.
    vacant: Chain,
    fresh: u16,
    /// Bytes that wait, bytes in use, and the most that were in use at once in these calls and in those before.
    kept: usize,
    used: usize,
    most_used: [usize; 2],
    calls: u32,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::NEW);
/// What callers who did without the pool would have added to [`Pool::used`]; who has it next does.
static OWED: AtomicIsize = AtomicIsize::new(0);

/// A chunk of at least `bytes` bytes, used before or new. Unwinds with [`OutOfMemory`] if there is none, also after
/// all that waited here has been given back.
pub fn take(bytes: usize) -> Chunk {
    let Some(size) = round_up(bytes) else { OutOfMemory { bytes }.unwind() };
    let used_before = with_pool(|pool| pool.take(size)).unwrap_or_else(|| {
        owe(size.cast_signed());
        None
    });
    let chunk = used_before.or_else(|| Chunk::new(size)).or_else(|| {
        empty();
        Chunk::new(size)
    });
    chunk.unwrap_or_else(|| {
        owe(-size.cast_signed());
        OutOfMemory { bytes }.unwind()
    })
}

/// Keeps the chunk for the next that asks for its size.
pub fn put(chunk: Chunk) {
    let size = chunk.bytes();
    // If the pool cannot be had, the chunk is dropped with the closure.
    if with_pool(|pool| pool.put(chunk)).is_none() {
        owe(-size.cast_signed());
    }
    free_surplus();
}

/// Counts a forward or a backward.
pub fn count_call() {
    with_pool(Pool::count_call);
    free_surplus();
}

/// Gives back all chunks that wait.
pub fn empty() {
    while with_pool(Pool::take_oldest).flatten().is_some() {}
}

/// Gives back what is more than may be kept, outside of the lock, as it takes the system a while.
fn free_surplus() {
    let cap = cap();
    while with_pool(|pool| pool.surplus(cap)).flatten().is_some() {}
}

/// The most bytes that are kept; the Python side has refused values that are no number.
fn cap() -> usize {
    static CAP: OnceLock<usize> = OnceLock::new();
    *CAP.get_or_init(|| {
        let asked = std::env::var(VARIABLE).ok().and_then(|asked| asked.trim().parse().ok());
        asked.unwrap_or(DEFAULT_CAP).saturating_mul(1 << 20)
    })
}

/// Runs `work` on the pool, unless another thread holds it for long: after a fork, the holder may be gone.
fn with_pool<R>(work: impl FnOnce(&mut Pool) -> R) -> Option<R> {
    for _ in 0..ATTEMPTS {
        let mut pool = match POOL.try_lock() {
            Ok(pool) => pool,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                std::hint::spin_loop();
                continue;
            }
        };
        pool.used = pool.used.saturating_add_signed(OWED.swap(0, Ordering::Relaxed));
        return Some(work(&mut pool));
    }
    None
}

fn owe(bytes: isize) {
    OWED.fetch_add(bytes, Ordering::Relaxed);
}

impl Pool {
    const NEW: Self = Self {
        chunks: [const { None }; MOST_CHUNKS],
        by_class: ([Chain::EMPTY; CLASSES], [Links::NONE; MOST_CHUNKS]),
        by_age: (Chain::EMPTY, [Links::NONE; MOST_CHUNKS]),
        vacant: Chain::EMPTY,
        fresh: 0,
        kept: 0,
        used: 0,
        most_used: [0; 2],
        calls: 0,
    };

    /// The smallest chunk that is large enough and at most twice as large; the caller makes one if there is none.
    fn take(&mut self, bytes: usize) -> Option<Chunk> {
        let first = class(bytes);
        let last = (first + CLASSES_OF_A_DOUBLING).min(CLASSES - 1);
        let fitting = self.by_class.0[first..=last].iter().find_map(|chain| chain.newest());
        let chunk = fitting.and_then(|place| self.remove(place));
        self.used += chunk.as_ref().map_or(bytes, Chunk::bytes);
        self.most_used[0] = self.most_used[0].max(self.used);
        chunk
    }

    /// Keeps the chunk; gives the oldest for it if all places are taken.
    fn put(&mut self, chunk: Chunk) -> Option<Chunk> {
        let full = self.vacant.newest().is_none() && usize::from(self.fresh) == MOST_CHUNKS;
        let oldest = if full { self.take_oldest() } else { None };
        let place = if let Some(place) = self.vacant.newest() {
            self.vacant.remove(&mut self.by_age.1, place);
            place
        } else {
            self.fresh += 1;
            self.fresh - 1
        };
        self.used = self.used.saturating_sub(chunk.bytes());
        self.kept += chunk.bytes();
        self.by_age.0.push(&mut self.by_age.1, place);
        self.by_class.0[class(chunk.bytes())].push(&mut self.by_class.1, place);
        self.chunks[usize::from(place)] = Some(chunk);
        oldest
    }

    /// The oldest chunk if more is kept than was in use at once, or than `cap`.
    fn surplus(&mut self, cap: usize) -> Option<Chunk> {
        let [now, before] = self.most_used;
        if self.kept <= now.max(before).min(cap) {
            return None;
        }
        self.take_oldest()
    }

    fn take_oldest(&mut self) -> Option<Chunk> {
        self.by_age.0.oldest().and_then(|place| self.remove(place))
    }

    fn remove(&mut self, place: u16) -> Option<Chunk> {
        let chunk = self.chunks[usize::from(place)].take()?;
        self.by_age.0.remove(&mut self.by_age.1, place);
        self.by_class.0[class(chunk.bytes())].remove(&mut self.by_class.1, place);
        self.vacant.push(&mut self.by_age.1, place);
        self.kept -= chunk.bytes();
        Some(chunk)
    }

    fn count_call(&mut self) {
        self.calls += 1;
        if self.calls == CALLS {
            self.calls = 0;
            self.most_used = [self.used, self.most_used[0]];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pool: &mut Pool, bytes: usize) -> Chunk {
        let chunk = pool.take(bytes).or_else(|| Chunk::new(bytes));
        chunk.unwrap_or_else(|| OutOfMemory { bytes }.unwind())
    }

    /// Takes `count` chunks at once, then puts them back and drops the surplus.
    fn use_at_once(pool: &mut Pool, count: usize, bytes: usize) {
        let chunks: Vec<_> = (0..count).map(|_| taken(pool, bytes)).collect();
        for chunk in chunks {
            pool.put(chunk);
        }
        while pool.surplus(usize::MAX).is_some() {}
    }

    #[test]
    fn a_chunk_is_used_again_for_what_is_not_much_smaller() {
        let mut pool = Pool::NEW;
        let chunk = taken(&mut pool, 4096);
        let start = chunk.start();
        assert!(pool.put(chunk).is_none());
        assert!(pool.take(1024).is_none(), "four times as much as is needed");
        assert!(pool.take(4096 + 512).is_none(), "too small");
        assert_eq!(pool.take(2048).map(|chunk| chunk.start()), Some(start));
    }

    #[test]
    fn no_more_is_kept_than_was_in_use_at_once_and_the_oldest_goes_first() {
        let mut pool = Pool::NEW;
        use_at_once(&mut pool, 3, 4096);
        assert_eq!((pool.kept, pool.used), (3 * 4096, 0));
        use_at_once(&mut pool, 1, 8192);
        assert_eq!(pool.kept, 4096 + 8192);
        assert!(pool.surplus(8192).is_some_and(|oldest| oldest.bytes() == 4096));
        assert!(pool.surplus(8192).is_none());
    }

    #[test]
    fn what_was_in_use_once_is_given_back_by_later_calls() {
        let mut pool = Pool::NEW;
        use_at_once(&mut pool, 200, 4096);
        for _ in 0..2 * CALLS {
            use_at_once(&mut pool, 2, 4096);
            pool.count_call();
        }
        use_at_once(&mut pool, 2, 4096);
        assert_eq!(pool.kept, 2 * 4096);
    }

    #[test]
    fn a_step_of_many_calls_keeps_its_memory() {
        let mut pool = Pool::NEW;
        for _ in 0..5 {
            let saved: Vec<_> = (0..CALLS / 2)
                .map(|_| {
                    pool.count_call();
                    taken(&mut pool, 4096)
                })
                .collect();
            for chunk in saved {
                pool.count_call();
                assert!(pool.put(chunk).is_none());
                assert!(pool.surplus(usize::MAX).is_none());
            }
        }
        assert_eq!(pool.kept, CALLS as usize / 2 * 4096);
    }

    #[test]
    fn what_is_put_back_while_another_thread_has_the_pool_is_no_longer_in_use() {
        const BYTES: usize = 1 << 20;
        let used = || with_pool(|pool| pool.used);
        // Other tests use the pool, too, but no chunks as large as these together.
        let chunks: Vec<_> = (0..64).map(|_| take(BYTES)).collect();
        let before = used().unwrap_or_default();
        let held = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        chunks.into_iter().for_each(put);
        assert!(used().is_none());
        drop(held);
        let after = used().unwrap_or_default();
        assert!(after + 60 * BYTES < before, "{before} bytes in use, then {after}");
    }

    #[test]
    fn many_small_chunks_leave_a_bounded_number_and_the_newest() {
        let mut pool = Pool::NEW;
        use_at_once(&mut pool, 3 * MOST_CHUNKS, 64);
        assert_eq!(pool.kept, MOST_CHUNKS * 64);
        let newest = Chunk::new(1 << 20);
        assert_eq!(newest.and_then(|chunk| pool.put(chunk)).map(|oldest| oldest.bytes()), Some(64));
        assert!(pool.take(1 << 20).is_some());
        let left = std::iter::from_fn(|| pool.take_oldest()).count();
        assert_eq!((left, pool.kept), (MOST_CHUNKS - 1, 0));
    }
}
