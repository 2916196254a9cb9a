//! Multi-head attention over the N samples of each position, dealt out to a team by positions, heads and blocks.

use std::ops::Range;

use super::block::Block;
use super::forward_steps::Attended;
use super::kernels::attention::{Attention, AttentionGrads, Pairs, LANE_STEP, QUERIES};
use super::kernels::reduce::all_finite;
use super::kernels::residual::AddRows;
use super::layer_view::LayerView;
use super::matrix::{Matrix, MatrixMut};
use super::rows::TokenRows;
use super::simd::{run, Real};
use super::threads::Team;

/// Parts that the keys of a position are cut into at most.
const PARTS: usize = 4;

/// The heads of some positions' tokens.
struct HeadRows<'a, T> {
    layer: &'a LayerView<'a, T>,
    /// `[rows, 3C]`
    qkv: Matrix<'a, T>,
    tokens: TokenRows,
}

impl<T: Real> HeadRows<'_, T> {
    fn width(&self) -> usize {
        self.layer.channels() / self.layer.heads
    }

    /// Rows that are computed at a time: those of a position; of small positions, as many as fill the lanes.
    ///
    /// Several positions in a block meet in products with probabilities of 0, where what is no number would spread
    /// from one to the others: 0 times NaN is NaN. If there is any in `values`, positions are computed one by one.
    fn rows_together(&self, values: &[Matrix<T>]) -> usize {
        let samples = self.layer.samples;
        let positions = LANE_STEP / samples;
        if positions < 2 || !values.iter().all(|&rows| all_finite(rows)) {
            return samples;
        }
        positions * samples
    }

    /// The queries `rows` of a head over the keys `keys`: all of the same one position, or of several.
    fn attention(&self, head: usize, rows: Range<usize>, keys: Range<usize>) -> Attention<'_, T> {
        let LayerView { samples, heads, masks, .. } = *self.layer;
        let (channels, width) = (self.layer.channels(), self.width());
        let columns =
            |part: usize| part * channels + head * width..part * channels + (head + 1) * width;
        let first = self.tokens.first + rows.start;
        let (position, query) = (first / samples, first % samples);
        Attention {
            pairs: Pairs {
                queries: samples - query,
                keys: samples,
                element: (((position * heads + head) * samples + query) * samples) as u64,
                query_step: samples as u64,
                position_step: (heads * samples * samples) as u64,
            },
            query: self.qkv.block(rows, columns(0)),
            key: self.qkv.block(keys.clone(), columns(1)),
            value: self.qkv.block(keys, columns(2)),
            mask: masks.attention,
            scale: self.layer.attention_scale,
        }
    }

    /// Keys that one thread goes through in the backward: of a position's, so few that few heads keep several
    /// threads busy. Each such part has a gradient of the queries of its own, and those are summed at the end.
    fn keys_together(&self) -> usize {
        let LayerView { samples, positions, heads, .. } = *self.layer;
        let parts = 8_usize.div_ceil(positions * heads).clamp(1, PARTS);
        samples.div_ceil(parts).next_multiple_of(QUERIES)
    }
}

/// Query, key and value to the heads' outputs `[rows, C]` and the log-sum-exp `[rows, H]` of each query's scores, of
/// whole positions or of some rows of one.
pub fn forward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    Attended { tokens, qkv, first }: Attended<T>,
    attended: MatrixMut<T>,
    logsumexp: MatrixMut<T>,
) {
    let heads = HeadRows { layer, qkv, tokens };
    let (together, width) = (heads.rows_together(&[qkv]), heads.width());
    let blocks = attended.split_rows(together).zip(logsumexp.split_rows(together));
    let parts = blocks.enumerate().flat_map(|(number, (attended, logsumexp))| {
        let all = number * together..((number + 1) * together).min(qkv.rows());
        let blocks = attended.split(QUERIES, width).zip(logsumexp.split(QUERIES, 1));
        blocks.enumerate().map(move |(block, (attended, logsumexp))| {
            let row = first + all.start + block / layer.heads * QUERIES;
            (block % layer.heads, row, all.clone(), attended, logsumexp)
        })
    });
    team.for_each(parts, |(head, row, all, attended, logsumexp), workspace| {
        let rows = row..row + attended.rows();
        heads.attention(head, rows, all).forward(attended, logsumexp, workspace);
    });
}

