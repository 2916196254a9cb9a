//! The layer through libtorch: any device, any dtype. Also what the fused kernels are checked against.

mod activation;
pub mod attention;
mod branches;
mod dropout;
mod linear;
mod norm;
mod random;
pub mod steps;

pub use random::words as random_words;

type Result<T> = std::result::Result<T, tch::TchError>;

/// The gradients of a weight and its bias that are needed.
type AffineGrads = crate::call::Affine<Option<tch::Tensor>, Option<tch::Tensor>>;

/// `[N, L, ..]` or `[L, N, ..]` from the order of the call to `[L, N, ..]`, and back.
fn by_position(tokens: &tch::Tensor, batch_first: bool) -> Result<tch::Tensor> {
    if batch_first {
        Ok(tokens.shallow_clone())
    } else {
        tokens.f_transpose(0, 1)
    }
}
