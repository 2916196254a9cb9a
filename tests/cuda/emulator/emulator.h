// The dialect of src/cuda/kernels for g++, which reads this file before every source; NVRTC never sees it.
//
// Nothing is included: a build takes a second, and half of that would be headers.
#pragma once
#define EMULATED 1
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
// __global__ and __launch_bounds__ stay what they are until harness.py has read names and bounds from them.

struct Dim3 {
  unsigned x, y, z;
};
extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

// Where a collective stands in the source. Lanes that meet must stand at the same place.
struct Where {
  const char *file;
  int line;
};
#define WHERE Where where = {__builtin_FILE(), __builtin_LINE()}

enum EmulatedType { EMULATED_BF16, EMULATED_F16, EMULATED_TF32 };
enum EmulatedShuffle { SHUFFLE_INDEX, SHUFFLE_XOR, SHUFFLE_DOWN, SHUFFLE_UP };

extern unsigned char emulator_shared[];
void emulator_barrier(Where where);
void emulator_syncwarp(unsigned mask, Where where);
unsigned long long emulator_shuffle(
    unsigned mask, unsigned long long bits, EmulatedShuffle kind, int argument, int width, Where where);
unsigned emulator_ballot(unsigned mask, bool vote, Where where);
void emulator_mma(EmulatedType type, float *d, const unsigned *a, const unsigned *b, Where where);
void emulator_ldmatrix(unsigned *d, const void *row, bool transposed, Where where);
void emulator_copy(void *to, const void *from, bool there, Where where);
void emulator_commit();
void emulator_wait(int groups);

static inline void __syncthreads(WHERE) { emulator_barrier(where); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, WHERE) { emulator_syncwarp(mask, where); }
template <class T>
static inline T emulated_shuffle(unsigned mask, T value, EmulatedShuffle kind, int argument, int width, Where where) {
  unsigned long long bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = emulator_shuffle(mask, bits, kind, argument, width, where);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, WHERE) {
  return emulated_shuffle(mask, value, SHUFFLE_INDEX, lane, width, where);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, WHERE) {
  return emulated_shuffle(mask, value, SHUFFLE_XOR, bits, width, where);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32, WHERE) {
  return emulated_shuffle(mask, value, SHUFFLE_DOWN, (int)step, width, where);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32, WHERE) {
  return emulated_shuffle(mask, value, SHUFFLE_UP, (int)step, width, where);
}
static inline unsigned __ballot_sync(unsigned mask, int vote, WHERE) { return emulator_ballot(mask, vote != 0, where); }
static inline int __any_sync(unsigned mask, int vote, WHERE) { return emulator_ballot(mask, vote != 0, where) != 0; }
static inline int __all_sync(unsigned mask, int vote, WHERE) { return emulator_ballot(mask, vote == 0, where) == 0; }

static inline float __uint_as_float(unsigned bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
static inline unsigned __float_as_uint(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

extern "C" {
float sqrtf(float), expf(float), exp2f(float), logf(float), log2f(float), log1pf(float), erff(float), tanhf(float);
float fabsf(float), fmaxf(float, float), fminf(float, float), fmaf(float, float, float);
float floorf(float), ceilf(float), rintf(float);
}
static inline float rsqrtf(float x) { return (float)(1 / __builtin_sqrt((double)x)); }
static inline float __expf(float x) { return expf(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline bool isnan(float x) { return x != x; }
template <class T>
static inline T __ldg(const T *p) {
  return *p;
}
#define EMULATED_MIN_MAX(TYPE)                                                                               \
  static inline TYPE min(TYPE a, TYPE b) { return b < a ? b : a; }                                           \
  static inline TYPE max(TYPE a, TYPE b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
