//! The right factor of a product, cut into panels: as many columns as the registers hold, row after row.

use std::ops::Range;

use crate::cpu::matrix::Matrix;
use crate::cpu::simd::{panel_width, Kernel, Real, Simd, Vector, MOST_LANES};
use crate::cpu::workspace::Buffer;

/// Rows of a right factor that are multiplied at a time: a panel of so many stays in the L2 cache, and the result is
/// not read and written too often. Tiles of 128 to 384 rows were measured, all at the peak; with 128, a step of N =
/// 1024, C = 512 takes 4 % longer. A chain of 512 additions is less exact than torch's products by more than three
/// times.
pub const DEPTH: usize = 256;

/// The right factor `[depth, columns]`.
#[derive(Clone, Copy)]
pub enum Right<'a, T> {
    /// Not packed.
    Plain(Matrix<'a, T>),
    /// The transpose of `[columns, depth]`: a weight in the forward.
    Transposed(Matrix<'a, T>),
    /// Packed before, for many products.
    Packed(&'a Packed<'a, T>),
}

/// A right factor in panels, for every [`DEPTH`] rows one after the other.
pub struct Packed<'a, T> {
    panels: &'a [T],
    depth: usize,
    columns: usize,
}

impl<T: Real> Right<'_, T> {
    #[inline(always)]
    pub fn depth(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.rows(),
            Self::Transposed(matrix) => matrix.columns(),
            Self::Packed(packed) => packed.depth,
        }
    }

    #[inline(always)]
    pub fn columns(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.columns(),
            Self::Transposed(matrix) => matrix.rows(),
            Self::Packed(packed) => packed.columns,
        }
    }

    /// The panel of these rows and columns: a multiple of the lanes wide, filled up with 0. `columns` starts at a
    /// multiple of the panel's width.
    #[inline(always)]
    pub fn panel<'p, S: Simd>(
        &'p self,
        depth: Range<usize>,
        columns: Range<usize>,
        scratch: &'p mut Buffer<T>,
    ) -> &'p [T] {
        let lanes = S::Lanes::<T>::LANES;
        let width = columns.len().next_multiple_of(lanes);
        match self {
            Self::Packed(packed) => {
                let padded = packed.columns.next_multiple_of(lanes);
                let start = depth.start * padded + depth.len() * columns.start;
                &packed.panels[start..start + depth.len() * width]
            }
            Self::Plain(_) | Self::Transposed(_) => {
                let panel = scratch.get(depth.len() * width);
                self.pack(depth, columns, width, panel);
                panel
            }
        }
    }

    /// Writes a panel of a factor that is not packed yet.
    #[inline(always)]
    fn pack(&self, depth: Range<usize>, columns: Range<usize>, width: usize, panel: &mut [T]) {
        match self {
            Self::Plain(matrix) => pack_plain(matrix.block(depth, columns), width, panel),
            Self::Transposed(matrix) => pack_transposed(matrix.block(columns, depth), width, panel),
            Self::Packed(_) => debug_assert!(false, "a packed factor has its panels"),
        }
    }
}

impl<'a, T: Real> Packed<'a, T> {
    /// Numbers that a factor of this size takes.
    pub fn len(depth: usize, columns: usize) -> usize {
        depth * columns.next_multiple_of(MOST_LANES)
    }

    /// The panels that [`Pack`] wrote.
    pub fn new(panels: &'a [T], depth: usize, columns: usize) -> Self {
        Self { panels, depth, columns }
    }
}

/// Writes the panels of a right factor.
pub struct Pack<'a, T: Real> {
    pub right: Right<'a, T>,
    /// At least as many as the factor has; those beyond are filled with 0.
    pub columns: usize,
    pub panels: &'a mut [T],
}

impl<T: Real> Kernel for Pack<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let depth = self.right.depth();
        let mut rest = self.panels;
        for first in (0..depth).step_by(DEPTH) {
            let rows = first..(first + DEPTH).min(depth);
            for column in (0..self.columns).step_by(panel_width::<S, T>()) {
                let end = (column + panel_width::<S, T>()).min(self.columns);
                let width = (end - column).next_multiple_of(S::Lanes::<T>::LANES);
                let there = self.right.columns();
                let columns = column.min(there)..end.min(there);
                let (panel, others) = rest.split_at_mut(rows.len() * width);
                self.right.pack(rows.clone(), columns, width, panel);
                rest = others;
            }
        }
    }
}

#[inline(always)]
fn pack_plain<T: Real>(block: Matrix<T>, width: usize, panel: &mut [T]) {
    let columns = block.columns();
    for (row, packed) in panel.chunks_exact_mut(width).enumerate() {
        packed[..columns].copy_from_slice(block.row(row));
        packed[columns..].fill(T::ZERO);
    }
}

/// A square at a time, so that reads and writes are both of neighbours.
#[inline(always)]
fn pack_transposed<T: Real>(block: Matrix<T>, width: usize, panel: &mut [T]) {
    const SIDE: usize = 8;
    let (columns, depth) = (block.rows(), block.columns());
    for column in (0..columns).step_by(SIDE) {
        let side = SIDE.min(columns - column);
        if side == SIDE {
            let mut rows: [&[T]; SIDE] = [&[]; SIDE];
            for i in 0..SIDE {
                rows[i] = &block.row(column + i)[..depth];
            }
            for p in 0..depth {
                let packed = &mut panel[p * width + column..][..SIDE];
                for i in 0..SIDE {
                    packed[i] = rows[i][p];
                }
            }
        } else {
            for i in 0..side {
                for (p, &value) in block.row(column + i).iter().enumerate() {
                    panel[p * width + column + i] = value;
                }
            }
        }
    }
    if columns < width {
        for packed in panel.chunks_exact_mut(width) {
            packed[columns..].fill(T::ZERO);
        }
    }
}
