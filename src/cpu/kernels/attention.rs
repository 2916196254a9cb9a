//! Attention of a block of queries over all keys, key block by key block (Dao et al., 2022): the N x K probabilities
//! are never in memory as a whole, forward or backward.

use std::ops::Range;

use super::dropout::Mask;
use super::product::{Product, Start, Transposed};
use super::reduce::sum;
use super::right::{Pack, Packed, Right};
use super::softmax::{
    AddRest, AddToTotals, Running, Softmax, SoftmaxBackward, SoftmaxBackwardFromTotals, Totals,
    LANES,
};
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::simd::{run, Real, MOST_LANES};
use crate::cpu::workspace::{Buffer, Workspace};

pub use super::softmax::Pairs;

/// Queries of a block.
pub const QUERIES: usize = LANES;
/// Keys of a block.
pub const KEYS: usize = 128;
/// From this size on, the rounding of a log-sum-exp matters: that of 32 in float32 is an error of sixteen units in the
/// last place of every probability, that of 1e12 an error of any size. Such queries go through all keys three times;
/// ordinary data has none.
const LARGE: f64 = 32.0;
/// Lanes come in multiples of this, for every instruction set.
pub const LANE_STEP: usize = MOST_LANES;
const _: () = assert!(QUERIES.is_multiple_of(LANE_STEP));

/// The inputs of both forward and backward, for one head.
#[derive(Clone, Copy)]
pub struct Attention<'a, T> {
    /// `[queries, D]`, at most [`QUERIES`]
    pub query: Matrix<'a, T>,
    /// `[keys, D]`
    pub key: Matrix<'a, T>,
    /// `[keys, D]`
    pub value: Matrix<'a, T>,
    pub pairs: Pairs,
    pub mask: Mask<T>,
    /// What the scores are multiplied by.
    pub scale: T,
}

/// The gradients of one head; its queries add to that of the keys and values.
pub struct AttentionGrads<'a, T> {
    pub query: MatrixMut<'a, T>,
    pub key: MatrixMut<'a, T>,
    pub value: MatrixMut<'a, T>,
}

