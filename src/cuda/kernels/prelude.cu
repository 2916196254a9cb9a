// What every kernel stands on: types, elements and their rounding, the tensor cores, copies, sums, dropout.
//
// No headers: NVRTC needs none, and none has to be found. All inline assembly of the kernels is in this file, and
// each function that has some stands a second time under EMULATED, in plain C++, with the same bits as its result;
// tests/cuda/test_primitives.py compares the two on a device.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// 16 bytes, the widest that one instruction moves.
struct alignas(16) Words4 {
  u32 w[4];
};
struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

// Elements in 16 bytes.
template <class T>
struct Per {
  static const int N = 16 / sizeof(T);
};

#ifndef EMULATED

// The one dynamic array; a static one could not be poisoned by the checker.
extern __shared__ __align__(16) u8 shared_bytes[];
__device__ __forceinline__ u8* shared_memory() { return shared_bytes; }
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ float value(f16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ __forceinline__ u32 pack(bf16, float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ u32 pack(f16, float low, float high) {
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ u32 tf32(float x) {
  u32 rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}
__device__ __forceinline__ float exp2_fast(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

#define MMA(SHAPE, TYPE)                                                                                     \
  asm("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE                                                \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                 \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
__device__ __forceinline__ void mma(bf16, float* d, const u32* a, const u32* b) { MMA("m16n8k16", "bf16"); }
__device__ __forceinline__ void mma(f16, float* d, const u32* a, const u32* b) { MMA("m16n8k16", "f16"); }
__device__ __forceinline__ void mma_tf32(float* d, const u32* a, const u32* b) { MMA("m16n8k8", "tf32"); }

#define LDMATRIX(KIND)                                                                                       \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" KIND ".shared.b16 {%0, %1, %2, %3}, [%4];"                    \
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                              \
               : "r"(shared_address(row))                                                                    \
               : "memory")
__device__ __forceinline__ void ldmatrix4(u32* d, const void* row) { LDMATRIX(""); }
__device__ __forceinline__ void ldmatrix4_trans(u32* d, const void* row) { LDMATRIX(".trans"); }

__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

inline u8* shared_memory() { return emulator_shared; }

inline float value(f16 x) {
  _Float16 half;
  __builtin_memcpy(&half, &x.bits, 2);
  return (float)half;
}
// To the nearest, ties to even. What is no number becomes the one that the device writes.
inline u32 rounded(bf16, float x) {
  u32 bits = __float_as_uint(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 rounded(f16, float x) {
  _Float16 half = (_Float16)x;
  u16 bits;
  __builtin_memcpy(&bits, &half, 2);
  return x != x ? 0x7fff : bits;
}
inline u32 pack(bf16, float low, float high) { return rounded(bf16(), low) | rounded(bf16(), high) << 16; }
inline u32 pack(f16, float low, float high) { return rounded(f16(), low) | rounded(f16(), high) << 16; }
// To the nearest, ties away from zero.
inline u32 tf32(float x) { return x != x ? 0x7fffffff : (__float_as_uint(x) + 0x1000) & ~0x1fffu; }
// The device's own is within 2 units in the last place; both take denormals for zero.
inline float exp2_fast(float x) {
  float power = exp2f(x);
  return power < __uint_as_float(0x00800000) ? 0.f : power;
}

inline void mma(bf16, float* d, const u32* a, const u32* b, WHERE) { emulator_mma(EMULATED_BF16, d, a, b, where); }
inline void mma(f16, float* d, const u32* a, const u32* b, WHERE) { emulator_mma(EMULATED_F16, d, a, b, where); }
inline void mma_tf32(float* d, const u32* a, const u32* b, WHERE) { emulator_mma(EMULATED_TF32, d, a, b, where); }
inline void ldmatrix4(u32* d, const void* row, WHERE) { emulator_ldmatrix(d, row, false, where); }
inline void ldmatrix4_trans(u32* d, const void* row, WHERE) { emulator_ldmatrix(d, row, true, where); }
inline void copy_async(void* to, const void* from, bool there, WHERE) { emulator_copy(to, from, there, where); }
inline void copy_commit() { emulator_commit(); }
template <int N>
inline void copy_wait() {
  emulator_wait(N);
}

#endif

// What they do, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16" and following):
//   mma          d[16 x 8] += a[16 x 16] b[16 x 8]; mma_tf32 the same with 8 in the middle, operands rounded by tf32
//     d          rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2t and 2t + 1
//     a          two elements a word, columns 2t and 2t + 1: rows g, g + 8, then both again at columns + 8
//     a of tf32  one element a word, column t: rows g, g + 8, then both again at columns + 4
//     b          two elements a word, rows 2t and 2t + 1, then rows + 8, of column g; of tf32: rows t and t + 4
//   ldmatrix4    matrix m = 0..3 of 8 rows of 16 bytes, row r at the address that lane 8m + r gives: d[m] = the
//                elements 2t and 2t + 1 of row g; _trans: element g of the rows 2t and 2t + 1
//   copy_async   16 bytes from global to shared memory, or 16 bytes of zeros where not `there`
//   copy_commit  what was copied since the last one is a group; copy_wait<N> waits until N groups are under way

// ---- elements

__device__ __forceinline__ float value(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float value(float x) { return x; }

__device__ __forceinline__ void unpack(float* out, Words4 in, bf16) {
  for (int i = 0; i < 4; i++) {
    out[2 * i] = __uint_as_float(in.w[i] << 16);
    out[2 * i + 1] = __uint_as_float(in.w[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void unpack(float* out, Words4 in, f16) {
  for (int i = 0; i < 4; i++) {
    f16 low, high;
    low.bits = (u16)in.w[i];
    high.bits = (u16)(in.w[i] >> 16);
    out[2 * i] = value(low);
    out[2 * i + 1] = value(high);
  }
}
__device__ __forceinline__ void unpack(float* out, Words4 in, float) {
  for (int i = 0; i < 4; i++) out[i] = __uint_as_float(in.w[i]);
}
template <class H>
__device__ __forceinline__ Words4 packed(const float* in, H) {
  Words4 out;
  for (int i = 0; i < 4; i++) out.w[i] = pack(H(), in[2 * i], in[2 * i + 1]);
  return out;
}
__device__ __forceinline__ Words4 packed(const float* in, float) {
  Words4 out;
  for (int i = 0; i < 4; i++) out.w[i] = __float_as_uint(in[i]);
  return out;
}
// 16 bytes of elements from and to an address that is a multiple of 16.
template <class T>
__device__ __forceinline__ void load(float* out, const T* p) {
  unpack(out, *(const Words4*)p, T());
}
template <class T>
__device__ __forceinline__ void store(T* p, const float* in) {
  *(Words4*)p = packed(in, T());
}

// ---- sums

// The same in every lane, and in the same order every time.
__device__ __forceinline__ float sum_lanes(float x) {
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// ---- dropout, defined by src/call/random.rs: the bits of an element are a function of (seed, site, element)

const u64 GAMMA = 0x9E3779B97F4A7C15ull;

__device__ __forceinline__ u64 mix(u64 state) {
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
  return state ^ (state >> 31);
}
// The seed is read from memory, so that a captured graph draws anew when it is replayed with another.
__device__ __forceinline__ u64 site_state(const i64* seed, u32 site) { return mix(mix((u64)*seed) + site * GAMMA); }
// The bits of elements 4 index .. 4 index + 3, lowest first.
__device__ __forceinline__ u64 word(u64 site, u64 index) { return mix(site + (index + 1) * GAMMA); }
__device__ __forceinline__ u32 bits_of(u64 word, u32 element) { return (u32)(word >> (16 * (element & 3))) & 0xffffu; }

// COUNT consecutive elements (a multiple of 4) from `first` on, times `scale` where they are kept, else 0.
template <int COUNT>
__device__ __forceinline__ void drop(float* x, u64 site, u64 first, u32 threshold, float scale) {
  if ((first & 3) == 0) {
    for (int i = 0; i < COUNT / 4; i++) {
      u64 bits = word(site, (first >> 2) + i);
      for (int e = 0; e < 4; e++) x[4 * i + e] = bits_of(bits, e) >= threshold ? x[4 * i + e] * scale : 0.f;
    }
  } else {
    u64 bits = word(site, first >> 2);
    for (int e = 0; e < COUNT; e++) {
      u64 at = first + e;
      if (e && (at & 3) == 0) bits = word(site, at >> 2);
      x[e] = bits_of(bits, (u32)at) >= threshold ? x[e] * scale : 0.f;
    }
  }
}
