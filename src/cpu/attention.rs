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

    /// As [`positions_of_a_block`], or one.
    ///
    /// Several positions in a block are multiplied with each other, by probabilities of 0, through which a NaN or
    /// infinity would spread: 0 times NaN is NaN. If there is any in `values`, positions are computed one by one.
    fn positions_together(&self, values: &[Matrix<T>]) -> usize {
        let LayerView { samples, keys, .. } = *self.layer;
        let positions = positions_of_a_block(samples, keys);
        if positions < 2 || !values.iter().all(|&rows| all_finite(rows)) {
            return 1;
        }
        positions
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
    let positions = heads.positions_together(&[qkv, keys_values]);
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
    team.for_each(parts, |(head, row, keys, attended, logsumexp), workspace| {
        let rows = row..row + attended.rows();
        heads.attention(head, rows, keys).forward(attended, logsumexp, workspace);
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
    let positions = heads.positions_together(&[qkv, keys_values, grad_attended]);
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
    team.for_each(
        parts,
        |(HeadBlock { head, queries: all, keys: all_keys }, keys, mut grads), workspace| {
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
                let attention = heads.attention(head, rows, all_keys.clone());
                attention.backward(
                    keys.clone(),
                    results,
                    &mut grads,
                    first == all.start,
                    workspace,
                );
            }
        },
    );
    for other in memory.iter().flatten() {
        let other = Matrix::new(other, rows, channels);
        let sums = grad_qkv.block(0..rows, 0..channels).split_rows(QUERIES);
        team.for_each(sums.enumerate(), |(number, sum), _| {
            let first = number * QUERIES;
            run(AddRows { summand: other.row_block(first..first + sum.rows()), sum });
        });
    }
}
