//! How the rows of a call are divided, so that the order of every sum is the same for any number of threads.

use super::attention::positions_of_a_block;
use super::kernels::attention::QUERIES;
use crate::call::Dims;

/// Rows that go through the whole layer while they stay in a core's cache. Tried: 96, 128 and 192 are equally fast.
const TILE_ROWS: usize = 128;
/// Calls with several positions go by tiles if a tile holds at least one position and there is a tile for each of a few
/// threads.
const TILED_SAMPLES: usize = TILE_ROWS;
const TILED_ROWS: usize = 512;
/// The number of tiles is a multiple of this, so that two, four or eight threads get equally many.
const TILES: usize = 8;
/// Blocks of a tile; the norms' sums run over a block. With many threads, a tile has fewer blocks.
const BLOCKS: usize = 4;
/// Tiles for each thread, if there are as many blocks.
const TILES_OF_A_THREAD: usize = 2;
/// With one position: a block of queries. If all threads shared every step, they would wait for the slowest after each,
/// which takes as long as the step if the layer is small.
const ROW_TILE: usize = QUERIES;
/// Weights that stay in a core's L2 cache together with a tile.
const CACHED_WEIGHTS: i64 = 1 << 17;
/// Rows whose gradients are gathered before the weights' gradients are computed from them: so many that the weights'
/// gradients are not read and written too often, so few that all of it stays in the last-level cache. Tried: 1024, 2048
/// and 4096 take the same time, and 1024 the least memory.
const GATHERED_ROWS: usize = 1024;

/// How a call is divided. Sums run over blocks of rows and are added up over units of rows; both depend on the sizes of
/// the call alone. Tiles and parts are whole blocks and whole units, and as large as the number of threads allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Positions that one thread takes through the whole layer; None: threads share every step.
    pub tile: Option<usize>,
    /// Rows of one position that one thread takes through the layer, except for attention, which is over all rows.
    pub row_tile: Option<usize>,
    /// Positions whose backward is done before the gradients of the weights.
    pub gathered: usize,
    /// Positions of a unit, whose gradients of the weights are added up before they are added to those of the others.
    pub unit: usize,
    /// Rows of a block, over which a norm's sums run before they are added up.
    pub norm_rows: usize,
}

impl Plan {
    pub fn new(dims: &Dims, threads: usize) -> Self {
        let (samples, positions) = (dims.samples as usize, dims.positions as usize);
        let rows = samples * positions;
        if positions > 1 && samples <= TILED_SAMPLES && rows >= TILED_ROWS {
            let together = positions_of_a_block(samples, dims.counted_keys as usize);
            return Self::tiled(samples, positions, together, threads);
        }
        let unit = (GATHERED_ROWS / samples).clamp(1, positions);
        let norm_rows = if samples < 1024 { 16 } else { 64 };
        let weights = dims.channels * (4 * dims.channels + 2 * dims.feedforward);
        let by_rows = positions == 1 && samples > ROW_TILE && weights <= CACHED_WEIGHTS;
        let row_tile = by_rows.then_some(ROW_TILE);
        Self { tile: None, row_tile, gathered: unit, unit, norm_rows }
    }

    /// A block is of whole groups of positions whose attention is computed together, as the chains of a sum are those of
    /// a position's place in its group.
    fn tiled(samples: usize, positions: usize, together: usize, threads: usize) -> Self {
        let tiles = TILES * (samples * positions).div_ceil(TILES * TILE_ROWS);
        let most = positions.div_ceil(tiles);
        let block = most.div_ceil(BLOCKS).next_multiple_of(together);
        let most = block * most.div_ceil(block);
        let wanted = TILES_OF_A_THREAD * threads;
        let tile = block * (positions.div_ceil(block) / wanted).clamp(1, most / block);
        let unit = TILES * most;
        let unit = unit * (GATHERED_ROWS / (unit * samples)).max(1);
        let gathered = unit * (wanted * tile).div_ceil(unit);
        Self {
            tile: Some(tile),
            row_tile: None,
            gathered: gathered.min(positions),
            unit,
            norm_rows: block * samples,
        }
    }

    /// How many times the gradients of the weights are added to.
    pub fn units(&self, positions: usize) -> usize {
        positions.div_ceil(self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// N, L and C of DETR at 2, 4 and 16 images, `DeiT`, and Deformable DETR.
    const TILED: [[i64; 3]; 5] =
        [[2, 850, 256], [4, 850, 256], [16, 850, 256], [64, 197, 384], [2, 17821, 256]];

    fn plan([samples, positions, channels]: [i64; 3], threads: usize) -> Plan {
        let (heads, feedforward, batch_first) = (4, channels, true);
        let (keys, counted_keys, own_keys) = (samples, samples, true);
        let dims = Dims {
            samples,
            positions,
            keys,
            counted_keys,
            own_keys,
            channels,
            heads,
            feedforward,
            batch_first,
        };
        Plan::new(&dims, threads)
    }

    #[test]
    fn sums_are_cut_alike_for_any_number_of_threads() {
        for shape in TILED {
            let few = plan(shape, 1);
            for threads in [2, 3, 8, 16, 64, 1000] {
                let many = plan(shape, threads);
                assert_eq!((many.unit, many.norm_rows), (few.unit, few.norm_rows));
                assert_eq!(
                    many.tile.map(|tile| tile * shape[0] as usize % many.norm_rows),
                    Some(0)
                );
                let units = many.gathered.is_multiple_of(many.unit);
                assert!(units || many.gathered == shape[1] as usize, "{shape:?} {threads}");
            }
        }
    }

    #[test]
    fn groups_of_positions_are_whole_for_any_number_of_threads() {
        for shape in [[3, 850, 32], [5, 197, 32], [6, 300, 12], [7, 1000, 32]] {
            let together = positions_of_a_block(shape[0] as usize, shape[0] as usize);
            assert!(together > 1);
            for threads in [1, 4, 16, 64] {
                let plan = plan(shape, threads);
                assert_eq!(plan.tile.map(|tile| tile % together), Some(0), "{shape:?} {threads}");
                assert_eq!(plan.unit % together, 0, "{shape:?} {threads}");
            }
        }
    }

    #[test]
    fn each_of_many_threads_has_a_tile() {
        for (threads, shapes) in [(2, &TILED[..]), (16, &TILED[..]), (64, &TILED[1..])] {
            for &shape in shapes {
                let plan = plan(shape, threads);
                let tile = plan.tile.unwrap_or(usize::MAX);
                let (all, of_a_part) =
                    ((shape[1] as usize).div_ceil(tile), plan.gathered.div_ceil(tile));
                assert!(
                    all >= threads && of_a_part >= threads,
                    "{shape:?} {threads}: {all} {of_a_part}"
                );
            }
        }
    }
}
