//! Matrix products, the bulk of the layer's work: `out = start + left right`.
//!
//! Six rows of the result by one panel of the right factor stay in registers during the loop over the depth. Every
//! element is one chain of additions in the order of the depth, wherever its tile is, so results do not depend on how
//! rows and columns are divided among threads.
//!
//! Tried on one Zen 5 core, in GF/s: tiles of 6 x 64, 8 x 48 and 14 x 32 reach 265, the most of all; 12 x 32 250 to 265,
//! 6 x 16 160.

use std::ops::Range;

use super::right::{Right, DEPTH};
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::simd::{panel_width, prefetch, Kernel, Real, Simd, Vector, WIDEST_PANEL};
use crate::cpu::workspace::Buffer;

/// Terms of one chain if the right factor is that narrow. BLAS sums such products in many chains in parallel: with 128
/// equal terms, as equal samples give, one chain was up to fourteen times less exact.
const DEPTH_OF_NARROW: usize = 8;
const NARROW: usize = 4;

/// Rows of a tall tile, which with a panel's width fill the registers.
pub const TALL: usize = 6;

/// What the product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a, T> {
    Zero,
    /// The same row everywhere: a bias.
    Row(&'a [T]),
    /// What the result holds already.
    Out,
}

/// The left factor `[rows, depth]`.
pub trait Left<T>: Copy {
    fn height(self) -> usize;
    /// A function of p, with element `depth.start + p` of each of `ROWS` rows from `first` on.
    fn tile<const ROWS: usize>(
        self,
        first: usize,
        depth: Range<usize>,
    ) -> impl Fn(usize) -> [T; ROWS];
    /// Prefetches some rows that will be read soon, as far as they exist.
    fn prefetch(self, rows: Range<usize>, depth: Range<usize>);
}

/// A left factor, read in place.
impl<T: Real> Left<T> for Matrix<'_, T> {
    #[inline(always)]
    fn height(self) -> usize {
        self.rows()
    }

    #[inline(always)]
    fn tile<const ROWS: usize>(
        self,
        first: usize,
        depth: Range<usize>,
    ) -> impl Fn(usize) -> [T; ROWS] {
        let mut rows: [&[T]; ROWS] = [&[]; ROWS];
        for i in 0..ROWS {
            rows[i] = &self.row(first + i)[depth.start..depth.end];
        }
        move |p| {
            let mut column = [T::ZERO; ROWS];
            for i in 0..ROWS {
                column[i] = rows[i][p];
            }
            column
        }
    }

    #[inline(always)]
    fn prefetch(self, rows: Range<usize>, depth: Range<usize>) {
        for row in rows.start..rows.end.min(self.rows()) {
            prefetch(&self.row(row)[depth.start..depth.end]);
        }
    }
}

/// The transpose of `[depth, rows]` as a left factor.
#[derive(Clone, Copy)]
pub struct Transposed<'a, T>(pub Matrix<'a, T>);

impl<T: Real> Left<T> for Transposed<'_, T> {
    #[inline(always)]
    fn height(self) -> usize {
        self.0.columns()
    }

    #[inline(always)]
    fn tile<const ROWS: usize>(
        self,
        first: usize,
        depth: Range<usize>,
    ) -> impl Fn(usize) -> [T; ROWS] {
        let block = self.0.block(depth, first..first + ROWS);
        move |p| {
            let mut column = [T::ZERO; ROWS];
            column.copy_from_slice(block.row(p));
            column
        }
    }

    /// Its rows are columns of what was just made.
    #[inline(always)]
    fn prefetch(self, _: Range<usize>, _: Range<usize>) {}
}

/// `out = start + left right`.
pub struct Product<'a, T: Real, L: Left<T>> {
    pub left: L,
    pub right: Right<'a, T>,
    /// The columns of the right factor that `out` is; they start at a multiple of the panel's width.
    pub columns: Range<usize>,
    pub start: Start<'a, T>,
    pub out: MatrixMut<'a, T>,
    pub panel: &'a mut Buffer<T>,
}

