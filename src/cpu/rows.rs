//! Tokens as the kernels take them: position after position, so that those that attend to each other lie together.

/// Rows that a step without sums takes at a time when threads share them.
pub const ROWS: usize = 32;

/// Rows of tokens from `first` on, of N samples and L positions.
#[derive(Clone, Copy)]
pub struct TokenRows {
    pub first: usize,
    pub samples: usize,
    pub positions: usize,
}

impl TokenRows {
    /// The index of the first element of a row in `[N, L, width]`, whatever the strides of x are.
    #[inline(always)]
    pub fn element(&self, row: usize, width: usize) -> u64 {
        let row = self.first + row;
        let (position, sample) = (row / self.samples, row % self.samples);
        ((sample * self.positions + position) * width) as u64
    }

    pub fn skip(self, rows: usize) -> Self {
        Self { first: self.first + rows, ..self }
    }
}
