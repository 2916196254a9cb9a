//! How the steps of the layer are shared among threads: by all of torch's, or inside one of them.
//!
//! What is computed for an item never depends on the thread or on the number of threads, so neither does a result.

use std::sync::Mutex;

use super::libtorch;
use super::simd::Real;
use super::workspace::Workspace;

/// Who does the work.
pub enum Team<'a, T: Real> {
    /// All of torch's threads.
    All,
    /// The thread that asks, with its workspace.
    One(&'a mut Workspace<T>),
}

impl<T: Real> Team<'_, T> {
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
                    // The queue is locked for the take alone; if another thread panicked, the rest is left.
                    while let Some(item) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                        work(item, &mut workspace);
                    }
                });
            }
        }
    }
}
