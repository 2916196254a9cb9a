//! The order of the layer's steps, post-norm and pre-norm, forward and backward (Xiong et al., 2020, fig. 1): kernels
//! between libtorch's products. All rows lie in the order of those of x; nothing is transposed.

use tch::Tensor;

use super::activation;
use super::attention::{self, Attended, Projections};
use super::call::{aligned, CudaCall};
use super::norm::{self, Branch, BranchGrad, Seen, Wanted};
use super::totals::{self, Totals};
use super::Result;
use crate::call::random::Site;
use crate::call::{
    Activation, Dims, Grads, Input, Linear, Norm, Piece, Saved, SavedTensors, SAVED,
};

/// `[N, L, C]` to `[N, L, C]`, or the same with `[L, N, C]`; attention in TF32 if that is asked for.
pub fn forward(input: &Input, dims: &Dims, tf32: bool) -> Result<(Tensor, SavedTensors)> {
    let call = CudaCall::new(input, dims, tf32)?;
    let x = call.to_rows(&input.x)?;
    let (y, made) =
        if input.config.norm_first { pre_norm(&call, &x)? } else { post_norm(&call, &x)? };
    Ok((as_shape(&y, &input.x.size())?, made.keep(&call)?))
}

/// A new tensor's memory in another shape, and no view of it: autograd does not let views be changed in place.
fn as_shape(tensor: &Tensor, shape: &[i64]) -> Result<Tensor> {
    if tensor.size() == shape {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_internal_unsafe_view(shape)?)
}

/// What a forward has made that a backward may need; undefined where it made none.
struct Made {
    qkv: Tensor,
    attended: Attended,
    residual1: Tensor,
    /// For ReLU its output, for GELU its input.
    hidden: Tensor,
    residual2: Tensor,
    mean1: Tensor,
    rstd1: Tensor,
    mean2: Tensor,
    rstd2: Tensor,
}

impl Made {
    /// In the shapes of the table, but in the order of the rows of x.
    fn keep(self, call: &CudaCall) -> Result<SavedTensors> {
        let Self { qkv, attended, residual1, hidden, residual2, mean1, rstd1, mean2, rstd2 } = self;
        let made = Saved {
            qkv,
            logsumexp: attended.logsumexp,
            attended: attended.rows,
            residual1,
            activated: hidden.shallow_clone(),
            residual2,
            mean1,
            rstd1,
            mean2,
            rstd2,
            preactivation: hidden,
        };
        made.zip(Saved::facts()).try_map(|(tensor, fact)| {
            let kept = fact.is_kept(&call.input.config, &call.input.needs, call.dims.positions);
            kept.then(|| as_shape(&tensor, &call.dims.shape(fact.shape))).transpose()
        })
    }
}

/// Whether a tensor of the table is kept, by its name.
fn is_kept(call: &CudaCall, name: &str) -> bool {
    let Input { config, needs, .. } = call.input;
    SAVED.iter().any(|fact| fact.name == name && fact.is_kept(config, needs, call.dims.positions))
}

/// `norm1(x + attention(x))`, then `norm2(.. + feedforward(..))`.
fn post_norm(call: &CudaCall, x: &Tensor) -> Result<(Tensor, Made)> {
    let (params, config) = (&call.params, &call.input.config);
    let [eps1, eps2] = config.layer_norm_eps;
    let (qkv, attended, branch) = attend(call, &narrow(call, x)?)?;
    let wanted = Wanted {
        residual: is_kept(call, "residual1"),
        normed: true,
        narrow: call.is_mixed(),
        statistics: is_kept(call, "mean1"),
    };
    let branch = branch1(call, &branch);
    let norm1 = norm::forward(call, x, Some(branch), Some((&params.norm1, eps1)), wanted)?;
    let normed = if call.is_mixed() { &norm1.narrow } else { &norm1.y };
    let (hidden, branch) = feed_forward(call, normed)?;
    let wanted = Wanted {
        residual: is_kept(call, "residual2"),
        normed: true,
        narrow: false,
        statistics: is_kept(call, "mean2"),
    };
    let branch = branch2(call, &branch);
    let norm2 = norm::forward(call, &norm1.y, Some(branch), Some((&params.norm2, eps2)), wanted)?;
    let made = Made {
        qkv,
        attended,
        residual1: norm1.residual,
        hidden,
        residual2: norm2.residual,
        mean1: norm1.mean,
        rstd1: norm1.rstd,
        mean2: norm2.mean,
        rstd2: norm2.rstd,
    };
    Ok((norm2.y, made))
}