impl<T: Real> Attention<'_, T> {
    /// The output `[queries, D]` and the log-sum-exp `[queries, 1]` of the scores.
    pub fn forward(
        &self,
        mut out: MatrixMut<T>,
        mut logsumexp: MatrixMut<T>,
        workspace: &mut Workspace<T>,
    ) {
        let Workspace { panel, attention: [query, scores, ..] } = workspace;
        let lanes = self.lanes();
        let query = pack_lanes(self.query, lanes, query.get(lanes * self.query.columns()));
        scale_all(query, self.scale);
        let query = Packed::new(query, self.query.columns(), lanes);
        let scores = scores.get(KEYS * lanes);
        let mut running = Running::new();
        for keys in key_blocks(0..self.key.rows()) {
            let first = keys.start == 0;
            let mut scores = MatrixMut::new(&mut scores[..keys.len() * lanes], keys.len(), lanes);
            self.scores(&query, keys.clone(), scores.reborrow());
            let (pairs, mask) = (self.pairs_of(keys.clone()), self.mask);
            run(Softmax { scores: scores.reborrow(), pairs, mask, running: &mut running });
            if !first {
                scale_rows(out.reborrow(), &running.rescale);
            }
            run(Product {
                left: Transposed(scores.view().column_block(0..self.query.rows())),
                right: Right::Plain(self.value.row_block(keys)),
                columns: 0..self.value.columns(),
                start: if first { Start::Zero } else { Start::Out },
                out: out.reborrow(),
                panel,
            });
        }
        scale_rows(out, &running.sum.map(|sum| T::ONE / sum));
        for query in 0..self.query.rows() {
            logsumexp.row(query)[0] = running.max[query] + running.sum[query].ln();
        }
    }

    /// What the keys `some` add to the gradients, from the gradient of the output, the output and its log-sum-exp. The
    /// gradient of the queries is written; to those of these keys and values the block's part is added, or written if
    /// it is the `first`.
    ///
    /// With P = softmax(S) and P̃ its dropout: `grad_V` = P̃ᵀ `grad_Y`, `grad_P̃` = `grad_Y` Vᵀ, `grad_S` as in
    /// [`SoftmaxBackward`], `grad_Q` = `grad_S` K, `grad_K` = `grad_S`ᵀ Q.
    pub fn backward(
        &self,
        some: Range<usize>,
        [out, grad_out, logsumexp]: [Matrix<T>; 3],
        grads: &mut AttentionGrads<T>,
        first: bool,
        workspace: &mut Workspace<T>,
    ) {
        let Workspace { panel, attention: [query, scores, grad_query, grad_scores] } = workspace;
        let (queries, width, lanes) = (self.query.rows(), self.query.columns(), self.lanes());
        let query = pack_lanes(self.query, lanes, query.get(lanes * width));
        scale_all(query, self.scale);
        let grad_lanes = pack_lanes(grad_out, lanes, grad_query.get(lanes * width));
        let mut blocks = BackwardBlocks {
            attention: self,
            factors: [query, grad_lanes].map(|factor| Packed::new(factor, width, lanes)),
            logsumexp: std::array::from_fn(
                |i| if i < queries { logsumexp.row(i)[0] } else { T::ZERO },
            ),
            memory: [scores.get(KEYS * lanes), grad_scores.get(KEYS * lanes)],
        };
        let method = blocks.method(&some, out, grad_out);
        for keys in key_blocks(some.clone()) {
            let [scores, grad_scores] = blocks.softmax_backward(&keys, &method);
            let scores = scores.view().column_block(0..queries);
            let grad_scores = grad_scores.view().column_block(0..queries);
            let of_some = keys.start - some.start..keys.end - some.start;
            let of_keys = if first { Start::Zero } else { Start::Out };
            let mut product = |left, right, start, out| {
                run(Product {
                    left,
                    right: Right::Plain(right),
                    columns: 0..width,
                    start,
                    out,
                    panel: &mut *panel,
                });
            };
            product(scores, grad_out, of_keys, grads.value.row_block(of_some.clone()));
            product(grad_scores, self.query, of_keys, grads.key.row_block(of_some));
            let start = if keys.start == some.start { Start::Zero } else { Start::Out };
            run(Product {
                left: Transposed(grad_scores),
                right: Right::Plain(self.key.row_block(keys)),
                columns: 0..width,
                start,
                out: grads.query.reborrow(),
                panel,
            });
        }
    }

    /// `[keys, lanes]`
    fn scores(&self, query: &Packed<T>, keys: Range<usize>, scores: MatrixMut<T>) {
        multiply_lanes(self.key.row_block(keys), query, scores);
    }

    fn lanes(&self) -> usize {
        self.query.rows().next_multiple_of(LANE_STEP)
    }

    /// The pairs of the queries with some of the keys; several positions come with all of theirs.
    fn pairs_of(&self, keys: Range<usize>) -> Pairs {
        if self.pairs.keys < self.key.rows() {
            return self.pairs;
        }
        self.pairs.skip_keys(keys.start, keys.len())
    }
}

/// How the backward computes each query's δ.
enum Method<T> {
    /// It has all keys in one block, and sums.
    OneBlock,
    /// From the output.
    Delta([T; LANES]),
    /// From two passes over all keys before.
    Totals(Totals<T>),
}

