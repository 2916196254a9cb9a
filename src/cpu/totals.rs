//! The gradients of parameters, which are sums over all rows, while part after part of the rows is added to them.

use super::block::Block;
use super::kernels::reduce::ColumnSums;
use super::kernels::residual::AddRows;
use super::matrix::{Matrix, MatrixMut};

use super::simd::{run, Real};

/// Units of a weight's gradient that are added up before they are added to the rest. Up to this many the sum is one
/// chain; one of 625 units (M = 640,000) was three times less exact than torch's.
const GROUP: usize = 16;

/// The gradient of a bias, and what rounding has taken from it.
pub struct ColumnTotal<'a, T: Real> {
    sums: &'a mut [T],
    lost: Block<T>,
}

/// Some columns of it: `[1, columns]` each.
pub struct ColumnPart<'a, T> {
    sums: MatrixMut<'a, T>,
    lost: MatrixMut<'a, T>,
}

impl<'a, T: Real> ColumnTotal<'a, T> {
    /// 0, in `sums`.
    pub fn new(sums: &'a mut [T]) -> Self {
        let mut lost = Block::new(sums.len());
        lost.fill(T::ZERO);
        sums.fill(T::ZERO);
        Self { sums, lost }
    }

    /// All columns.
    pub fn part(&mut self) -> ColumnPart<'_, T> {
        let columns = self.sums.len();
        ColumnPart {
            sums: MatrixMut::new(self.sums, 1, columns),
            lost: MatrixMut::new(&mut self.lost, 1, columns),
        }
    }
}

impl<T: Real> ColumnPart<'_, T> {
    /// Blocks of at most `columns` columns.
    pub fn split(self, columns: usize) -> impl Iterator<Item = Self> {
        let blocks = self.sums.split(1, columns).zip(self.lost.split(1, columns));
        blocks.map(|(sums, lost)| ColumnPart { sums, lost })
    }

    pub fn add(&mut self, rows: Matrix<T>) {
        run(ColumnSums { rows, sums: self.sums.row(0), lost: self.lost.row(0) });
    }
}

/// The gradient of a weight `[out, in]`, which is the sum of those of units of rows.
pub struct WeightTotal<'a, T: Real> {
    sum: MatrixMut<'a, T>,
    /// The sum of the present group, where there are several.
    group: Option<Block<T>>,
    units: usize,
    next: usize,
}

/// Some rows of it while units are added.
pub struct WeightPart<'a, T> {
    sum: MatrixMut<'a, T>,
    group: Option<MatrixMut<'a, T>>,
    units: usize,
    next: usize,
}

impl<'a, T: Real> WeightTotal<'a, T> {
    /// The first of the `units` overwrites what `sum` holds.
    pub fn new(sum: MatrixMut<'a, T>, units: usize) -> Self {
        let group = (units > GROUP).then(|| Block::new(sum.rows() * sum.columns()));
        Self { sum, group, units, next: 0 }
    }

    /// All rows, for the next `units`.
    pub fn part(&mut self, units: usize) -> WeightPart<'_, T> {
        let (rows, columns, next) = (self.sum.rows(), self.sum.columns(), self.next);
        self.next += units;
        let group = self.group.as_mut().map(|group| MatrixMut::new(group, rows, columns));
        WeightPart { sum: self.sum.reborrow(), group, units: self.units, next }
    }
}

impl<T: Real> WeightPart<'_, T> {
    /// Blocks of at most `rows` rows.
    pub fn split_rows(self, rows: usize) -> impl Iterator<Item = Self> {
        let Self { sum, group, units, next } = self;
        let groups = group.map(|group| group.split_rows(rows).map(Some));
        let groups = groups.into_iter().flatten().chain(std::iter::repeat_with(|| None));
        let blocks = sum.split_rows(rows).zip(groups);
        blocks.map(move |(sum, group)| WeightPart { sum, group, units, next })
    }

    /// Adds the next unit by `add`, which adds it to a matrix, or overwrites the matrix if its second argument says so.
    pub fn add(&mut self, add: impl FnOnce(MatrixMut<T>, bool)) {
        let Self { sum, group, units, next } = self;
        let number = *next;
        *next += 1;
        let Some(group) = group else { return add(sum.reborrow(), number == 0) };
        add(group.reborrow(), number % GROUP == 0);
        if number % GROUP == GROUP - 1 || number + 1 == *units {
            if number < GROUP {
                for row in 0..sum.rows() {
                    sum.row(row).copy_from_slice(group.view().row(row));
                }
            } else {
                run(AddRows { summand: group.view(), sum: sum.reborrow() });
            }
        }
    }
}