/// `x + attention(norm1(x))`, then `.. + feedforward(norm2(..))`.
fn pre_norm(call: &CudaCall, x: &Tensor) -> Result<(Tensor, Made)> {
    let (params, config) = (&call.params, &call.input.config);
    let [eps1, eps2] = config.layer_norm_eps;
    let (normed, narrow) = (!call.is_mixed(), call.is_mixed());
    let statistics = is_kept(call, "mean1");
    let wanted = Wanted { residual: false, normed, narrow, statistics };
    let norm1 = norm::forward(call, x, None, Some((&params.norm1, eps1)), wanted)?;
    let (qkv, attended, branch) = attend(call, if narrow { &norm1.narrow } else { &norm1.y })?;
    let statistics = is_kept(call, "mean2");
    let wanted = Wanted { residual: true, normed, narrow, statistics };
    let branch = branch1(call, &branch);
    let norm2 = norm::forward(call, x, Some(branch), Some((&params.norm2, eps2)), wanted)?;
    let (hidden, branch) = feed_forward(call, if narrow { &norm2.narrow } else { &norm2.y })?;
    let wanted = Wanted { residual: true, normed: false, narrow: false, statistics: false };
    let branch = branch2(call, &branch);
    let sum = norm::forward(call, &norm2.residual, Some(branch), None, wanted)?;
    let made = Made {
        qkv,
        attended,
        residual1: norm2.residual,
        hidden,
        residual2: Tensor::new(),
        mean1: norm1.mean,
        rstd1: norm1.rstd,
        mean2: norm2.mean,
        rstd2: norm2.rstd,
    };
    Ok((sum.residual, made))
}

fn branch1<'a>(call: &'a CudaCall, rows: &'a Tensor) -> Branch<'a> {
    let bias = call.params.out_proj.bias.as_ref();
    Branch { rows, bias, site: Site::Residual1, p: call.input.config.dropout.residual1 }
}

fn branch2<'a>(call: &'a CudaCall, rows: &'a Tensor) -> Branch<'a> {
    let bias = call.params.linear2.bias.as_ref();
    Branch { rows, bias, site: Site::Residual2, p: call.input.config.dropout.residual2 }
}

/// Rows in the dtype of the linears.
fn narrow(call: &CudaCall, rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_to_kind(call.kinds.linears)?)
}

/// The projections, the heads' outputs, and their projection without its bias.
fn attend(call: &CudaCall, x: &Tensor) -> Result<(Tensor, Attended, Tensor)> {
    let params = &call.params;
    let qkv = linear(x, &params.in_proj)?;
    let keys_values = keys_values(call)?;
    let of = Projections { qkv: &qkv, keys_values: keys_values.as_ref() };
    let attended = attention::forward(call, of)?;
    let branch = product(&attended.rows, &params.out_proj)?;
    Ok((qkv, attended, branch))
}

fn keys_values(call: &CudaCall) -> Result<Option<Tensor>> {
    call.input.keys_values.as_ref().map(aligned).transpose()
}

/// What the activation leaves, and the output of linear2 without its bias.
fn feed_forward(call: &CudaCall, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let params = &call.params;
    let z = linear(x, &params.linear1)?;
    let activated = activation::forward(call, &z)?;
    let branch = product(&activated, &params.linear2)?;
    Ok((z, branch)) // ReLU has written over z
}

/// `x Wᵀ + b`
fn linear(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    Ok(x.f_linear(&linear.weight, linear.bias.as_ref())?)
}

/// `x Wᵀ`
fn product(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    Ok(x.f_mm(&linear.weight.f_transpose(0, 1)?)?)
}

