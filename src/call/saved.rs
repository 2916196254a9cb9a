//! What the forward leaves for the backward.

use tch::Tensor;

/// Activations and row statistics; no dropout mask and no attention probability is among them.
///
/// Token tensors have the leading sizes of `x`, in its own order. Statistics are float32, float64 for
/// float64 input. The Python side mirrors these shapes for torch's fake tensors.
pub struct Saved {
    /// `[.., 3C]`: query, key and value.
    pub qkv: Tensor,
    /// `[L, H, N]`: log-sum-exp of the scores of each query.
    pub logsumexp: Tensor,
    /// `[.., C]`: the heads' outputs side by side, before the output projection.
    pub attended: Tensor,
    /// `[.., C]`: x plus the attention branch.
    pub residual1: Tensor,
    /// `[.., F]`: ReLU: its output after dropout, GELU: its input.
    pub hidden: Tensor,
    /// `[.., C]`: the sum that the last norm of the post-norm layer normalises; empty for pre-norm.
    pub residual2: Tensor,
    /// `[..]` each: mean and reciprocal standard deviation of the input of norm1 and of norm2.
    pub mean1: Tensor,
    pub rstd1: Tensor,
    pub mean2: Tensor,
    pub rstd2: Tensor,
}

impl Saved {
    pub const COUNT: usize = 10;

    /// In the order of the op's schema.
    pub fn into_tensors(self) -> [Tensor; Self::COUNT] {
        [
            self.qkv,
            self.logsumexp,
            self.attended,
            self.residual1,
            self.hidden,
            self.residual2,
            self.mean1,
            self.rstd1,
            self.mean2,
            self.rstd2,
        ]
    }

    pub fn from_tensors(tensors: [Tensor; Self::COUNT]) -> Self {
        let [qkv, logsumexp, attended, residual1, hidden, residual2, mean1, rstd1, mean2, rstd2] =
            tensors;
        Saved { qkv, logsumexp, attended, residual1, hidden, residual2, mean1, rstd1, mean2, rstd2 }
    }
}
