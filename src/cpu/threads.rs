//! How the steps of the layer are shared among threads: by all of torch's, or inside one of them.
//!
//! What is computed for an item never depends on the thread or on the number of threads, so neither does a result.

use std::sync::Mutex;

use super::libtorch;
use super::plan::Plan;
use super::simd::Real;
use super::workspace::Workspace;
use crate::call::Dims;

/// Multiplications of a call below which a second thread costs more than it saves: at 3.3 million (N = 128, C = 48)
/// forward and backward took 90 and 148 µs on one thread, 116 and 192 on two.
const SMALL: i64 = 4 << 20;
/// The same where threads wait for each other three times and not after every step.
const SMALL_BY_ROWS: i64 = 1 << 20;
/// Reading the weights takes as long as multiplying this many rows by them.
const WEIGHT_ROWS: i64 = 16;

/// Who does the work.
pub enum Team<'a, T: Real> {
    /// All of torch's threads.
    All,
    /// The thread that asks, with its workspace.
    One(&'a mut Workspace<T>),
}

impl<T: Real> Team<'_, T> {
    pub fn threads(&self) -> usize {
        match self {
            Self::All => libtorch::threads(),
            Self::One(_) => 1,
        }
    }

    /// Does `work` once for every item; each comes to one thread.
    pub fn for_each<I: Send>(
        &mut self,
        items: impl IntoIterator<Item = I, IntoIter: Send>,
        work: impl Fn(I, &mut Workspace<T>) + Sync,
    ) {
        match self {
            Self::One(workspace) => items.into_iter().for_each(|item| work(item, workspace)),
            Self::All => {
                let queue = Mutex::new(items.into_iter());
                libtorch::in_every_thread(&|| {
                    let mut workspace = Workspace::default();
                    // The queue is locked for the take alone: a panic in the work does not poison it.
                    while let Some(item) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                        work(item, &mut workspace);
                    }
                });
            }
        }
    }
}

/// All of torch's threads, unless there is too little to do.
pub fn team<'a, T: Real>(dims: &Dims, plan: &Plan, workspace: &'a mut Workspace<T>) -> Team<'a, T> {
    let linears = dims.channels * (4 * dims.channels + 2 * dims.feedforward);
    let small = if plan.row_tile.is_some() { SMALL_BY_ROWS } else { SMALL };
    let attention = 2 * dims.counted_keys * dims.channels;
    if (dims.tokens() + WEIGHT_ROWS).saturating_mul(linears + attention) < small {
        Team::One(workspace)
    } else {
        Team::All
    }
}