impl<T: Real, L: Left<T>> Kernel for Product<'_, T, L> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { left, right, columns, start, mut out, panel } = self;
        debug_assert_eq!((left.height(), columns.len()), (out.rows(), out.columns()));
        let together = if right.columns() <= NARROW { DEPTH_OF_NARROW } else { DEPTH };
        for first in (0..right.depth()).step_by(together) {
            let depth = first..(first + together).min(right.depth());
            let start = if first == 0 { start } else { Start::Out };
            for column in (0..columns.len()).step_by(panel_width::<S, T>()) {
                let of_out = column..(column + panel_width::<S, T>()).min(columns.len());
                let of_right = columns.start + of_out.start..columns.start + of_out.end;
                let panel = right.panel::<S>(depth.clone(), of_right, panel);
                let block =
                    PanelProduct { left, depth: depth.clone(), panel, start, columns: of_out };
                let most = panel_width::<S, T>() / S::Lanes::<T>::LANES; // the others are not compiled
                match block.columns.len().div_ceil(S::Lanes::<T>::LANES) {
                    4 if most >= 4 => block.all_rows::<S, 4>(&mut out),
                    3 if most >= 3 => block.all_rows::<S, 3>(&mut out),
                    2 if most >= 2 => block.all_rows::<S, 2>(&mut out),
                    _ => block.all_rows::<S, 1>(&mut out),
                }
            }
        }
    }
}

/// All rows by one panel, for a part of the depth.
struct PanelProduct<'a, T, L> {
    left: L,
    depth: Range<usize>,
    panel: &'a [T],
    start: Start<'a, T>,
    columns: Range<usize>,
}

impl<T: Real, L: Left<T>> PanelProduct<'_, T, L> {
    /// The tall tiles first, then what is left of the rows.
    #[inline(always)]
    fn all_rows<S: Simd, const VECTORS: usize>(&self, out: &mut MatrixMut<T>) {
        let rows = self.left.height();
        let mut row = 0;
        while rows - row >= TALL {
            self.left.prefetch(row + TALL..row + 2 * TALL, self.depth.clone());
            self.tile::<S, TALL, VECTORS>(row, out);
            row += TALL;
        }
        while rows - row >= 2 {
            self.tile::<S, 2, VECTORS>(row, out);
            row += 2;
        }
        if row < rows {
            self.tile::<S, 1, VECTORS>(row, out);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        first: usize,
        out: &mut MatrixMut<T>,
    ) {
        let lanes = S::Lanes::<T>::LANES;
        let mut sums = [[S::Lanes::<T>::splat(T::ZERO); VECTORS]; ROWS];
        let left = self.left.tile::<ROWS>(first, self.depth.clone());
        for (p, right) in self.panel.chunks_exact(VECTORS * lanes).enumerate() {
            let left = left(p);
            let mut vectors = [S::Lanes::<T>::splat(T::ZERO); VECTORS];
            for v in 0..VECTORS {
                vectors[v] = S::Lanes::<T>::load(&right[v * lanes..]);
            }
            for i in 0..ROWS {
                let left = S::Lanes::<T>::splat(left[i]);
                for v in 0..VECTORS {
                    sums[i][v] = left.mul_add::<S>(vectors[v], sums[i][v]);
                }
            }
        }
        // Moved into an iterator, as indexing the sums by a row that is not known at compile time would keep them in
        // memory from the start: a third of the speed.
        for (i, sums) in sums.into_iter().enumerate() {
            let out = &mut out.row(first + i)[self.columns.start..self.columns.end];
            if out.len() == VECTORS * lanes {
                for (v, sum) in sums.into_iter().enumerate() {
                    let out = &mut out[v * lanes..(v + 1) * lanes];
                    match self.start {
                        Start::Zero => sum.store(out),
                        Start::Row(row) => {
                            let row = &row[self.columns.start + v * lanes..];
                            sum.add(S::Lanes::<T>::load(row)).store(out);
                        }
                        Start::Out => sum.add(S::Lanes::<T>::load(out)).store(out),
                    }
                }
            } else {
                let mut row = [T::ZERO; WIDEST_PANEL];
                for (v, sum) in sums.into_iter().enumerate() {
                    sum.store(&mut row[v * lanes..]);
                }
                write(&row[..out.len()], self.start, self.columns.clone(), out);
            }
        }
    }
}