/// What the backward starts from, and where the gradient of qkv `[rows, 3C]` goes.
pub struct AttentionBackward<'a, T> {
    pub qkv: Matrix<'a, T>,
    pub attended: Matrix<'a, T>,
    pub logsumexp: Matrix<'a, T>,
    pub grad_attended: Matrix<'a, T>,
    pub grad_qkv: MatrixMut<'a, T>,
}

/// The gradient of qkv for that of the heads' outputs.
pub fn backward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    tokens: TokenRows,
    backward: AttentionBackward<T>,
) {
    let AttentionBackward { qkv, attended, logsumexp, grad_attended, mut grad_qkv } = backward;
    let heads = HeadRows { layer, qkv, tokens };
    let together = heads.rows_together(&[qkv, grad_attended]);
    let (width, channels) = (heads.width(), layer.channels());
    let rows = grad_qkv.rows();
    let step = heads.keys_together();
    let count = together.div_ceil(step);
    let mut memory: [Option<Block<T>>; PARTS - 1] =
        std::array::from_fn(|other| (other + 1 < count).then(|| Block::new(rows * channels)));
    let mut others = memory.each_mut().map(|block| {
        let other = block.as_mut().map(|block| MatrixMut::new(block, rows, channels));
        other.map(|other| other.split(together, width))
    });
    let mut columns = grad_qkv.reborrow().split(rows, channels);
    let [queries, keys, values] = std::array::from_fn(|_| {
        columns.next().into_iter().flat_map(move |part| part.split(together, width))
    });
    drop(columns);
    let blocks = queries.zip(keys.zip(values)).enumerate();
    let parts = blocks.flat_map(move |(number, (query, (key, value)))| {
        let (first, head) = (number / layer.heads * together, number % layer.heads);
        let all = first..first + query.rows();
        let others = others.each_mut().map(|other| other.as_mut().and_then(Iterator::next));
        let grad_queries = std::iter::once(query).chain(others.into_iter().flatten());
        let grad_keys = key.split_rows(step).zip(value.split_rows(step));
        grad_queries.zip(grad_keys).enumerate().map(move |(part, (query, (key, value)))| {
            let keys = part * step..part * step + key.rows();
            (head, all.clone(), keys, AttentionGrads { query, key, value })
        })
    });
    team.for_each(parts, |(head, all, keys, mut grads), workspace| {
        let columns = head * width..(head + 1) * width;
        let AttentionGrads { query, key, value } = &mut grads;
        for first in all.clone().step_by(QUERIES) {
            let rows = first..(first + QUERIES).min(all.end);
            let of_all = rows.start - all.start..rows.end - all.start;
            let results = [
                attended.block(rows.clone(), columns.clone()),
                grad_attended.block(rows.clone(), columns.clone()),
                logsumexp.block(rows.clone(), head..head + 1),
            ];
            let mut grads = AttentionGrads {
                query: query.row_block(of_all),
                key: key.reborrow(),
                value: value.reborrow(),
            };
            let attention = heads.attention(head, rows, all.clone());
            attention.backward(keys.clone(), results, &mut grads, first == all.start, workspace);
        }
    });
    for other in memory.iter().flatten() {
        let other = Matrix::new(other, rows, channels);
        let sums = grad_qkv.block(0..rows, 0..channels).split_rows(QUERIES);
        team.for_each(sums.enumerate(), |(number, sum), _| {
            let first = number * QUERIES;
            run(AddRows { summand: other.row_block(first..first + sum.rows()), sum });
        });
    }
}
