//! Tensors as rows of numbers. What libtorch's types do not guarantee is checked here: dtype, device, strides.

use tch::kind::Element;
use tch::{Device, Kind, TchError, Tensor};

use super::block::Block;
use super::chunk::advise_huge_pages;
use super::matrix::{Matrix, MatrixMut, RowOrder};
use super::pool;
use super::simd::Real;
use crate::call::Dims;

/// From this many bytes on, memory is fresh or used again; the C library caches smaller pieces itself.
const OF_POOL: usize = 1 << 20;

/// `[.., C]` with adjacent channels; the tensor itself, if they are adjacent already. The stride of an axis of size 1
/// means nothing, not even in what torch calls contiguous.
pub fn readable(tensor: &Tensor) -> Result<Tensor, TchError> {
    let (size, stride) = (tensor.size(), tensor.stride());
    if size.last() == Some(&1) || stride.last() == Some(&1) {
        aligned(tensor.shallow_clone())
    } else {
        contiguous(tensor)
    }
}

/// The same without gaps.
pub fn contiguous(tensor: &Tensor) -> Result<Tensor, TchError> {
    aligned(with_what_is_kept(|| tensor.f_contiguous())?)
}

/// The same at an address that is aligned for its dtype: `torch.frombuffer` takes any offset.
fn aligned(tensor: Tensor) -> Result<Tensor, TchError> {
    if (tensor.data_ptr() as usize).is_multiple_of(tensor.f_kind()?.elt_size_in_bytes()) {
        return Ok(tensor);
    }
    let mut copy =
        with_what_is_kept(|| Tensor::f_empty(tensor.size(), (tensor.f_kind()?, Device::Cpu)))?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

/// An uninitialised contiguous tensor in memory of torch's: an output. [`super::pool`] says why.
pub fn empty<T: Real + Element>(shape: &[i64]) -> Result<Tensor, TchError> {
    let mut tensor = with_what_is_kept(|| Tensor::f_empty(shape, (T::KIND, Device::Cpu)))?;
    advise_huge_pages(elements_mut::<T>(&mut tensor));
    Ok(tensor)
}

/// The same in memory of the pool if it is large: a gradient.
pub fn empty_of_pool<T: Real + Element>(shape: &[i64]) -> Result<Tensor, TchError> {
    let sizes: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
    let len = sizes.iter().fold(1, |len: usize, &size| len.saturating_mul(size));
    if len.saturating_mul(size_of::<T>()) < OF_POOL {
        return empty::<T>(shape);
    }
    Block::<T>::new(len).into_tensor(&sizes)
}

/// Frees the memory of the pool and tries again if it fails, as it may for lack of memory.
fn with_what_is_kept<R>(work: impl Fn() -> Result<R, TchError>) -> Result<R, TchError> {
    work().or_else(|_| {
        pool::empty();
        work()
    })
}

/// The elements of a contiguous tensor.
pub fn elements<T: Real + Element>(tensor: &Tensor) -> &[T] {
    check::<T>(tensor);
    assert!(tensor.is_contiguous());
    // SAFETY: a contiguous CPU tensor of this dtype holds `numel` elements from its data pointer on, aligned and for as
    // long as the tensor lives; nobody writes them, as the op's schema says that it changes no argument.
    unsafe { slice(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The elements of a contiguous tensor that nobody else has yet.
pub fn elements_mut<T: Real + Element>(tensor: &mut Tensor) -> &mut [T] {
    check::<T>(tensor);
    assert!(tensor.is_contiguous());
    let len = tensor.numel();
    if len == 0 {
        return &mut [];
    }
    // SAFETY: as above; the tensor was made by `empty` and is borrowed mutably. Its numbers may be of any value, and
    // the kernels write each before they read it.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), len) }
}

/// The tokens of a [`readable`] tensor `[N, L, C]` or `[L, N, C]`, position after position; of keys and values as of x.
pub fn tokens<'a, T: Real + Element>(tensor: &'a Tensor, dims: &Dims) -> Matrix<'a, T> {
    check::<T>(tensor);
    let strides = tensor.stride();
    let (order, [rows, columns]) = token_order(tensor, tensor.size()[sample_axis(dims)], dims);
    let last = |axis: usize| (tensor.size()[axis] - 1) * strides[axis];
    let len = (last(0) + last(1)) as usize + columns;
    assert!(columns == 1 || strides[2] == 1);
    // SAFETY: the farthest element of a strided tensor is the last of each axis; strides of torch are not negative.
    let elements = unsafe { slice(tensor.data_ptr().cast(), len) };
    Matrix::ordered(elements, rows, columns, order)
}

/// The tokens of a contiguous tensor that nobody else has yet, position after position.
pub fn tokens_mut<'a, T: Real + Element>(tensor: &'a mut Tensor, dims: &Dims) -> MatrixMut<'a, T> {
    first_tokens_mut(tensor, tensor.size()[sample_axis(dims)], dims)
}

/// Those of the first samples alone.
pub fn first_tokens_mut<'a, T: Real + Element>(
    tensor: &'a mut Tensor,
    samples: i64,
    dims: &Dims,
) -> MatrixMut<'a, T> {
    let (order, [rows, columns]) = token_order(tensor, samples, dims);
    MatrixMut::ordered(elements_mut(tensor), rows, columns, order)
}

fn token_order(tensor: &Tensor, samples: i64, dims: &Dims) -> (RowOrder, [usize; 2]) {
    let (strides, sizes) = (tensor.stride(), tensor.size());
    let (sample, position) = (sample_axis(dims), 1 - sample_axis(dims));
    let period = samples as usize;
    let order =
        RowOrder { period, outer: strides[position] as usize, inner: strides[sample] as usize };
    (order, [period * sizes[position] as usize, sizes[2] as usize])
}

fn sample_axis(dims: &Dims) -> usize {
    usize::from(dims.batch_first)
}

fn check<T: Element>(tensor: &Tensor) {
    assert_eq!(tensor.f_kind().unwrap_or(Kind::Bool), T::KIND);
    assert_eq!(tensor.device(), Device::Cpu);
}

/// # Safety
/// As for `std::slice::from_raw_parts`, but nothing is asked of the pointer of an empty slice.
unsafe fn slice<'a, T>(start: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(start, len) }
}