/// The gradients for `grad_y`, of the shape of `x`.
pub fn backward(
    grad_y: &Tensor,
    input: &Input,
    saved: SavedTensors,
    dims: &Dims,
    tf32: bool,
) -> Result<Grads> {
    let call = CudaCall::new(input, dims, tf32)?;
    let (x, grad_y) = (call.to_rows(&input.x)?, call.to_rows(grad_y)?);
    let kept = Kept::new(saved, &call)?;
    let totals = Totals::new(&call)?;
    let mut backward = Backward { call: &call, kept, totals, grads: Grads::none() };
    let grad_x = if input.config.norm_first {
        backward.pre_norm(&grad_y, &x)?
    } else {
        backward.post_norm(&grad_y, &x)?
    };
    let Backward { totals, mut grads, .. } = backward;
    totals.finish(&call, &mut grads)?;
    if let (Some(grad_x), true) = (grad_x, input.needs.x) {
        grads.x = Some(as_shape(&grad_x, &input.x.size())?);
    }
    Ok(grads)
}

/// What the forward saved; undefined where nothing needs it.
struct Kept {
    qkv: Tensor,
    logsumexp: Tensor,
    /// `[M, C]`
    attended: Option<Tensor>,
    residual1: Tensor,
    /// `[M, F]`
    hidden: Tensor,
    residual2: Tensor,
    mean1: Tensor,
    rstd1: Tensor,
    mean2: Tensor,
    rstd2: Tensor,
}

impl Kept {
    fn new(saved: SavedTensors, call: &CudaCall) -> Result<Self> {
        let or_undefined = |tensor: Option<Tensor>| {
            tensor.map_or_else(|| Ok(Tensor::new()), |tensor| aligned(&tensor))
        };
        let rows = |tensor: &Tensor| call.to_rows(tensor);
        let hidden = match call.input.config.activation {
            Activation::Relu => saved.activated,
            Activation::Gelu => saved.preactivation,
        };
        Ok(Self {
            qkv: or_undefined(saved.qkv)?,
            logsumexp: or_undefined(saved.logsumexp)?,
            attended: saved.attended.as_ref().map(rows).transpose()?,
            residual1: or_undefined(saved.residual1)?,
            hidden: hidden.as_ref().map_or_else(|| Ok(Tensor::new()), rows)?,
            residual2: or_undefined(saved.residual2)?,
            mean1: or_undefined(saved.mean1)?,
            rstd1: or_undefined(saved.rstd1)?,
            mean2: or_undefined(saved.mean2)?,
            rstd2: or_undefined(saved.rstd2)?,
        })
    }
}

/// The state of a backward.
struct Backward<'a> {
    call: &'a CudaCall<'a>,
    kept: Kept,
    totals: Totals,
    grads: Grads,
}

