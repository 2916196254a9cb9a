//! The parts of libtorch's stable C interface (torch/csrc/stable/c/shim.h) that tch lacks: torch's own threads, and a
//! tensor over memory of the pool.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

use tch::kind::Element;
use tch::{Kind, TchError, Tensor};

extern "C" {
    fn torch_get_num_threads(count: *mut u32) -> c_int;
    fn torch_parallel_for(
        begin: i64,
        end: i64,
        grain_size: i64,
        function: extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> c_int;
    fn torch_from_blob(
        data: *mut c_void,
        ndim: i64,
        sizes: *const i64,
        strides: *const i64,
        storage_offset: i64,
        dtype: i32,
        device_type: i32,
        device_index: i32,
        tensor: *mut *mut c_void,
        layout: i32,
        opaque_metadata: *const u8,
        opaque_metadata_size: i64,
        deleter: extern "C" fn(*mut c_void, *mut c_void),
        deleter_context: *mut c_void,
    ) -> c_int;
    fn aoti_torch_dtype_float32() -> i32;
    fn aoti_torch_dtype_float64() -> i32;
    fn aoti_torch_device_type_cpu() -> i32;
    fn aoti_torch_layout_strided() -> i32;
}

/// What `torch.get_num_threads()` says in this thread, now.
pub fn threads() -> usize {
    let mut count = 1;
    // SAFETY: the function writes one u32.
    let status = unsafe { torch_get_num_threads(&raw mut count) };
    if status == 0 {
        count.max(1) as usize
    } else {
        1
    }
}

/// Runs `work` in each of torch's threads at once, in this one alone if torch would: inside a parallel region, or
/// with one thread. libtorch may grant fewer threads than it has, so the work has to be shared by a queue.
///
/// Tried and dropped: rayon, slower than one thread right after a torch.mm, as OpenMP's threads spin there;
/// `GOMP_parallel`, which is one OpenMP among several.
pub fn in_every_thread(work: &(dyn Fn() + Sync)) {
    struct Context<'a> {
        work: &'a (dyn Fn() + Sync),
        panic: Mutex<Option<Box<dyn Any + Send>>>,
    }

    extern "C" fn call(_begin: i64, _end: i64, context: *mut c_void) {
        // SAFETY: it is the context below, which outlives the call of torch_parallel_for.
        let context = unsafe { &*context.cast::<Context>() };
        // A panic must not unwind into C++. Of several, one is carried on; the others are forgotten, as dropping
        // a payload may panic, too.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(context.work)) {
            let mut first = context.panic.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_none() {
                *first = Some(panic);
            } else {
                std::mem::forget(panic);
            }
        }
    }

    let count = threads();
    if count == 1 {
        return work();
    }
    let context = Context { work, panic: Mutex::new(None) };
    let pointer = (&raw const context).cast_mut().cast();
    // SAFETY: torch_parallel_for returns when every call of the function has; the context is Sync.
    let status = unsafe { torch_parallel_for(0, count as i64, 1, call, pointer) };
    if status != 0 {
        work();
    }
    if let Some(panic) = context.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// A contiguous float32 or float64 tensor over `elements`, which lie in `owner`; the owner is dropped with the last reference to it.
///
/// # Safety
/// `elements` points to as many elements as the shape has, nobody else uses them, and they live as long as `owner`.
pub unsafe fn tensor_over<T: Element, O: Send + Sync>(
    elements: *mut T,
    shape: &[usize],
    owner: O,
) -> Result<Tensor, TchError> {
    extern "C" fn drop_owner<O>(_elements: *mut c_void, owner: *mut c_void) {
        // SAFETY: the reference below that is libtorch's, once.
        let owner = unsafe { Arc::from_raw(owner.cast::<O>()) };
        // A panic must not unwind into C++; its payload is forgotten, as dropping it may panic, too.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(owner))) {
            std::mem::forget(panic);
        }
    }

    let sizes: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    let strides: Vec<i64> =
        (0..sizes.len()).map(|axis| sizes[axis + 1..].iter().product::<i64>()).collect();
    // If torch_from_blob fails, it may have dropped the owner or not, so there is a second reference to it.
    let owner = Arc::new(owner);
    let of_libtorch = Arc::into_raw(Arc::clone(&owner)).cast_mut();
    let mut tensor = null_mut();
    // SAFETY: sizes and strides have `ndim` elements and are copied; the caller vouches for the elements.
    let status = unsafe {
        let dtype = match T::KIND {
            Kind::Double => aoti_torch_dtype_float64(),
            _ => aoti_torch_dtype_float32(),
        };
        torch_from_blob(
            elements.cast(),
            sizes.len() as i64,
            sizes.as_ptr(),
            strides.as_ptr(),
            0,
            dtype,
            aoti_torch_device_type_cpu(),
            -1, // the CPU has no index
            &raw mut tensor,
            aoti_torch_layout_strided(),
            null(),
            0,
            drop_owner::<O>,
            of_libtorch.cast(),
        )
    };
    if status != 0 || tensor.is_null() {
        if Arc::strong_count(&owner) > 1 {
            // SAFETY: libtorch has not dropped its reference, and made no tensor that would.
            drop(unsafe { Arc::from_raw(of_libtorch) });
        }
        return Err(TchError::Torch("torch_from_blob failed".to_owned()));
    }
    // SAFETY: both sides mean a new at::Tensor* by it, which the Tensor now owns.
    Ok(unsafe { Tensor::from_ptr(tensor.cast()) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_panic_in_torchs_threads_reaches_the_caller_and_the_next_call_runs() {
        tch::set_num_threads(2);
        let runs = AtomicUsize::new(0);
        for _ in 0..3 {
            let panics = || {
                runs.fetch_add(1, Ordering::Relaxed);
                resume_unwind(Box::new("payload"));
            };
            let caught = catch_unwind(|| in_every_thread(&panics));
            assert_eq!(caught.err().and_then(|it| it.downcast_ref().copied()), Some("payload"));
        }
        assert!(runs.load(Ordering::Relaxed) >= 3);
        in_every_thread(&|| _ = runs.fetch_add(1, Ordering::Relaxed));
        assert!(runs.load(Ordering::Relaxed) >= 4);
    }
}