/// What the backward of a block of queries needs for each block of keys.
struct BackwardBlocks<'a, T> {
    attention: &'a Attention<'a, T>,
    /// Queries, times the scale, and the gradients of their outputs: `[D, lanes]`.
    factors: [Packed<'a, T>; 2],
    logsumexp: [T; LANES],
    memory: [&'a mut [T]; 2],
}

impl<T: Real> BackwardBlocks<'_, T> {
    fn method(&mut self, some: &Range<usize>, out: Matrix<T>, grad_out: Matrix<T>) -> Method<T> {
        let all = 0..self.attention.key.rows();
        if *some == all && all.len() <= KEYS {
            return Method::OneBlock;
        }
        if self.logsumexp.iter().all(|value| value.abs() < T::from_f64(LARGE)) {
            let delta = |i| sum(out.columns(), |d| out.row(i)[d] * grad_out.row(i)[d]);
            return Method::Delta(std::array::from_fn(|i| {
                if i < out.rows() {
                    delta(i)
                } else {
                    T::ZERO
                }
            }));
        }
        let mut totals = Totals::new();
        for keys in key_blocks(all.clone()) {
            self.add_to_totals(&keys, &mut totals);
        }
        for keys in key_blocks(all) {
            let [scores, grads] = self.add_to_totals(&keys, &mut Totals::new());
            run(AddRest { scores, grads, totals: &mut totals });
        }
        Method::Totals(totals)
    }

    /// P̃ and the gradient of the scores `[keys, lanes]`.
    fn softmax_backward(
        &mut self,
        keys: &Range<usize>,
        method: &Method<T>,
    ) -> [MatrixMut<'_, T>; 2] {
        let Attention { mask, scale, .. } = *self.attention;
        if let Method::Delta(delta) = method {
            let (pairs, logsumexp) = (self.attention.pairs_of(keys.clone()), self.logsumexp);
            let [mut scores, mut grads] = self.scores_and_grads(keys);
            run(SoftmaxBackward {
                scores: scores.reborrow(),
                grads: grads.reborrow(),
                pairs,
                mask,
                scale,
                logsumexp: &logsumexp,
                delta,
            });
            return [scores, grads];
        }
        let mut of_block = Totals::new();
        let pairs = self.attention.pairs_of(keys.clone());
        let [mut scores, mut grads] = self.add_to_totals(keys, &mut of_block);
        let totals = if let Method::Totals(of_all) = method {
            of_all
        } else {
            let (scores, grads) = (scores.reborrow(), grads.reborrow());
            run(AddRest { scores, grads, totals: &mut of_block });
            &of_block
        };
        run(SoftmaxBackwardFromTotals {
            scores: scores.reborrow(),
            grads: grads.reborrow(),
            pairs,
            mask,
            scale,
            totals,
        });
        [scores, grads]
    }

    fn add_to_totals(
        &mut self,
        keys: &Range<usize>,
        totals: &mut Totals<T>,
    ) -> [MatrixMut<'_, T>; 2] {
        let (pairs, mask) = (self.attention.pairs_of(keys.clone()), self.attention.mask);
        let logsumexp = self.logsumexp;
        let [mut scores, mut grads] = self.scores_and_grads(keys);
        run(AddToTotals {
            scores: scores.reborrow(),
            grads: grads.reborrow(),
            pairs,
            mask,
            logsumexp: &logsumexp,
            totals,
        });
        [scores, grads]
    }

    /// The scores and the gradient of P̃ `[keys, lanes]`.
    fn scores_and_grads(&mut self, keys: &Range<usize>) -> [MatrixMut<'_, T>; 2] {
        let Self { attention, factors: [query, grad_out], memory, .. } = self;
        let lanes = attention.lanes();
        let [mut scores, mut grads] = memory
            .each_mut()
            .map(|memory| MatrixMut::new(&mut memory[..keys.len() * lanes], keys.len(), lanes));
        attention.scores(query, keys.clone(), scores.reborrow());
        multiply_lanes(attention.value.row_block(keys.clone()), grad_out, grads.reborrow());
        [scores, grads]
    }
}

/// Ranges of at most [`KEYS`].
fn key_blocks(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    keys.clone().step_by(KEYS).map(move |first| first..(first + KEYS).min(keys.end))
}

/// Rows `[queries, D]` as the columns of a right factor `[D, lanes]`, filled up with 0.
fn pack_lanes<'p, T: Real>(rows: Matrix<T>, lanes: usize, panels: &'p mut [T]) -> &'p mut [T] {
    run(Pack { right: Right::Transposed(rows), columns: lanes, panels: &mut *panels });
    panels
}

/// `[keys, D]` by `[D, lanes]`.
fn multiply_lanes<T: Real>(left: Matrix<T>, lanes: &Packed<T>, out: MatrixMut<T>) {
    let columns = 0..out.columns();
    let panel = &mut Buffer::default(); // nothing is left to pack
    run(Product { left, right: Right::Packed(lanes), columns, start: Start::Zero, out, panel });
}

/// Each row by the factor of its lane.
fn scale_rows<T: Real>(mut rows: MatrixMut<T>, factors: &[T; LANES]) {
    for (row, &factor) in factors.iter().enumerate().take(rows.rows()) {
        scale_all(rows.row(row), factor);
    }
}

