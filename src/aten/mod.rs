//! The layer through libtorch: any device, any dtype. Also what the fused kernels are checked against.

mod activation;
pub mod attention;
mod branches;
mod dropout;
mod linear;
mod norm;
mod random;
pub mod steps;

type Result<T> = std::result::Result<T, tch::TchError>;
