//! Rows of numbers somewhere in memory, shared and mutable, and how the mutable ones are split among threads.
//!
//! # Rationale
//! A block of columns of a row-major matrix is no slice, so blocks that threads write side by side cannot be
//! `&mut [T]`. A [`MatrixMut`] owns the right to write its block; it is split by value into blocks that share
//! no element, and hands out one row of its own at a time. That keeps every pointer of the kernels in this file.
//!
//! Rows may have two strides: tokens of `[N, L, C]` taken position by position are rows whose first N lie `L C` apart,
//! the next N start `C` further on. So x and y are read and written where they are.

use std::marker::PhantomData;
use std::ops::Range;

/// Where rows begin: row r at `(r / period) * outer + (r % period) * inner`, counted from `first`.
#[derive(Clone, Copy, Debug)]
pub struct RowOrder {
    pub period: usize,
    pub outer: usize,
    pub inner: usize,
}

impl RowOrder {
    /// One row after the other.
    fn contiguous(columns: usize) -> Self {
        Self { period: usize::MAX, outer: 0, inner: columns }
    }

    #[inline(always)]
    fn offset(self, row: usize) -> usize {
        if row < self.period {
            row * self.inner
        } else {
            row / self.period * self.outer + row % self.period * self.inner
        }
    }

    /// Elements from the first to one past the last of `rows` x `columns`.
    fn span(self, rows: usize, columns: usize) -> usize {
        if rows == 0 || columns == 0 {
            return 0;
        }
        let inner = rows.min(self.period) - 1;
        let outer = (rows - 1) / self.period;
        outer * self.outer + inner * self.inner + columns
    }
}

/// The sizes of a block and where it lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: usize,
    rows: usize,
    column: usize,
    columns: usize,
    order: RowOrder,
}

impl Place {
    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        assert!(row < self.rows);
        self.order.offset(self.first + row) + self.column
    }

    #[inline(always)]
    fn block(&self, rows: &Range<usize>, columns: &Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "{rows:?} of {} rows", self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        Self {
            first: self.first + rows.start,
            rows: rows.len(),
            column: self.column + columns.start,
            columns: columns.len(),
            order: self.order,
        }
    }
}

/// Rows to read.
pub struct Matrix<'a, T> {
    origin: *const T,
    place: Place,
    lifetime: PhantomData<&'a [T]>,
}

/// Rows to write; nobody else reads or writes its elements.
pub struct MatrixMut<'a, T> {
    origin: *mut T,
    place: Place,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Matrix<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<'_, T> {}

// SAFETY: a Matrix is a shared slice with a shape.
unsafe impl<T: Sync> Send for Matrix<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Matrix<'_, T> {}
// SAFETY: a MatrixMut is a mutable slice with a shape; its blocks share no element.
unsafe impl<T: Send> Send for MatrixMut<'_, T> {}

impl<'a, T> Matrix<'a, T> {
    /// `rows` rows, one after the other.
    pub fn new(elements: &'a [T], rows: usize, columns: usize) -> Self {
        Self::ordered(elements, rows, columns, RowOrder::contiguous(columns))
    }

    /// Rows in an order of their own.
    pub fn ordered(elements: &'a [T], rows: usize, columns: usize, order: RowOrder) -> Self {
        assert!(order.span(rows, columns) <= elements.len());
        let place = Place { first: 0, rows, column: 0, columns, order };
        Self { origin: elements.as_ptr(), place, lifetime: PhantomData }
    }

    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.place.rows
    }

    #[inline(always)]
    pub fn columns(&self) -> usize {
        self.place.columns
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [T] {
        // SAFETY: the constructor checked that the whole matrix lies in a slice borrowed for 'a, `offset` that the
        // row is one of this block, and blocks only get smaller.
        unsafe {
            std::slice::from_raw_parts(self.origin.add(self.place.offset(row)), self.place.columns)
        }
    }

    #[inline(always)]
    pub fn block(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        Self { place: self.place.block(&rows, &columns), ..*self }
    }

    pub fn row_block(&self, rows: Range<usize>) -> Self {
        self.block(rows, 0..self.columns())
    }

    /// The first `count` of every other row, from `first` on.
    pub fn every_other(&self, first: usize, count: usize) -> Self {
        let RowOrder { period, outer, inner } = self.place.order;
        assert!(period == usize::MAX && count > 0 && first + 2 * (count - 1) < self.place.rows);
        let column = self.place.column + (self.place.first + first) * inner;
        let order = RowOrder { period, outer, inner: 2 * inner };
        Self { place: Place { first: 0, rows: count, column, order, ..self.place }, ..*self }
    }

    #[inline(always)]
    pub fn column_block(&self, columns: Range<usize>) -> Self {
        self.block(0..self.rows(), columns)
    }
}

impl<'a, T> MatrixMut<'a, T> {
    /// `rows` rows, one after the other.
    pub fn new(elements: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::ordered(elements, rows, columns, RowOrder::contiguous(columns))
    }

