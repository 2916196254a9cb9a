//! Softmax and dropout on a block of scores whose rows are keys and whose lanes are queries: every step is the
//! same for all lanes, and nothing is summed along a row.

use super::dropout::Mask;
use crate::cpu::matrix::MatrixMut;
use crate::cpu::simd::{exp, Kernel, Real, Simd};

/// Most lanes of a block.
pub const LANES: usize = 64;
/// Keys whose probabilities are summed in one chain: equal probabilities have equal rounding errors, which in a chain
/// of 33 made four parts in ten million of every gradient of a value.
const CHAIN: usize = 8;

/// Which queries and keys a block holds, and where their scores are in `[L, H, N, K]`.
#[derive(Clone, Copy)]
pub struct Pairs {
    /// Queries and keys of each position in the block; those of different positions do not see each other.
    pub queries: usize,
    pub keys: usize,
    /// The index of the first query's score with the first key, and how far it is to the next query's, which is the
    /// number of all keys, and to the next position's.
    pub element: u64,
    pub query_step: u64,
    pub position_step: u64,
}

impl Pairs {
    /// The same queries with the keys from `first` on.
    pub fn skip_keys(self, first: usize, keys: usize) -> Self {
        Self { keys, element: self.element + first as u64, ..self }
    }

    /// The lanes of the queries that see a key.
    #[inline(always)]
    fn lanes_of(&self, key: usize, lanes: usize) -> std::ops::Range<usize> {
        let position = key / self.keys;
        let first = position * self.queries;
        if position == 0 && self.queries >= lanes {
            return 0..lanes;
        }
        first.min(lanes)..(first + self.queries).min(lanes)
    }
}

/// Draws the factors of dropout row by row, four rows from one word where the sizes allow it.
struct DropoutFactors<'a, T> {
    mask: &'a Mask<T>,
    pairs: &'a Pairs,
    elements: [u64; LANES],
    words: [u64; LANES],
    aligned: bool,
}

impl<'a, T: Real> DropoutFactors<'a, T> {
    #[inline(always)]
    fn new(mask: &'a Mask<T>, pairs: &'a Pairs) -> Self {
        let mut elements = [0; LANES];
        for lane in 0..LANES {
            let (position, query) = ((lane / pairs.queries) as u64, (lane % pairs.queries) as u64);
            elements[lane] =
                pairs.element + position * pairs.position_step + query * pairs.query_step;
        }
        let aligned = (pairs.element | pairs.query_step | pairs.position_step).is_multiple_of(4);
        Self { mask, pairs, elements, words: [0; LANES], aligned }
    }

    /// The factors of all lanes for a key.
    #[inline(always)]
    fn of_key(&mut self, key: usize, factors: &mut [T]) {
        let key = (key % self.pairs.keys) as u64;
        let factors = &mut factors[..LANES];
        if !self.aligned || key.is_multiple_of(4) {
            for lane in 0..LANES {
                self.words[lane] = self.mask.word(self.elements[lane].wrapping_add(key) / 4);
            }
        }
        for lane in 0..LANES {
            let shift = self.elements[lane].wrapping_add(key) % 4 * 16;
            factors[lane] = self.mask.factor((self.words[lane] >> shift) as u32 & 0xFFFF);
        }
    }
}

/// What is known of each lane's scores so far.
pub struct Running<T> {
    pub max: [T; LANES],
    pub sum: [T; LANES],
    /// What earlier results are to be multiplied by, as the largest score has changed.
    pub rescale: [T; LANES],
}

impl<T: Real> Running<T> {
    pub fn new() -> Self {
        Self { max: [-T::INFINITY; LANES], sum: [T::ZERO; LANES], rescale: [T::ZERO; LANES] }
    }
}

/// Scores to `dropout(exp(score - max))`, with the sums before dropout (Milakov and Gimelshein, 2018).
pub struct Softmax<'a, T: Real> {
    pub scores: MatrixMut<'a, T>,
    pub pairs: Pairs,
    pub mask: Mask<T>,
    pub running: &'a mut Running<T>,
}