/// A row whose last lanes lie beyond the columns.
#[inline(always)]
fn write<T: Real>(sums: &[T], start: Start<T>, columns: Range<usize>, out: &mut [T]) {
    match start {
        Start::Zero => out.copy_from_slice(sums),
        Start::Row(row) => {
            for ((out, &sum), &bias) in out.iter_mut().zip(sums).zip(&row[columns]) {
                *out = sum + bias;
            }
        }
        Start::Out => {
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::right::{Pack, Packed};
    use super::*;
    use crate::cpu::kernels::testing::{assert_near, numbers};
    use crate::cpu::simd::{run, with_each_set};

    /// Rows, depth, columns: around the sizes of a tile, of a panel and of a part of the depth.
    const SIZES: [[usize; 3]; 9] = [
        [1, 1, 1],
        [2, 3, 5],
        [5, 7, 17],
        [6, 64, 64],
        [7, 48, 48],
        [13, 65, 63],
        [8, DEPTH, 33],
        [3, DEPTH + 1, 129],
        [12, 2 * DEPTH + 5, 16],
    ];

    fn check<T: Real>() {
        with_each_set(|set| {
            for [rows, depth, columns] in SIZES {
                let (left, right) = (numbers::<T>(rows * depth), numbers::<T>(depth * columns));
                let (bias, before) = (numbers::<T>(columns), numbers::<T>(rows * columns));
                let transpose = |from: &[T], rows: usize, columns: usize| -> Vec<T> {
                    (0..rows * columns).map(|i| from[i % rows * columns + i / rows]).collect()
                };
                let (left_t, right_t) =
                    (transpose(&left, rows, depth), transpose(&right, depth, columns));
                let mut panels = vec![T::ZERO; Packed::<T>::len(depth, columns)];
                let plain = Right::Plain(Matrix::new(&right, depth, columns));
                run(Pack { right: plain, columns, panels: &mut panels });
                let packed = Packed::new(&panels, depth, columns);
                let rights = [
                    plain,
                    Right::Transposed(Matrix::new(&right_t, columns, depth)),
                    Right::Packed(&packed),
                ];
                for (start, first) in [
                    (Start::Zero, vec![T::ZERO; rows * columns]),
                    (Start::Row(&bias), bias.repeat(rows)),
                    (Start::Out, before.clone()),
                ] {
                    let mut expected = first;
                    for i in 0..rows * columns {
                        let (row, column) = (i / columns, i % columns);
                        for p in 0..depth {
                            expected[i] += left[row * depth + p] * right[p * columns + column];
                        }
                    }
                    for right in rights {
                        let mut panel = Buffer::default();
                        let mut out = before.clone();
                        run(Product {
                            left: Matrix::new(&left, rows, depth),
                            right,
                            columns: 0..columns,
                            start,
                            out: MatrixMut::new(&mut out, rows, columns),
                            panel: &mut panel,
                        });
                        assert_near(&out, &expected, &format!("{set:?} {rows} {depth} {columns}"));
                        let mut out = before.clone();
                        run(Product {
                            left: Transposed(Matrix::new(&left_t, depth, rows)),
                            right,
                            columns: 0..columns,
                            start,
                            out: MatrixMut::new(&mut out, rows, columns),
                            panel: &mut panel,
                        });
                        assert_near(&out, &expected, &format!("{set:?} {rows} {depth} {columns}"));
                    }
                }
            }
        });
    }

    #[test]
    fn a_product_is_the_plain_one_in_float32() {
        check::<f32>();
    }

    #[test]
    fn a_product_is_the_plain_one_in_float64() {
        check::<f64>();
    }
}