impl Backward<'_> {
    /// Each sum passes its gradient to both of its terms. None where no further gradient is needed.
    fn post_norm(&mut self, grad_y: &Tensor, x: &Tensor) -> Result<Option<Tensor>> {
        let (call, needs) = (self.call, &self.call.input.needs);
        let branch = needs.pass(Piece::Norm2).then(|| branch2_grad(call));
        let norm2 = norm::backward(
            call,
            grad_y,
            None,
            Some(self.seen2(&self.kept.residual2)),
            branch,
            false,
            &self.totals,
        )?;
        if !needs.pass(Piece::Norm2) {
            return Ok(None);
        }
        let Some(grad_z) = self.linear2(&norm2.branch)? else { return Ok(None) };
        if !needs.pass(Piece::Linear1) {
            self.linear1_alone(&grad_z)?;
            return Ok(None);
        }
        let grad_normed = add_product(norm2.residual, &grad_z, &call.params.linear1)?;
        let branch = needs.pass(Piece::Norm1).then(|| branch1_grad(call));
        let want_normed = needs.params.linear1.weight;
        let norm1 = norm::backward(
            call,
            &grad_normed,
            None,
            Some(self.seen1(&self.kept.residual1)),
            branch,
            want_normed,
            &self.totals,
        )?;
        self.linear1_weight(&grad_z, &norm1.normed)?;
        drop((grad_z, grad_normed, norm1.normed));
        if !needs.pass(Piece::Norm1) {
            return Ok(None);
        }
        let Some(grad_qkv) = self.attention(&norm1.branch)? else { return Ok(None) };
        self.in_proj_bias(&grad_qkv)?;
        self.in_proj_weight(&grad_qkv, x)?;
        let pass = needs.pass(Piece::InProj);
        pass.then(|| add_product(norm1.residual, &grad_qkv, &call.params.in_proj)).transpose()
    }

    /// Each sum passes its gradient to both of its terms. None where no further gradient is needed.
    fn pre_norm(&mut self, grad_y: &Tensor, x: &Tensor) -> Result<Option<Tensor>> {
        let (call, needs) = (self.call, &self.call.input.needs);
        let params = &call.params;
        let sum = norm::backward(
            call,
            grad_y,
            None,
            None,
            Some(branch2_grad(call)),
            false,
            &self.totals,
        )?;
        let Some(grad_z) = self.linear2(&sum.branch)? else { return Ok(None) };
        if !needs.pass(Piece::Linear1) {
            self.linear1_alone(&grad_z)?;
            return Ok(None);
        }
        let grad_normed = grad_z.f_mm(&params.linear1.weight)?;
        let branch = needs.pass(Piece::Norm2).then(|| branch1_grad(call));
        let want_normed = needs.params.linear1.weight;
        let norm2 = norm::backward(
            call,
            &grad_normed,
            Some(grad_y),
            Some(self.seen2(&self.kept.residual1)),
            branch,
            want_normed,
            &self.totals,
        )?;
        self.linear1_weight(&grad_z, &norm2.normed)?;
        drop((grad_z, grad_normed, norm2.normed));
        if !needs.pass(Piece::Norm2) {
            return Ok(None);
        }
        let Some(grad_qkv) = self.attention(&norm2.branch)? else { return Ok(None) };
        self.in_proj_bias(&grad_qkv)?;
        if !needs.pass(Piece::InProj) {
            if needs.params.in_proj.weight {
                let normed = self.normed(x, &params.norm1, call.input.config.layer_norm_eps[0])?;
                self.in_proj_weight(&grad_qkv, &normed)?;
            }
            return Ok(None);
        }
        let grad_normed = grad_qkv.f_mm(&params.in_proj.weight)?;
        let want_normed = needs.params.in_proj.weight;
        let norm1 = norm::backward(
            call,
            &grad_normed,
            Some(&norm2.residual),
            Some(self.seen1(x)),
            None,
            want_normed,
            &self.totals,
        )?;
        self.in_proj_weight(&grad_qkv, &norm1.normed)?;
        Ok(Some(norm1.residual))
    }
}