impl<T: Real> Kernel for Softmax<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mut scores, pairs, mask, running } = self;
        let (keys, lanes) = (scores.rows(), scores.columns());
        let (max, sum) = (&mut running.max[..lanes], &mut running.sum[..lanes]);
        let rescale = &mut running.rescale[..lanes];
        rescale.copy_from_slice(max);
        for key in 0..keys {
            let seen = pairs.lanes_of(key, lanes);
            for (max, &score) in max[seen.clone()].iter_mut().zip(&scores.row(key)[seen]) {
                *max = if score > *max { score } else { *max };
            }
        }
        // Scores of a lane that are -inf so far have probability 0; -inf - -inf would be NaN, and stay in the sum.
        let mut level = [T::ZERO; LANES];
        for lane in 0..lanes {
            level[lane] = if max[lane] == -T::INFINITY { T::ZERO } else { max[lane] };
            rescale[lane] = exp::<T, S>(rescale[lane] - level[lane]);
            sum[lane] *= rescale[lane];
        }
        let mut factors = DropoutFactors::new(&mask, &pairs);
        let mut factor = [T::ONE; LANES];
        for first in (0..keys).step_by(CHAIN) {
            let mut sum_of_few = [T::ZERO; LANES];
            let sum_of_few = &mut sum_of_few[..lanes];
            for key in first..(first + CHAIN).min(keys) {
                let row = &mut scores.row(key)[..lanes];
                probabilities::<T, S>(row, &pairs, key, &level[..lanes]);
                for lane in 0..lanes {
                    sum_of_few[lane] += row[lane];
                }
                if !mask.is_off() {
                    factors.of_key(key, &mut factor);
                    for lane in 0..lanes {
                        row[lane] *= factor[lane];
                    }
                }
            }
            for lane in 0..lanes {
                sum[lane] += sum_of_few[lane];
            }
        }
    }
}

/// Scores to P̃ = dropout(P), and the gradient of P̃ to that of the scores, for some of the keys.
///
/// P = exp(S - log Σ exp S), `grad_S` = scale P (dropout(`grad_P̃`) - δ), where δ = Σ `grad_P̃` P̃ over the keys of
/// a query, which is the product of the query's output and its gradient (Dao et al., 2022, appendix B).
pub struct SoftmaxBackward<'a, T: Real> {
    pub scores: MatrixMut<'a, T>,
    pub grads: MatrixMut<'a, T>,
    pub pairs: Pairs,
    pub mask: Mask<T>,
    pub scale: T,
    pub logsumexp: &'a [T; LANES],
    pub delta: &'a [T; LANES],
}

impl<T: Real> Kernel for SoftmaxBackward<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mut scores, mut grads, pairs, mask, scale, logsumexp, delta } = self;
        let (keys, lanes) = (scores.rows(), scores.columns());
        let delta = &delta[..lanes];
        let mut factors = DropoutFactors::new(&mask, &pairs);
        let mut factor = [T::ONE; LANES];
        for key in 0..keys {
            let (row, grad) = (&mut scores.row(key)[..lanes], &mut grads.row(key)[..lanes]);
            probabilities::<T, S>(row, &pairs, key, logsumexp);
            if mask.is_off() {
                for lane in 0..lanes {
                    grad[lane] = row[lane] * (grad[lane] - delta[lane]) * scale;
                }
            } else {
                factors.of_key(key, &mut factor);
                for lane in 0..lanes {
                    grad[lane] = row[lane] * (grad[lane] * factor[lane] - delta[lane]) * scale;
                    row[lane] *= factor[lane];
                }
            }
        }
    }
}

/// Each lane's Σ exp(S - log Σ exp S) over the keys, which the rounding of a large log-sum-exp makes differ from 1, and
/// δ, for [`SoftmaxBackwardFromTotals`].
pub struct Totals<T> {
    sum: [T; LANES],
    product: [T; LANES],
    /// What the rounding of δ leaves of Σ P (`grad` - δ), which is 0.
    rest: [T; LANES],
}

impl<T: Real> Totals<T> {
    pub fn new() -> Self {
        Self { sum: [T::ZERO; LANES], product: [T::ZERO; LANES], rest: [T::ZERO; LANES] }
    }

    /// What exp(S - log Σ exp S) is multiplied by to be P; infinite in lanes without a query, which nobody reads.
    fn share(&self) -> [T; LANES] {
        self.sum.map(|sum| T::ONE / sum)
    }

    /// δ, corrected by the rest: if all gradients of a query are equal, as with equal samples, δ is that gradient, and
    /// `grad_S` is 0.
    fn delta(&self) -> [T; LANES] {
        let share = self.share();
        std::array::from_fn(|lane| self.product[lane] * share[lane] + self.rest[lane] * share[lane])
    }
}

/// Scores to exp(S - log Σ exp S), negative where dropout drops them, and the gradients of P̃ to dropout of them; what
/// the keys add to the totals.
pub struct AddToTotals<'a, T: Real> {
    pub scores: MatrixMut<'a, T>,
    pub grads: MatrixMut<'a, T>,
    pub pairs: Pairs,
    pub mask: Mask<T>,
    pub logsumexp: &'a [T; LANES],
    pub totals: &'a mut Totals<T>,
}

