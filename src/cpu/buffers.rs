//! Several matrices of the same rows in memory of their own, to be split into parts.

use super::block::Block;
use super::matrix::{Matrix, MatrixMut};
use super::simd::Real;

/// K matrices of `rows` rows; one that a call does not need has no columns.
pub struct Buffers<T: Real, const K: usize> {
    rows: usize,
    widths: [usize; K],
    blocks: [Block<T>; K],
}

impl<T: Real, const K: usize> Buffers<T, K> {
    pub fn new(rows: usize, widths: [usize; K]) -> Self {
        Self { rows, widths, blocks: widths.map(|width| Block::new(rows.saturating_mul(width))) }
    }

    pub fn matrices(&mut self) -> [MatrixMut<'_, T>; K] {
        let mut pairs = self.blocks.iter_mut().zip(self.widths);
        std::array::from_fn(|_| match pairs.next() {
            Some((block, width)) => MatrixMut::new(block, self.rows, width),
            None => MatrixMut::new(&mut [], 0, 0),
        })
    }

    pub fn views(&self) -> [Matrix<'_, T>; K] {
        std::array::from_fn(|i| Matrix::new(&self.blocks[i], self.rows, self.widths[i]))
    }

    pub fn into_blocks(self) -> [Block<T>; K] {
        self.blocks
    }
}

/// The matrices in parts of at most `rows` rows, a part of each at a time.
pub fn split<T, const K: usize>(
    matrices: [MatrixMut<'_, T>; K],
    rows: usize,
) -> impl Iterator<Item = [MatrixMut<'_, T>; K]> {
    let mut parts = matrices.map(|matrix| matrix.split_rows(rows));
    std::iter::from_fn(move || {
        let mut ended = false;
        let next = parts.each_mut().map(|parts| {
            parts.next().unwrap_or_else(|| {
                ended = true;
                MatrixMut::new(&mut [], 0, 0)
            })
        });
        (!ended).then_some(next)
    })
}
