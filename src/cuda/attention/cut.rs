//! How the kernels for many samples are divided into blocks and warps.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tch::Kind;

use crate::call::Dims;
use crate::cuda::call::steps_of;
use crate::cuda::device::Facts;

/// What a kernel is compiled with and how it is launched.
#[derive(Clone, Debug)]
pub struct Cut {
    pub defines: Vec<(&'static str, i64)>,
    /// Rows of a block.
    pub held: i64,
    pub warps: i64,
    /// Bytes.
    pub shared: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    Forward,
    ByQuery,
    ByKey,
}

/// All that a cut depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    pass: Pass,
    samples: i64,
    keys: i64,
    counted_keys: i64,
    /// Heads of all positions.
    units: i64,
    width: i64,
    kind: Kind,
    facts: Facts,
}

/// The cut of a call, looked for once; None if no block fits the device.
pub fn cut(pass: Pass, dims: &Dims, kind: Kind, facts: Facts) -> Option<Cut> {
    static KNOWN: Mutex<Option<HashMap<Sizes, Option<Cut>>>> = Mutex::new(None);
    let Dims { samples, keys, counted_keys, .. } = *dims;
    let (units, width) = (dims.positions * dims.heads, dims.head_width());
    let sizes = Sizes { pass, samples, keys, counted_keys, units, width, kind, facts };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let find = || match pass {
        Pass::Forward => sizes.forward(),
        Pass::ByQuery | Pass::ByKey => sizes.backward(),
    };
    known.get_or_insert_default().entry(sizes).or_insert_with(find).clone()
}

/// A row of a tile in shared memory.
#[derive(Clone, Copy)]
struct Row {
    /// Columns, a multiple of 16.
    wide: i64,
    /// Elements in 16 bytes, by which rows are padded.
    per: i64,
    size: i64,
}

impl Row {
    fn bytes(self) -> i64 {
        (self.wide + self.per) * self.size
    }
}

/// The most registers of a lane that hold its part of the gradient.
const ACCUMULATORS: i64 = 144;

fn power_of_two(at_least: i64) -> i64 {
    at_least.max(1).unsigned_abs().next_power_of_two() as i64
}

impl Sizes {
    fn row(&self) -> Row {
        let size = self.kind.elt_size_in_bytes() as i64;
        Row { wide: 16 * steps_of(16, self.width), per: 16 / size, size }
    }

    /// The most rows with which blocks occupy three quarters of the multiprocessors, at least 16: smaller blocks reread
    /// more.
    fn rows_of_block(&self, rows: i64, most: i64) -> i64 {
        let mut held = most;
        let enough = 3 * self.facts.multiprocessors;
        while held > 16 && (4 * steps_of(held, rows) * self.units < enough || held >= 2 * rows) {
            held /= 2;
        }
        held
    }

    /// Few queries have few blocks, so several warps share a block's queries, each with some of the keys.
    fn forward(&self) -> Option<Cut> {
        let row = self.row();
        let narrow = row.per == 8 && row.wide <= 128; // two tiles of queries fit a warp's registers
        let most = self.rows_of_block(self.samples, if narrow { 128 } else { 64 });
        for held in [128, 64, 32, 16].into_iter().filter(|&held| held <= most) {
            for fewer in [1, 2, 4] {
                for keys in [32, 16].into_iter().filter(|&keys| keys < self.counted_keys + 16) {
                    let tiles = if narrow && held > 16 { 2 } else { 1 };
                    let groups = held / 16 / tiles;
                    // A block alone on its multiprocessor, whose tensor cores want 8 warps
                    let blocks = steps_of(held, self.samples) * self.units;
                    let alone = blocks < 2 * self.facts.multiprocessors;
                    let warps = if narrow && alone && held != 32 { 8 } else { 4 } / fewer;
                    let split = (warps / groups).max(1);
                    let split = split.min(power_of_two(steps_of(keys, self.counted_keys)));
                    let step = keys * split;
                    let buffers = if self.counted_keys > step { 2 } else { 1 };
                    let passing = (held + 2 * step * buffers) * row.bytes();
                    let sums = if split > 1 { split * held * (row.wide + 6) * 4 } else { 0 };
                    let shared = passing.max(sums);
                    if shared <= self.facts.shared {
                        let defines = vec![
                            ("KEYS", keys),
                            ("TILES", tiles),
                            ("GROUPS", groups),
                            ("SPLIT", split),
                        ];
                        return Some(Cut { defines, held, warps: groups * split, shared });
                    }
                }
            }
        }
        None
    }