impl<T: Real> Kernel for AddToTotals<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mut scores, mut grads, pairs, mask, logsumexp, totals } = self;
        let (keys, lanes) = (scores.rows(), scores.columns());
        let mut factors = DropoutFactors::new(&mask, &pairs);
        let mut factor = [T::ONE; LANES];
        let (sum, product) = (&mut totals.sum[..lanes], &mut totals.product[..lanes]);
        for first in (0..keys).step_by(CHAIN) {
            let (mut sum_of_few, mut product_of_few) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            let (sum_of_few, product_of_few) =
                (&mut sum_of_few[..lanes], &mut product_of_few[..lanes]);
            for key in first..(first + CHAIN).min(keys) {
                let (row, grad) = (&mut scores.row(key)[..lanes], &mut grads.row(key)[..lanes]);
                probabilities::<T, S>(row, &pairs, key, logsumexp);
                clear_unseen(grad, &pairs, key);
                if !mask.is_off() {
                    factors.of_key(key, &mut factor);
                }
                for lane in 0..lanes {
                    grad[lane] *= factor[lane];
                    sum_of_few[lane] += row[lane];
                    product_of_few[lane] += row[lane] * grad[lane];
                    // The sign tells later what was dropped: to draw the mask again costs more.
                    row[lane] = if factor[lane] > T::ZERO { row[lane] } else { -row[lane] };
                }
            }
            for lane in 0..lanes {
                sum[lane] += sum_of_few[lane];
                product[lane] += product_of_few[lane];
            }
        }
    }
}

/// What is left of Σ P (`grad` - δ) with δ as it is known, from what [`AddToTotals`] leaves.
pub struct AddRest<'a, T: Real> {
    pub scores: MatrixMut<'a, T>,
    pub grads: MatrixMut<'a, T>,
    pub totals: &'a mut Totals<T>,
}

impl<T: Real> Kernel for AddRest<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mut scores, mut grads, totals } = self;
        let (keys, lanes) = (scores.rows(), scores.columns());
        let share = totals.share();
        let delta: [T; LANES] = std::array::from_fn(|lane| totals.product[lane] * share[lane]);
        let (delta, rest) = (&delta[..lanes], &mut totals.rest[..lanes]);
        for key in 0..keys {
            let (row, grad) = (&scores.row(key)[..lanes], &grads.row(key)[..lanes]);
            for lane in 0..lanes {
                rest[lane] += row[lane].abs() * (grad[lane] - delta[lane]);
            }
        }
    }
}

/// [`SoftmaxBackward`] from what [`AddToTotals`] leaves, with P divided by its sum and δ summed as the formula has it:
/// `grad_S` is exactly 0 where a query has one key, or one key has all of its attention. With δ from the output, which
/// is summed in another order, it would be the rounding error, and a large log-sum-exp has large ones.
pub struct SoftmaxBackwardFromTotals<'a, T: Real> {
    pub scores: MatrixMut<'a, T>,
    pub grads: MatrixMut<'a, T>,
    pub pairs: Pairs,
    pub mask: Mask<T>,
    pub scale: T,
    pub totals: &'a Totals<T>,
}

impl<T: Real> Kernel for SoftmaxBackwardFromTotals<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { mut scores, mut grads, pairs, mask, scale, totals } = self;
        let (keys, lanes) = (scores.rows(), scores.columns());
        let (share, delta) = (totals.share(), totals.delta());
        let (share, delta) = (&share[..lanes], &delta[..lanes]);
        for key in 0..keys {
            let (row, grad) = (&mut scores.row(key)[..lanes], &mut grads.row(key)[..lanes]);
            for lane in 0..lanes {
                let p = row[lane] * share[lane];
                grad[lane] = p.abs() * (grad[lane] - delta[lane]) * scale;
                row[lane] = if p < T::ZERO { T::ZERO } else { p * mask.scale }; // NaN stays
            }
            clear_unseen(row, &pairs, key);
            clear_unseen(grad, &pairs, key);
        }
    }
}

/// To 0 what belongs to a key and to queries that do not see it, of other positions. Such a product may be infinite
/// where those within positions are not, and 0 times infinity is NaN.
#[inline(always)]
fn clear_unseen<T: Real>(row: &mut [T], pairs: &Pairs, key: usize) {
    let seen = pairs.lanes_of(key, row.len());
    row[..seen.start].fill(T::ZERO);
    row[seen.end..].fill(T::ZERO);
}

/// The scores of a key to exp(S - shift), and to 0 for queries that do not see it.
#[inline(always)]
fn probabilities<T: Real, S: Simd>(row: &mut [T], pairs: &Pairs, key: usize, shift: &[T]) {
    let shift = &shift[..row.len()];
    for lane in 0..row.len() {
        row[lane] = exp::<T, S>(row[lane] - shift[lane]);
    }
    clear_unseen(row, pairs, key);
}
