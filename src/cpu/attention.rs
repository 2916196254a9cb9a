//! Multi-head attention over the N samples of each position, distributed over threads by positions, heads and blocks.

use std::ops::Range;

use super::block::Block;
use super::forward_steps::Attended;
use super::kernels::attention::{Attention, AttentionGrads, Pairs, KEYS, LANE_STEP, QUERIES};
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
    /// `[rows, C]`
    query: Matrix<'a, T>,
    /// `[keys of these positions, C]` each.
    key: Matrix<'a, T>,
    value: Matrix<'a, T>,
    tokens: TokenRows,
}

/// Positions whose attention is computed at a time: one; if they are small, as many as fill the lanes, and a block of
/// keys.
pub fn positions_of_a_block(samples: usize, keys: usize) -> usize {
    (LANE_STEP / samples).min(KEYS / keys).max(1)
}

/// Queries of one position, or of several, and all their keys.
#[derive(Clone)]
struct HeadBlock {
    head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl<'a, T: Real> HeadRows<'a, T> {
    fn new(
        layer: &'a LayerView<'a, T>,
        tokens: TokenRows,
        qkv: Matrix<'a, T>,
        keys_values: Matrix<'a, T>,
    ) -> Self {
        let channels = layer.channels();
        let part = |of: Matrix<'a, T>, part: usize| {
            of.column_block(part * channels..(part + 1) * channels)
        };
        let (from, key) = if keys_values.columns() > 0 { (keys_values, 0) } else { (qkv, 1) };
        let (query, key, value) = (part(qkv, 0), part(from, key), part(from, key + 1));
        Self { layer, query, key, value, tokens }
    }

    fn width(&self) -> usize {
        self.layer.channels() / self.layer.heads
    }

    /// The block of a number, of `positions` each, head after head.
    fn block(&self, number: usize, positions: usize) -> HeadBlock {
        let LayerView { samples, keys, heads, .. } = *self.layer;
        let first = number / heads * positions;
        let rows = |each: usize, all: usize| first * each..((first + positions) * each).min(all);
        HeadBlock {
            head: number % heads,
            queries: rows(samples, self.query.rows()),
            keys: rows(keys, self.key.rows()),
        }
    }

    /// A block, or its positions one by one if it holds a NaN or infinity, also in `grad_attended`.
    ///
    /// Several positions are multiplied with each other by probabilities of 0, and 0 times NaN is NaN. Each block
    /// decides for itself, as more of them would depend on the number of threads, and with it the rounding.
    fn apart(
        &self,
        block: HeadBlock,
        grad_attended: Option<Matrix<T>>,
    ) -> impl Iterator<Item = HeadBlock> {
        let LayerView { samples, keys, .. } = *self.layer;
        let positions = block.queries.len().div_ceil(samples);
        let step =
            if positions == 1 || self.is_finite(&block, grad_attended) { positions } else { 1 };
        let HeadBlock { head, queries: all, keys: all_keys } = block;
        let part = move |of: &Range<usize>, first: usize, each: usize| {
            of.start + first * each..of.end.min(of.start + (first + step) * each)
        };
        (0..positions).step_by(step).map(move |first| HeadBlock {
            head,
            queries: part(&all, first, samples),
            keys: part(&all_keys, first, keys),
        })
    }

    fn is_finite(&self, block: &HeadBlock, grad_attended: Option<Matrix<T>>) -> bool {
        let HeadBlock { head, queries, keys } = block;
        let columns = head * self.width()..(head + 1) * self.width();
        let finite = |of: Matrix<T>, rows: &Range<usize>| {
            all_finite(of.block(rows.clone(), columns.clone()))
        };
        finite(self.query, queries)
            && finite(self.key, keys)
            && finite(self.value, keys)
            && grad_attended.is_none_or(|grad_attended| finite(grad_attended, queries))
    }

    /// The queries `rows` of a head over the keys `keys`: all of the same one position, or of several.
    fn attention(&self, head: usize, rows: Range<usize>, keys: Range<usize>) -> Attention<'_, T> {
        let LayerView { samples, heads, masks, all_keys, .. } = *self.layer;
        let columns = head * self.width()..(head + 1) * self.width();
        let first = self.tokens.first + rows.start;
        let (position, query) = (first / samples, first % samples);
        Attention {
            pairs: Pairs {
                queries: samples - query,
                keys: self.layer.keys,
                element: (((position * heads + head) * samples + query) * all_keys) as u64,
                query_step: all_keys as u64,
                position_step: (heads * samples * all_keys) as u64,
            },
            query: self.query.block(rows, columns.clone()),
            key: self.key.block(keys.clone(), columns.clone()),
            value: self.value.block(keys, columns),
            mask: masks.attention,
            scale: self.layer.attention_scale,
        }
    }

    /// Keys that one thread goes through in the backward: all, if a block has several positions; else so few that
    /// several threads are busy even with few heads. Each such part has its own gradient of the queries, and those are
    /// summed at the end.
    fn keys_of_a_part(&self, positions_together: usize) -> usize {
        if positions_together > 1 {
            return KEYS;
        }
        let LayerView { keys, positions, heads, .. } = *self.layer;
        let parts = 8_usize.div_ceil(positions * heads).clamp(1, PARTS);
        keys.div_ceil(parts).next_multiple_of(QUERIES)
    }
}