    /// The gradients of the queries, or of keys and values: the largest block that fits, as near to a square as
    /// possible.
    fn backward(&self) -> Option<Cut> {
        let row = self.row();
        let by_key = self.pass == Pass::ByKey;
        let (rows, others) =
            if by_key { (self.keys, self.samples) } else { (self.samples, self.counted_keys) };
        let most = if row.bytes() <= 272 { 128 } else { 64 };
        let most_held = self.rows_of_block(rows, most);
        let most_passing = power_of_two(others).max(16);
        let mut sizes: Vec<(i64, i64)> = [128, 64, 32, 16]
            .into_iter()
            .flat_map(|held| [64, 32, 16].map(|passing| (held, passing)))
            .filter(|&(held, passing)| held <= most_held && passing <= most_passing)
            .collect();
        sizes.sort_by_key(|(held, passing)| (-held * passing, (held - passing).abs()));
        sizes.into_iter().find_map(|(held, passing)| {
            let (queries, keys) = if by_key { (passing, held) } else { (held, passing) };
            let most_warps = if held == most { 8 } else { 4 };
            let Pieces { warps, query_warps, slices } =
                pieces(queries, keys, held, row.wide, most_warps);
            let accumulators = steps_of(slices, row.wide / 16)
                * (held / 16 / (warps / slices))
                * if by_key { 16 } else { 8 };
            let across = keys + row.per * if by_key && row.per == 4 { 2 } else { 1 };
            let buffers = if others > passing { 2 } else { 1 };
            let shared = 2 * (held + passing * buffers) * row.bytes()
                + queries * across * row.size * if by_key { 2 } else { 1 }
                + if by_key { 0 } else { warps / query_warps * held * 4 };
            let defines = vec![
                ("HELD", held),
                ("PASSING", passing),
                ("WARPS", warps),
                ("QUERY_WARPS", query_warps),
                ("SLICES", slices),
            ];
            let fits = shared <= self.facts.shared && accumulators <= ACCUMULATORS;
            fits.then_some(Cut { defines, held, warps, shared })
        })
    }
}

/// Into how many warps the scores and the gradient of a block are divided.
#[derive(Clone, Copy)]
struct Pieces {
    warps: i64,
    /// Of queries; the others divide the keys.
    query_warps: i64,
    /// Of the gradient's columns.
    slices: i64,
}

/// As many warps as possible, each with pieces as near to a square as possible.
fn pieces(queries: i64, keys: i64, held: i64, wide: i64, most: i64) -> Pieces {
    let divides = |count: i64, rows: i64| rows / 16 % count == 0;
    let mut best = (Pieces { warps: 1, query_warps: 1, slices: 1 }, f64::INFINITY);
    for slices in [1, 2, 4] {
        let tiles = steps_of(slices, wide / 16); // columns of the widest slice, in tiles
        if tiles * (slices - 1) >= wide / 16 {
            continue;
        }
        for warps in (slices..=most).step_by(slices as usize) {
            for query_warps in 1..=warps {
                if !divides(warps / slices, held)
                    || warps % query_warps != 0
                    || !divides(query_warps, queries)
                    || !divides(warps / query_warps, keys)
                {
                    continue;
                }
                let columns = (tiles * 16) as f64;
                let key_warps = (warps / query_warps) as f64;
                let scores = queries as f64 / query_warps as f64 / (keys as f64 / key_warps);
                let gradient = held as f64 / (warps / slices) as f64 / columns;
                let off = |ratio: f64| ratio.max(1.0 / ratio);
                let off_square =
                    off(scores) + off(gradient) + columns * slices as f64 / wide as f64;
                let (known, known_off) = best;
                if warps > known.warps || (warps == known.warps && off_square < known_off) {
                    best = (Pieces { warps, query_warps, slices }, off_square);
                }
            }
        }
    }
    best.0
}
