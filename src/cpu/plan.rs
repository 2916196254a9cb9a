//! How the rows of a call are cut: by its sizes alone, so that the order of every sum is the same for any number of
//! threads.

use super::kernels::attention::QUERIES;
use crate::call::Dims;

/// Rows that go through the whole layer while they stay in a core's cache. Tried: 96, 128 and 192 are alike.
const TILE_ROWS: usize = 128;
/// Calls with several positions go by tiles if a tile holds at least one position and there is a tile for each of a few
/// threads.
const TILED_SAMPLES: usize = TILE_ROWS;
const TILED_ROWS: usize = 512;
/// Tiles are made in eights, for two, four or eight threads.
const TILES: usize = 8;
/// With one position: a block of queries. Every step by all threads would be a wait for the slowest after each, which
/// takes as long as the step where a layer is small.
const ROW_TILE: usize = QUERIES;
/// Weights that stay in a core's second cache beside a tile.
const CACHED_WEIGHTS: i64 = 1 << 17;
/// Rows whose gradients are gathered before the weights' gradients are computed from them: so many that the
/// weights' gradients are not read and written too often, so few that all of it stays in the last cache. Tried: 1024, 2048 and
/// 4096 take the same time, and 1024 the least memory.
const GATHERED_ROWS: usize = 1024;

/// The cut of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Positions that one thread takes through the whole layer; None: threads share every step.
    pub tile: Option<usize>,
    /// Rows of one position that one thread takes through the layer, but for their attention, which is over all.
    pub row_tile: Option<usize>,
    /// Positions whose backward is done before the gradients of the weights.
    pub gathered: usize,
    /// Rows over which a norm's sums run before they are added up.
    pub norm_rows: usize,
}

impl Plan {
    pub fn new(dims: &Dims) -> Self {
        let (samples, positions) = (dims.samples as usize, dims.positions as usize);
        let rows = samples * positions;
        if positions > 1 && samples <= TILED_SAMPLES && rows >= TILED_ROWS {
            let tiles = TILES * rows.div_ceil(TILES * TILE_ROWS);
            let tile = positions.div_ceil(tiles);
            let gathered = tile * TILES * (GATHERED_ROWS / (TILES * tile * samples)).max(1);
            return Self {
                tile: Some(tile),
                row_tile: None,
                gathered: gathered.min(positions),
                norm_rows: tile * samples,
            };
        }
        let gathered = (GATHERED_ROWS / samples).clamp(1, positions);
        let norm_rows = if samples < 1024 { 16 } else { 64 };
        let weights = dims.channels * (4 * dims.channels + 2 * dims.feedforward);
        let by_rows = positions == 1 && samples > ROW_TILE && weights <= CACHED_WEIGHTS;
        Self { tile: None, row_tile: by_rows.then_some(ROW_TILE), gathered, norm_rows }
    }

    /// How many times the gradients of the weights are added to.
    pub fn parts(&self, positions: usize) -> usize {
        positions.div_ceil(self.gathered)
    }
}