    /// Rows in an order of their own, which must not overlap.
    pub fn ordered(elements: &'a mut [T], rows: usize, columns: usize, order: RowOrder) -> Self {
        assert!(order.span(rows, columns) <= elements.len());
        assert!(
            rows < 2 || order.disjoint(rows, columns),
            "{order:?} of {columns} columns overlap"
        );
        let place = Place { first: 0, rows, column: 0, columns, order };
        Self { origin: elements.as_mut_ptr(), place, lifetime: PhantomData }
    }

    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.place.rows
    }

    #[inline(always)]
    pub fn columns(&self) -> usize {
        self.place.columns
    }

    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        // SAFETY: as for `Matrix::row`; the elements are this block's alone, and `&mut self` lends them once.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.origin.add(self.place.offset(row)),
                self.place.columns,
            )
        }
    }

    /// The same rows to read, for as long as they are not written.
    #[inline(always)]
    pub fn view(&self) -> Matrix<'_, T> {
        Matrix { origin: self.origin, place: self.place, lifetime: PhantomData }
    }

    /// The same block again, for as long as this one is not used.
    #[inline(always)]
    pub fn reborrow(&mut self) -> MatrixMut<'_, T> {
        MatrixMut { origin: self.origin, place: self.place, lifetime: PhantomData }
    }

    #[inline(always)]
    pub fn block(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'_, T> {
        MatrixMut { place: self.place.block(&rows, &columns), ..self.reborrow() }
    }

    pub fn row_block(&mut self, rows: Range<usize>) -> MatrixMut<'_, T> {
        let columns = 0..self.columns();
        self.block(rows, columns)
    }

    /// Blocks of at most `rows` x `columns`, row of blocks after row of blocks.
    pub fn split(self, rows: usize, columns: usize) -> impl Iterator<Item = MatrixMut<'a, T>> {
        let across = self.columns().div_ceil(columns);
        (0..self.rows().div_ceil(rows) * across).map(move |number| {
            let (row, column) = (number / across * rows, number % across * columns);
            let rows = row..row.saturating_add(rows).min(self.rows());
            let columns = column..(column + columns).min(self.columns());
            // SAFETY: the numbers' blocks share no element, and each number comes once.
            unsafe { self.part(&rows, &columns) }
        })
    }

    /// Blocks of at most `rows` rows, also of a matrix without columns.
    pub fn split_rows(self, rows: usize) -> impl Iterator<Item = MatrixMut<'a, T>> {
        (0..self.rows()).step_by(rows).map(move |first| {
            let rows = first..(first + rows).min(self.rows());
            // SAFETY: the steps' rows are others, and each step comes once.
            unsafe { self.part(&rows, &(0..self.columns())) }
        })
    }

    /// A block for as long as the whole. The callers collect no list of such blocks, which for many rows would need
    /// memory.
    ///
    /// # Safety
    /// The whole is not used any more, and no two of its blocks share an element.
    unsafe fn part(&self, rows: &Range<usize>, columns: &Range<usize>) -> MatrixMut<'a, T> {
        MatrixMut {
            origin: self.origin,
            place: self.place.block(rows, columns),
            lifetime: PhantomData,
        }
    }
}

impl RowOrder {
    /// Whether no two rows share an element: the smaller step leaves room for a row, the larger for all of those.
    fn disjoint(self, rows: usize, columns: usize) -> bool {
        let inner = rows.min(self.period);
        let outer = rows.div_ceil(self.period);
        if outer == 1 || inner == 1 {
            return if outer == 1 { self.inner >= columns } else { self.outer >= columns };
        }
        let (small, steps, large) = if self.inner < self.outer {
            (self.inner, inner, self.outer)
        } else {
            (self.outer, outer, self.inner)
        };
        small >= columns && large >= small * (steps - 1) + columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_split_cover_every_element_once() {
        for (rows, columns) in [(1, 1), (7, 5), (6, 4), (3, 9)] {
            let mut elements = vec![0; rows * columns];
            for mut block in MatrixMut::new(&mut elements, rows, columns).split(2, 4) {
                for row in 0..block.rows() {
                    block.row(row).iter_mut().for_each(|each| *each += 1);
                }
            }
            assert_eq!(elements, vec![1; rows * columns]);
        }
    }

    #[test]
    fn rows_in_two_steps_are_those_of_a_transpose() {
        let (samples, positions, channels) = (3, 4, 2);
        let elements: Vec<usize> = (0..samples * positions * channels).collect();
        let order = RowOrder { period: samples, outer: channels, inner: positions * channels };
        let matrix = Matrix::ordered(&elements, samples * positions, channels, order);
        for row in 0..samples * positions {
            let (position, sample) = (row / samples, row % samples);
            let first = (sample * positions + position) * channels;
            assert_eq!(matrix.row(row), [first, first + 1]);
            assert_eq!(matrix.block(row..row + 1, 1..2).row(0), [first + 1]);
        }
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn rows_that_overlap_cannot_be_written() {
        let order = RowOrder { period: 2, outer: 3, inner: 2 };
        MatrixMut::ordered(&mut [0; 16], 4, 2, order);
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn a_matrix_cannot_reach_beyond_its_elements() {
        Matrix::new(&[0; 11], 3, 4);
    }
}
