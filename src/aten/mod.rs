//! The layer through libtorch: any device, any dtype. Also what the fused kernels are checked against.

mod activation;
pub mod attention;
mod branches;
mod dropout;
pub mod encoder_layer;
mod linear;
mod norm;
mod random;

type Result<T> = std::result::Result<T, tch::TchError>;
