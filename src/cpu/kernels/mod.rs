//! The loops over numbers; what `run` is given is compiled for every instruction set. Forward and backward of a piece
//! stand together.

pub mod activation;
pub mod attention;
pub mod dropout;
pub mod few_rows;
pub mod fma_chains;
pub mod norm;
pub mod product;
pub mod reduce;
pub mod residual;
pub mod right;
mod softmax;
#[cfg(test)]
mod testing;