impl Backward<'_> {
    fn seen1<'a>(&'a self, residual: &'a Tensor) -> Seen<'a> {
        let norm = &self.call.params.norm1;
        Seen {
            norm,
            residual,
            mean: &self.kept.mean1,
            rstd: &self.kept.rstd1,
            index: totals::NORM1,
        }
    }

    fn seen2<'a>(&'a self, residual: &'a Tensor) -> Seen<'a> {
        let norm = &self.call.params.norm2;
        Seen {
            norm,
            residual,
            mean: &self.kept.mean2,
            rstd: &self.kept.rstd2,
            index: totals::NORM2,
        }
    }

    /// The gradient of linear1's output from that of linear2's output, if one is needed from there on.
    fn linear2(&mut self, grad: &Tensor) -> Result<Option<Tensor>> {
        let (call, hidden) = (self.call, &self.kept.hidden);
        let (linear2, needs) = (&call.params.linear2, &call.input.needs);
        let want_activated = needs.params.linear2.weight;
        if !needs.pass(Piece::Linear2) {
            if want_activated {
                let relu = call.input.config.activation == Activation::Relu;
                let activated =
                    if relu { hidden.shallow_clone() } else { activation::forward(call, hidden)? };
                self.grads.params.linear2.weight = Some(weight_grad(grad, &activated)?);
            }
            return Ok(None);
        }
        let (grad_z, activated) = activation::backward(
            call,
            grad.f_mm(&linear2.weight)?,
            hidden,
            want_activated,
            totals::LINEAR1_BIAS,
            &self.totals,
        )?;
        if let Some(activated) = activated {
            self.grads.params.linear2.weight = Some(weight_grad(grad, &activated)?);
        }
        Ok(Some(grad_z))
    }

    /// The gradient of linear1's weight alone, where the backward ends.
    fn linear1_alone(&mut self, grad_z: &Tensor) -> Result<()> {
        let params = &self.call.params;
        let Input { config, needs, .. } = self.call.input;
        if needs.params.linear1.weight {
            let [eps1, eps2] = config.layer_norm_eps;
            let (norm, eps) =
                if config.norm_first { (&params.norm2, eps2) } else { (&params.norm1, eps1) };
            let normed = self.normed(&self.kept.residual1, norm, eps)?;
            self.linear1_weight(grad_z, &normed)?;
        }
        Ok(())
    }

    fn linear1_weight(&mut self, grad_z: &Tensor, normed: &Tensor) -> Result<()> {
        if self.call.input.needs.params.linear1.weight {
            self.grads.params.linear1.weight = Some(weight_grad(grad_z, normed)?);
        }
        Ok(())
    }

    /// The gradient of `in_proj`'s output from that of `out_proj`'s output, if one is needed from there on.
    fn attention(&mut self, grad: &Tensor) -> Result<Option<Tensor>> {
        let (call, kept) = (self.call, &self.kept);
        let (out_proj, needs) = (&call.params.out_proj, &call.input.needs);
        let keys_values = keys_values(call)?;
        let of = Projections { qkv: &kept.qkv, keys_values: keys_values.as_ref() };
        let want_attended = needs.params.out_proj.weight;
        if !needs.pass(Piece::OutProj) {
            if want_attended {
                let attended = match &kept.attended {
                    Some(attended) => attended.shallow_clone(),
                    None => attention::forward(call, of)?.rows,
                };
                self.grads.params.out_proj.weight = Some(weight_grad(grad, &attended)?);
            }
            return Ok(None);
        }
        let grad_attended = grad.f_mm(&out_proj.weight)?;
        let attended = kept.attended.as_ref();
        let grads = attention::backward(
            call,
            &grad_attended,
            of,
            &kept.logsumexp,
            attended,
            want_attended,
        )?;
        if want_attended {
            let attended = attended.or(grads.attended.as_ref());
            self.grads.params.out_proj.weight =
                attended.map(|attended| weight_grad(grad, attended)).transpose()?;
        }
        if needs.keys_values {
            self.grads.keys_values = grads.keys_values;
        }
        Ok(Some(grads.qkv))
    }

    fn in_proj_bias(&self, grad_qkv: &Tensor) -> Result<()> {
        self.totals.add(self.call, grad_qkv, totals::IN_PROJ_BIAS)
    }

    fn in_proj_weight(&mut self, grad_qkv: &Tensor, x: &Tensor) -> Result<()> {
        if self.call.input.needs.params.in_proj.weight {
            let x = narrow(self.call, x)?;
            self.grads.params.in_proj.weight = Some(weight_grad(grad_qkv, &x)?);
        }
        Ok(())
    }

    /// A norm's output, recomputed, in the dtype of the linears.
    fn normed(&self, residual: &Tensor, norm: &Norm, eps: f64) -> Result<Tensor> {
        let (normed, narrow) = (!self.call.is_mixed(), self.call.is_mixed());
        let wanted = Wanted { residual: false, normed, narrow, statistics: false };
        let made = norm::forward(self.call, residual, None, Some((norm, eps)), wanted)?;
        Ok(if narrow { made.narrow } else { made.y })
    }
}

fn branch1_grad(call: &CudaCall) -> BranchGrad {
    let p = call.input.config.dropout.residual1;
    BranchGrad { site: Site::Residual1, p, bias: totals::OUT_PROJ_BIAS }
}

fn branch2_grad(call: &CudaCall) -> BranchGrad {
    let p = call.input.config.dropout.residual2;
    BranchGrad { site: Site::Residual2, p, bias: totals::LINEAR2_BIAS }
}

/// The gradient of a linear's weight `[out, in]`, from that of its output `[M, out]` and its input `[M, in]`.
fn weight_grad(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(grad.f_transpose(0, 1)?.f_mm(x)?)
}

/// `sum + grad W`, in the memory of the sum.
fn add_product(mut sum: Tensor, grad: &Tensor, linear: &Linear) -> Result<Tensor> {
    if sum.f_kind()? == grad.f_kind()? {
        let _ = sum.f_addmm_(grad, &linear.weight)?;
    } else {
        let _ = sum.f_add_(&grad.f_mm(&linear.weight)?)?;
    }
    Ok(sum)
}