fn scale_all<T: Real>(values: &mut [T], factor: T) {
    for value in values {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::random::Site;
    use crate::cpu::kernels::testing::{assert_near, numbers};
    use crate::cpu::simd::with_each_set;

    /// One position, N queries and M keys of width D, with or without dropout.
    struct Case {
        queries: usize,
        keys: usize,
        width: usize,
        p: f64,
    }

    const CASES: [Case; 7] = [
        Case { queries: 1, keys: 1, width: 1, p: 0.0 },
        Case { queries: 7, keys: 5, width: 3, p: 0.5 },
        Case { queries: 64, keys: 130, width: 16, p: 0.0 },
        Case { queries: 150, keys: 64, width: 17, p: 0.25 },
        Case { queries: 65, keys: 300, width: 8, p: 0.5 },
        Case { queries: 3, keys: 257, width: 48, p: 0.9 },
        Case { queries: 130, keys: 1, width: 5, p: 0.5 },
    ];

    /// Output and gradients of query, key and value, by the plain formulas.
    fn plain(
        case: &Case,
        [q, k, v, grad]: [&[f64]; 4],
        mask: &Mask<f64>,
        scale: f64,
    ) -> [Vec<f64>; 4] {
        let Case { queries, keys, width, .. } = *case;
        let mut results = [queries, queries, keys, keys].map(|rows| vec![0.0; rows * width]);
        let dot = |a: &[f64], i: usize, b: &[f64], j: usize| -> f64 {
            (0..width).map(|d| a[i * width + d] * b[j * width + d]).sum()
        };
        for i in 0..queries {
            let exps: Vec<f64> = (0..keys).map(|j| (scale * dot(q, i, k, j)).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let factor = |j: usize| {
                let element = (i * keys + j) as u64;
                let bits = (mask.word(element / 4) >> (element % 4 * 16)) as u32 & 0xFFFF;
                if mask.is_off() {
                    1.0
                } else {
                    mask.factor(bits)
                }
            };
            let p: Vec<f64> = exps.iter().map(|exp| exp / sum).collect();
            let grad_p: Vec<f64> = (0..keys).map(|j| factor(j) * dot(grad, i, v, j)).collect();
            let delta: f64 = p.iter().zip(&grad_p).map(|(p, g)| p * g).sum();
            for j in 0..keys {
                let grad_score = scale * p[j] * (grad_p[j] - delta);
                for d in 0..width {
                    results[0][i * width + d] += p[j] * factor(j) * v[j * width + d];
                    results[1][i * width + d] += grad_score * k[j * width + d];
                    results[2][j * width + d] += grad_score * q[i * width + d];
                    results[3][j * width + d] += p[j] * factor(j) * grad[i * width + d];
                }
            }
        }
        results
    }

    /// The same by blocks of queries.
    fn fused(
        case: &Case,
        [q, k, v, grad]: [&[f64]; 4],
        mask: Mask<f64>,
        scale: f64,
    ) -> [Vec<f64>; 4] {
        let Case { queries, keys, width, .. } = *case;
        let mut results = [queries, queries, keys, keys].map(|rows| vec![0.0; rows * width]);
        let mut logsumexp = vec![0.0; queries];
        let mut workspace = Workspace::default();
        let [out, grad_query, grad_key, grad_value] = &mut results;
        for first in (0..queries).step_by(QUERIES) {
            let rows = first..(first + QUERIES).min(queries);
            let attention = Attention {
                query: Matrix::new(q, queries, width).row_block(rows.clone()),
                key: Matrix::new(k, keys, width),
                value: Matrix::new(v, keys, width),
                pairs: Pairs {
                    queries: queries - first,
                    keys,
                    element: (first * keys) as u64,
                    query_step: keys as u64,
                    position_step: 0,
                },
                mask,
                scale,
            };
            let mut out = MatrixMut::new(out, queries, width);
            let mut logsumexp = MatrixMut::new(&mut logsumexp, queries, 1);
            let block = (out.row_block(rows.clone()), logsumexp.row_block(rows.clone()));
            attention.forward(block.0, block.1, &mut workspace);
            let mut grad_query = MatrixMut::new(grad_query, queries, width);
            let mut grads = AttentionGrads {
                query: grad_query.row_block(rows.clone()),
                key: MatrixMut::new(grad_key, keys, width),
                value: MatrixMut::new(grad_value, keys, width),
            };
            let grad = Matrix::new(grad, queries, width).row_block(rows.clone());
            let kept = [out.view().row_block(rows.clone()), grad, logsumexp.view().row_block(rows)];
            attention.backward(0..keys, kept, &mut grads, first == 0, &mut workspace);
        }
        results
    }

    #[test]
    fn blocks_of_any_number_of_queries_and_keys_are_the_plain_attention() {
        with_each_set(|set| {
            for case in &CASES {
                let Case { queries, keys, width, p } = *case;
                let inputs =
                    [queries, keys, keys + 1, queries + 1].map(|rows| numbers::<f64>(rows * width));
                let inputs = [
                    &inputs[0][..],
                    &inputs[1][..],
                    &inputs[2][..keys * width],
                    &inputs[3][..queries * width],
                ];
                let mask = Mask::new(-77, Site::Attention, p);
                let what = format!("{set:?} {queries} {keys} {width} {p}");
                let expected = plain(case, inputs, &mask, 1.7);
                for (actual, expected) in fused(case, inputs, mask, 1.7).iter().zip(&expected) {
                    assert_near(actual, expected, &what);
                }
            }
        });
    }
}
