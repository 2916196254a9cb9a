// Force-included before the C++ of torch-sys, which wraps the oldest torch of the range: what torch has removed since,
// so that it compiles beside a newer one, and what src/cpu/libtorch.rs calls in one that does not have it yet. Each
// piece is asserted to be needed where it is compiled.
#pragma once

#include <torch/torch.h>
#include <torch/version.h>

#if BATCHFORMER_OLDEST_TORCH_MINOR != 9
#error "another oldest torch: take the tch that wraps it, and look through this file"
#endif
#define BATCHFORMER_TORCH_IS_BEFORE(minor) (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < (minor))

// 1. Removed from torch. tch's bindings of it are never called.

namespace batchformer_compat {

// Where torch has a function of this name, lookup by argument finds it, and it fits better.
struct Absent {};
Absent align_tensors(...);
Absent cholesky(...);
Absent cholesky_out(...);
Absent qr(...);
Absent qr_out(...);
#define BATCHFORMER_ASSERT_REMOVED(...) \
  static_assert(std::is_same_v<decltype(__VA_ARGS__), Absent>, "torch has it: " #__VA_ARGS__)

template <class T>
concept HasAlignAs = requires(T tensor) { tensor.align_as(tensor); };

extern at::Tensor a, b;
extern at::TensorList list;

[[noreturn]] inline at::Tensor removed() {
  TORCH_CHECK(false, "removed from torch");
}

} // namespace batchformer_compat

#if !BATCHFORMER_TORCH_IS_BEFORE(13)
namespace batchformer_compat {
static_assert(!HasAlignAs<at::Tensor>, "torch has it: Tensor::align_as");
BATCHFORMER_ASSERT_REMOVED(align_tensors(list));
} // namespace batchformer_compat

#define align_as(other) alias()
namespace torch {
inline std::vector<Tensor> align_tensors(TensorList) { batchformer_compat::removed(); }
} // namespace torch
#endif

#if !BATCHFORMER_TORCH_IS_BEFORE(14)
namespace batchformer_compat {
BATCHFORMER_ASSERT_REMOVED(cholesky(a, true));
BATCHFORMER_ASSERT_REMOVED(cholesky_out(a, b, true));
BATCHFORMER_ASSERT_REMOVED(qr(a, true));
BATCHFORMER_ASSERT_REMOVED(qr_out(a, b, a, true));
} // namespace batchformer_compat

namespace torch {
inline Tensor cholesky(const Tensor&, bool) { batchformer_compat::removed(); }
inline Tensor cholesky_out(Tensor&, const Tensor&, bool) { batchformer_compat::removed(); }
inline std::tuple<Tensor, Tensor> qr(const Tensor&, bool) { batchformer_compat::removed(); }
inline std::tuple<Tensor, Tensor> qr_out(Tensor&, Tensor&, const Tensor&, bool) { batchformer_compat::removed(); }
} // namespace torch
#endif

// 2. Functions of torch's stable C interface (torch/csrc/stable/c/shim.h), which came one by one.

#if BATCHFORMER_TORCH_IS_BEFORE(11)
#include <ATen/Parallel.h>
#include <algorithm>
#include <atomic>
#if __has_include(<torch/csrc/stable/c/shim.h>)
#include <torch/csrc/stable/c/shim.h> // what it declares is an error below, for it is not noexcept there
#endif
#define BATCHFORMER_C extern "C" __attribute__((used, visibility("hidden"))) inline

#if BATCHFORMER_TORCH_IS_BEFORE(10)
BATCHFORMER_C int torch_get_num_threads(uint32_t* count) noexcept {
  try {
    *count = static_cast<uint32_t>(at::get_num_threads());
    return 0;
  } catch (...) {
    return 1;
  }
}

// The OpenMP that torch runs on, whichever that is: at::parallel_for is a template, and serial in code compiled without
// OpenMP, which in turn would bring one of its own.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags);

BATCHFORMER_C int torch_parallel_for(
    int64_t begin,
    int64_t end,
    int64_t grain_size,
    void (*function)(int64_t, int64_t, void*),
    void* context) noexcept {
  struct Region {
    int64_t begin, end, chunk;
    void (*function)(int64_t, int64_t, void*);
    void* context;
    std::atomic<int64_t> taken{0};

    static void run(void* region) {
      auto& self = *static_cast<Region*>(region);
      for (;;) {
        const int64_t first = self.begin + self.chunk * self.taken++;
        if (first >= self.end) {
          return;
        }
        self.function(first, std::min(first + self.chunk, self.end), self.context);
      }
    }
  };

  const int64_t threads = at::in_parallel_region() || GOMP_parallel == nullptr ? 1 : at::get_num_threads();
  const int64_t chunk = std::max(grain_size, (end - begin + threads - 1) / threads);
  Region region{begin, end, std::max<int64_t>(chunk, 1), function, context};
  if (threads == 1) {
    Region::run(&region);
  } else {
    GOMP_parallel(Region::run, &region, 0, 0); // 0: as many as torch has set
  }
  return 0;
}
#endif

BATCHFORMER_C int torch_from_blob(
    void* data,
    int64_t ndim,
    const int64_t* sizes,
    const int64_t* strides,
    int64_t storage_offset,
    int32_t dtype,
    int32_t device_type,
    int32_t device_index,
    void** tensor,
    int32_t /* layout: strided */,
    const uint8_t* /* opaque_metadata */,
    int64_t /* opaque_metadata_size */,
    void (*deleter)(void*, void*),
    void* deleter_context) noexcept {
  try {
    const auto options = at::TensorOptions()
                             .dtype(static_cast<at::ScalarType>(dtype))
                             .device(static_cast<at::DeviceType>(device_type), static_cast<at::DeviceIndex>(device_index));
    at::Tensor blob = at::for_blob(data, at::IntArrayRef(sizes, ndim))
                          .strides(at::IntArrayRef(strides, ndim))
                          .storage_offset(storage_offset)
                          .deleter([=](void* memory) { deleter(memory, deleter_context); })
                          .options(options)
                          .make_tensor();
    *tensor = new at::Tensor(std::move(blob));
    return 0;
  } catch (...) {
    return 1;
  }
}
#undef BATCHFORMER_C
#endif
