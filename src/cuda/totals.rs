//! Gradients that are sums over rows: biases and the norms' parameters. Every kernel that computes terms of them writes
//! partial sums, a row of one matrix for each of its blocks, and one kernel at the end adds the rows: no atomics, so
//! the results are deterministic.

use tch::{Kind, Tensor};

use super::call::{element, steps_of, wide, CudaCall};
use super::kernel::{Kernel, Source};
use super::launch::{launch, Arg};
use super::Result;
use crate::call::{Grads, Params, PARAMETERS};

/// The indices of the parameters in their table.
pub const IN_PROJ_BIAS: usize = 1;
pub const OUT_PROJ_BIAS: usize = 3;
pub const LINEAR1_BIAS: usize = 5;
pub const LINEAR2_BIAS: usize = 7;
pub const NORM1: usize = 8;
pub const NORM2: usize = 10;

/// What is summed here, in the order of the columns: biases of linears, then norms.
const SUMMED: [usize; 8] =
    [IN_PROJ_BIAS, OUT_PROJ_BIAS, LINEAR1_BIAS, LINEAR2_BIAS, NORM1, NORM1 + 1, NORM2, NORM2 + 1];
/// How many of them have the dtype of the linears.
const OF_LINEARS: usize = 4;

pub struct Totals {
    /// Where the columns of each of [`SUMMED`] end; it begins where the one before it ends.
    ends: [i32; SUMMED.len()],
    blocks: u32,
    partials: Option<Tensor>,
}

impl Totals {
    pub fn new(call: &CudaCall) -> Result<Self> {
        let (dims, needs) = (call.dims, call.input.needs.params.into_array());
        let mut ends = [0; SUMMED.len()];
        let mut columns = 0;
        for (end, &index) in ends.iter_mut().zip(&SUMMED) {
            if needs[index] {
                columns += dims.shape(PARAMETERS[index].shape)[0] as i32;
            }
            *end = columns;
        }
        let blocks = blocks(dims.tokens(), call.facts.multiprocessors);
        let shape = [i64::from(blocks), i64::from(columns)];
        let partials = (columns > 0).then(|| call.empty(&shape, Kind::Float)).transpose()?;
        Ok(Self { ends, blocks, partials })
    }

    /// Blocks of rows, as many in each kernel that leaves sums.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    pub fn partials(&self) -> Arg<'_> {
        self.partials.as_ref().map_or(Arg::Null, Arg::Out)
    }

    pub fn stride(&self) -> i32 {
        self.ends[SUMMED.len() - 1]
    }

    /// The first column of a parameter, by its index in the table; -1 if its gradient is not needed.
    pub fn at(&self, index: Option<usize>) -> Arg<'static> {
        let place = index.and_then(|index| SUMMED.iter().position(|&each| each == index));
        let column = place.map_or(-1, |place| {
            let begin = if place == 0 { 0 } else { self.ends[place - 1] };
            if self.ends[place] > begin {
                begin
            } else {
                -1
            }
        });
        Arg::I32(column)
    }

    /// Leaves the partial sums of the rows of a matrix `[M, width]`.
    pub fn add(&self, call: &CudaCall, matrix: &Tensor, index: usize) -> Result<()> {
        let at = self.at(Some(index));
        if matches!(at, Arg::I32(-1)) {
            return Ok(());
        }
        let columns = matrix.size()[1];
        let kind = matrix.f_kind()?;
        let arguments = [
            Arg::In(matrix),
            Arg::I32(call.dims.tokens() as i32),
            Arg::I32(columns as i32),
            self.partials(),
            Arg::I32(self.stride()),
            at,
        ];
        let warps = self.warps(call);
        let grid = [self.blocks, steps_of(wide(kind), columns) as u32, 1];
        let kernel = kernel(call, "column_partials", grid, warps, 4 * warps * wide(kind));
        Ok(launch(call.device, &kernel, &arguments)?)
    }

    /// Adds the rows up.
    pub fn finish(&self, call: &CudaCall, grads: &mut Grads) -> Result<()> {
        let Some(partials) = &self.partials else { return Ok(()) };
        let mut begin = 0;
        let mut sums = Vec::with_capacity(SUMMED.len());
        for (place, &end) in self.ends.iter().enumerate() {
            let kind = if place < OF_LINEARS { call.kinds.linears } else { call.norm_kind };
            let width = i64::from(end - begin);
            sums.push(if width > 0 { Some(call.empty(&[width], kind)?) } else { None });
            begin = end;
        }
        let mut arguments = vec![Arg::In(partials), Arg::I32(self.blocks as i32)];
        arguments.push(Arg::Struct(&self.ends));
        arguments.extend(sums.iter().map(|sum| sum.as_ref().map_or(Arg::Null, Arg::Out)));
        let columns = i64::from(self.stride());
        let warps = i64::from(self.blocks).min(16);
        let grid = [steps_of(32, columns) as u32, 1, 1];
        launch(call.device, &kernel(call, "column_sums", grid, warps, 128 * warps), &arguments)?;

        let mut params = std::mem::replace(&mut grads.params, Grads::none().params).into_array();
        for (&index, sum) in SUMMED.iter().zip(sums) {
            if sum.is_some() {
                params[index] = sum;
            }
        }
        grads.params = Params::from_array(params);
        Ok(())
    }

    /// Of a block of the kernels whose blocks have some rows each.
    pub fn warps(&self, call: &CudaCall) -> i64 {
        steps_of(self.blocks.into(), call.dims.tokens()).min(16)
    }
}

fn kernel(call: &CudaCall, name: &'static str, grid: [u32; 3], warps: i64, shared: i64) -> Kernel {
    let defines = vec![
        ("ELEMENT", element(call.kinds.linears)),
        ("OUT_A", element(call.kinds.linears)),
        ("OUT_B", element(call.norm_kind)),
    ];
    Kernel {
        source: Source::Reduce,
        name,
        defines,
        grid,
        block: (32 * warps) as u32,
        shared: shared as u32,
    }
}

/// Blocks of rows of every kernel that leaves partial sums, two for each multiprocessor at most.
///
/// A block writes three floats a column, as much as the four half-precision rows of a token cost: with 8 rows the sums
/// are a third of the work. Fewer rows only where multiprocessors would be idle, and at least 4.
fn blocks(rows: i64, multiprocessors: i64) -> u32 {
    let few = steps_of(4, rows).min(multiprocessors);
    steps_of(8, rows).max(few).min(2 * multiprocessors).max(1) as u32
}