/// Query, key and value to the heads' outputs `[rows, C]` and the log-sum-exp `[rows, H]` of each query's scores, of
/// whole positions or of some rows of one.
pub fn forward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    Attended { tokens, qkv, keys_values, first }: Attended<T>,
    attended: MatrixMut<T>,
    logsumexp: MatrixMut<T>,
) {
    let heads = &HeadRows::new(layer, tokens, qkv, keys_values);
    let positions = positions_of_a_block(layer.samples, layer.keys);
    let width = heads.width();
    let together = positions * layer.samples;
    let blocks = attended.split_rows(together).zip(logsumexp.split_rows(together));
    let parts = blocks.enumerate().flat_map(|(number, (attended, logsumexp))| {
        let all = heads.block(number * layer.heads, positions);
        let blocks = attended.split(QUERIES, width).zip(logsumexp.split(QUERIES, 1));
        blocks.enumerate().map(move |(block, (attended, logsumexp))| {
            let row = first + all.queries.start + block / layer.heads * QUERIES;
            (block % layer.heads, row, all.keys.clone(), attended, logsumexp)
        })
    });
    team.for_each(parts, |(head, row, keys, mut attended, mut logsumexp), workspace| {
        let all = HeadBlock { head, queries: row..row + attended.rows(), keys };
        for HeadBlock { queries, keys, .. } in heads.apart(all, None) {
            let rows = queries.start - row..queries.end - row;
            heads.attention(head, queries, keys).forward(
                attended.row_block(rows.clone()),
                logsumexp.row_block(rows),
                workspace,
            );
        }
    });
}

/// What the backward starts from, and where the gradients go: of qkv `[rows, 3C]`, or of the queries `[rows, C]` and
/// of keys and values `[keys of these positions, 2C]`.
pub struct AttentionBackward<'a, T> {
    pub qkv: Matrix<'a, T>,
    pub keys_values: Matrix<'a, T>,
    pub attended: Matrix<'a, T>,
    pub logsumexp: Matrix<'a, T>,
    pub grad_attended: Matrix<'a, T>,
    pub grad_qkv: MatrixMut<'a, T>,
    pub grad_keys_values: MatrixMut<'a, T>,
}

/// The gradient of qkv from that of the heads' outputs.
pub fn backward<T: Real>(
    team: &mut Team<T>,
    layer: &LayerView<T>,
    tokens: TokenRows,
    backward: AttentionBackward<T>,
) {
    let AttentionBackward { qkv, keys_values, attended, logsumexp, grad_attended, .. } = backward;
    let AttentionBackward { mut grad_qkv, grad_keys_values, .. } = backward;
    let heads = &HeadRows::new(layer, tokens, qkv, keys_values);
    let positions = positions_of_a_block(layer.samples, layer.keys);
    let (together, keys_together) = (positions * layer.samples, positions * layer.keys);
    let (width, channels) = (heads.width(), layer.channels());
    let rows = grad_qkv.rows();
    let step = heads.keys_of_a_part(positions);
    let count = keys_together.div_ceil(step);
    let mut memory: [Option<Block<T>>; PARTS - 1] =
        std::array::from_fn(|other| (other + 1 < count).then(|| Block::new(rows * channels)));
    let mut others = memory.each_mut().map(|block| {
        let other = block.as_mut().map(|block| MatrixMut::new(block, rows, channels));
        other.map(|other| other.split(together, width))
    });
    let key_rows = grad_keys_values.rows();
    let of_keys = grad_keys_values.split(key_rows, channels);
    let mut columns = grad_qkv.reborrow().split(rows, channels).chain(of_keys);
    let [queries, keys, values] = [together, keys_together, keys_together].map(|together| {
        columns.next().into_iter().flat_map(move |part| part.split(together, width))
    });
    drop(columns);
    let blocks = queries.zip(keys.zip(values)).enumerate();
    let parts = blocks.flat_map(move |(number, (query, (key, value)))| {
        let block = heads.block(number, positions);
        let others = others.each_mut().map(|other| other.as_mut().and_then(Iterator::next));
        let grad_queries = std::iter::once(query).chain(others.into_iter().flatten());
        let grad_keys = key.split_rows(step).zip(value.split_rows(step));
        grad_queries.zip(grad_keys).enumerate().map(move |(part, (query, (key, value)))| {
            let keys = part * step..part * step + key.rows();
            (block.clone(), keys, AttentionGrads { query, key, value })
        })
    });
    team.for_each(parts, |(block, keys, mut grads), workspace| {
        let HeadBlock { head, queries: all, keys: all_keys } = block.clone();
        let columns = head * width..(head + 1) * width;
        for HeadBlock { queries, keys: own, .. } in heads.apart(block, Some(grad_attended)) {
            let keys = keys.start..keys.end.min(own.len());
            let of_keys = own.start - all_keys.start..own.start - all_keys.start + keys.len();
            for first in queries.clone().step_by(QUERIES) {
                let rows = first..(first + QUERIES).min(queries.end);
                let results = [
                    attended.block(rows.clone(), columns.clone()),
                    grad_attended.block(rows.clone(), columns.clone()),
                    logsumexp.block(rows.clone(), head..head + 1),
                ];
                let mut grads = AttentionGrads {
                    query: grads.query.row_block(rows.start - all.start..rows.end - all.start),
                    key: grads.key.row_block(of_keys.clone()),
                    value: grads.value.row_block(of_keys.clone()),
                };
                let is_first = first == queries.start;
                let attention = heads.attention(head, rows, own.clone());
                attention.backward(keys.clone(), results, &mut grads, is_first, workspace);
            }
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
