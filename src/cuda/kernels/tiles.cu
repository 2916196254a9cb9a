// Products of tiles of 16 rows by one warp each: -DELEMENT (bf16, f16, float), -DHEAD (C / H), -DTF32.
//
// Operands lie in shared memory row by row, STRIDE elements a row: HEAD of them, zeros up to WIDE, and 16 bytes that
// nobody reads, so that 8 rows of 16 bytes lie in 32 different banks. Two products do for all of attention, forward
// and backward: A B^T of rows (scores) and weights times rows (sums of values). Accumulators are mma's: of the 16 x 8
// block c, lane 4 g + t holds columns 8 c + 2 t and + 1 of row g in [c][0] and [1], of row g + 8 in [c][2] and [3].
//
// float32 is the sum of three tf32 products of high and low parts (5e-7 off), or one product where TF32 allows it.
#ifndef TF32
#define TF32 0
#endif
using T = ELEMENT;
const int WIDE = (HEAD + 15) / 16 * 16, PER = 16 / sizeof(T), STRIDE = WIDE + PER;
// Whether the rows of a head start and end at 16 bytes; else they are moved element by element.
const bool WHOLE = HEAD % PER == 0;
const float LOG2E = 1.4426950408889634f;
#define INFINITY_ __uint_as_float(0x7f800000u)

struct alignas(8) Words2 {
  u32 w[2];
};

// Only the first `counted` of the `keys` are attended to.
struct Heads { int samples, keys, counted, positions, heads, by_position; };

// The row of [N, L, ..] or [L, N, ..] that holds sample n of position l
__device__ __forceinline__ int memory_row(Heads s, int l, int n) {
  return s.by_position ? l * s.samples + n : n * s.positions + l;
}

// ---- products

__device__ __forceinline__ void split(float x, u32& high, u32& low) {
  high = tf32(x);
  low = tf32(x - __uint_as_float(high));
}
__device__ __forceinline__ void mma_float(float* acc, const u32* high, const u32* low, float b0, float b1) {
  u32 b_high[2], b_low[2];
  split(b0, b_high[0], b_low[0]);
  split(b1, b_high[1], b_low[1]);
  if (TF32) {
    mma_tf32(acc, high, b_high);
    return;
  }
  // Tensor cores cut off what they add up: in a chain of products it would become 1e-6 and more, so a step begins with
  // nothing, the small ones first, and is added with rounding.
  float step[4] = {};
  mma_tf32(step, low, b_high);
  mma_tf32(step, high, b_low);
  mma_tf32(step, high, b_high);
  for (int i = 0; i < 4; i++) acc[i] += step[i];
}

// acc[16 x 8 BLOCKS] += a[16 x WIDE] b[8 BLOCKS x WIDE]^T, BLOCKS even
template <int BLOCKS, class E>
__device__ __forceinline__ void rows_by_rows(float (*acc)[4], const E* a, const E* b) {
  int lane = threadIdx.x % 32;
  a += lane % 16 * STRIDE + lane / 16 * 8;
  b += (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < WIDE; k += 16) {
    u32 left[4];
    ldmatrix4(left, a + k);
#pragma unroll
    for (int c = 0; c < BLOCKS; c += 2) {
      u32 right[4];
      ldmatrix4(right, b + c * 8 * STRIDE + k);
      mma(E(), acc[c], left, right);
      mma(E(), acc[c + 1], left, right + 2);
    }
  }
}
template <int BLOCKS>
__device__ __forceinline__ void rows_by_rows(float (*acc)[4], const float* a, const float* b) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  a += g * STRIDE + t;
  b += g * STRIDE + t;
#pragma unroll 2   // whole, D = 128 took ptxas 11 s
  for (int k = 0; k < WIDE; k += 8) {
    u32 high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; i++) split(a[i % 2 * 8 * STRIDE + k + i / 2 * 4], high[i], low[i]);
#pragma unroll
    for (int c = 0; c < BLOCKS; c++) {
      const float* at = b + c * 8 * STRIDE + k;
      mma_float(acc[c], high, low, at[0], at[4]);
    }
  }
}

// Weights as the left operand of a product: 16 x 8 STEPS of them. In float32 the places of a step of 8 are taken in the
// order 0 2 4 6 1 3 5 7, of weights and rows alike, so that a lane's weights are those of its accumulator.
template <class E, int STEPS> struct Weights { u32 of[STEPS / 2][4]; };
template <int STEPS> struct Weights<float, STEPS> { float of[STEPS][4]; };

// Weights from an accumulator
template <int STEPS, class E>
__device__ __forceinline__ void take_weights(Weights<E, STEPS>& to, const float (*p)[4]) {
#pragma unroll
  for (int k = 0; k < STEPS / 2; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* from = p[2 * k + i / 2] + i % 2 * 2;
      to.of[k][i] = pack(E(), from[0], from[1]);
    }
}
template <int STEPS>
__device__ __forceinline__ void take_weights(Weights<float, STEPS>& to, const float (*p)[4]) {
#pragma unroll
  for (int k = 0; k < STEPS; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) to.of[k][i] = p[k][i % 2 * 2 + i / 2];
}
// Weights from 16 columns of a tile in shared memory [8 STEPS, stride]: the transpose
template <int STEPS, class E>
__device__ __forceinline__ void take_columns(Weights<E, STEPS>& to, const E* tile, int stride) {
  int lane = threadIdx.x % 32;
  tile += (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < STEPS / 2; k++) ldmatrix4_trans(to.of[k], tile + k * 16 * stride);
}
template <int STEPS>
__device__ __forceinline__ void take_columns(Weights<float, STEPS>& to, const float* tile, int stride) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  tile += 2 * t * stride + g;
#pragma unroll
  for (int k = 0; k < STEPS; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) to.of[k][i] = tile[(k * 8 + i / 2) * stride + i % 2 * 8];
}

// acc[16 x 8 BLOCKS] += weights[16 x 8 STEPS] b[8 STEPS x 8 BLOCKS], both even
template <int BLOCKS, int STEPS, class E>
__device__ __forceinline__ void multiply(float (*acc)[4], const Weights<E, STEPS>& weights, const E* b) {
  int lane = threadIdx.x % 32;
  b += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < STEPS / 2; k++)
#pragma unroll
    for (int c = 0; c < BLOCKS; c += 2) {
      u32 right[4];
      ldmatrix4_trans(right, b + k * 16 * STRIDE + c * 8);
      mma(E(), acc[c], weights.of[k], right);
      mma(E(), acc[c + 1], weights.of[k], right + 2);
    }
}
template <int BLOCKS, int STEPS>
__device__ __forceinline__ void multiply(float (*acc)[4], const Weights<float, STEPS>& weights, const float* b) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  b += 2 * t * STRIDE + g;
#pragma unroll
  for (int k = 0; k < STEPS; k++) {
    u32 high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; i++) split(weights.of[k][i], high[i], low[i]);
#pragma unroll
    for (int c = 0; c < BLOCKS; c++) {
      const float* at = b + k * 8 * STRIDE + c * 8;
      mma_float(acc[c], high, low, at[0], at[STRIDE]);
    }
  }
}

// ---- accumulators to memory

__device__ __forceinline__ void put1(bf16* to, float a) { to->bits = (u16)pack(bf16(), a, 0.f); }
__device__ __forceinline__ void put1(f16* to, float a) { to->bits = (u16)pack(f16(), a, 0.f); }
__device__ __forceinline__ void put1(float* to, float a) { *to = a; }
__device__ __forceinline__ void put2(bf16* to, float a, float b) { *(u32*)to = pack(bf16(), a, b); }
__device__ __forceinline__ void put2(f16* to, float a, float b) { *(u32*)to = pack(f16(), a, b); }
__device__ __forceinline__ void put2(float* to, float a, float b) {
  Words2 words = {{__float_as_uint(a), __float_as_uint(b)}};
  *(Words2*)to = words;
}
// Two neighbours of a head's row, of which `left` are within it
__device__ __forceinline__ void put_pair(T* to, float a, float b, int left) {
  if (HEAD % 2 == 0) {
    if (left > 0) put2(to, a, b);
  } else {
    if (left > 0) put1(to, a);
    if (left > 1) put1(to + 1, b);
  }
}
// A tile in shared memory of the 16 x 8 BLOCKS of an accumulator, rows g times `top`, rows g + 8 times `bottom`
template <int BLOCKS>
__device__ __forceinline__ void put_blocks(T* tile, int stride, const float (*acc)[4], float top, float bottom) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  tile += g * stride + 2 * t;
#pragma unroll
  for (int c = 0; c < BLOCKS; c++) {
    put2(tile + c * 8, acc[c][0] * top, acc[c][1] * top);
    put2(tile + 8 * stride + c * 8, acc[c][2] * bottom, acc[c][3] * bottom);
  }
}
__device__ __forceinline__ void put_tile(T* tile, const float (*acc)[4], float top, float bottom) {
  put_blocks<WIDE / 8>(tile, STRIDE, acc, top, bottom);
}

// Two or four neighbouring blocks of an accumulator's row g + 8 half, times `factor`, to a head's row in memory, from
// `column` on; a null row is not there. The four lanes of a row hand each other what they hold, so that each has 16
// bytes to store and the four have 64 in a row (8 and 32 for two blocks of half precision).
template <int COUNT, class E>
__device__ __forceinline__ void write_whole_blocks(E* row, const float (*acc)[4], int half, float factor, int column) {
  int t = threadIdx.x % 4, odd = t & 1, upper = t >> 1;
  const int LAST = COUNT / 2 - 1;
  u32 left[COUNT / 2], right[COUNT / 2];   // halves of blocks 0 and 2 in even lanes, of 1 and 3 in odd ones
#pragma unroll
  for (int c = 0; c < COUNT; c += 2) {
    u32 even = pack(E(), acc[c][2 * half] * factor, acc[c][2 * half + 1] * factor);
    u32 other = pack(E(), acc[c + 1][2 * half] * factor, acc[c + 1][2 * half + 1] * factor);
    u32 got = __shfl_xor_sync(0xffffffffu, odd ? even : other, 1);
    left[c / 2] = odd ? got : even;
    right[c / 2] = odd ? other : got;
  }
  if (COUNT == 2) {
    int at = column + odd * 8;
    Words2 words = {{left[0], right[0]}};
    if (row && at < HEAD) *(Words2*)(row + at + upper * 4) = words;
  } else {   // blocks 0 and 1 in the lower lanes, 2 and 3 in the upper ones
    u32 a = __shfl_xor_sync(0xffffffffu, upper ? left[0] : left[LAST], 2);
    u32 b = __shfl_xor_sync(0xffffffffu, upper ? right[0] : right[LAST], 2);
    int at = column + t * 8;
    Words4 words = {{upper ? a : left[0], upper ? b : right[0], upper ? left[LAST] : a, upper ? right[LAST] : b}};
    if (row && at < HEAD) *(Words4*)(row + at) = words;
  }
}
template <int COUNT>
__device__ __forceinline__ void write_whole_blocks(
    float* row, const float (*acc)[4], int half, float factor, int column) {
  int t = threadIdx.x % 4, odd = t & 1, upper = t >> 1;
#pragma unroll
  for (int c = 0; c < COUNT; c += 2) {
    float all[4];   // half of block c in an even lane, of c + 1 in an odd one
#pragma unroll
    for (int e = 0; e < 2; e++) {
      float even = acc[c][2 * half + e] * factor, other = acc[c + 1][2 * half + e] * factor;
      float got = __shfl_xor_sync(0xffffffffu, odd ? even : other, 1);
      all[e] = odd ? got : even;
      all[2 + e] = odd ? other : got;
    }
    int at = column + (c + odd) * 8 + upper * 4;
    if (row && at < HEAD) store(row + at, all);
  }
}
template <int COUNT>
__device__ __forceinline__ void write_blocks(T* row, const float (*acc)[4], int half, float factor, int column) {
  if (WHOLE) {
    write_whole_blocks<COUNT>(row, acc, half, factor, column);
  } else {
    column += 2 * (threadIdx.x % 4);
#pragma unroll
    for (int c = 0; c < COUNT; c++, column += 8)
      if (row) put_pair(row + column, acc[c][2 * half] * factor, acc[c][2 * half + 1] * factor, HEAD - column);
  }
}

// ---- rows of scores: the four lanes of a row

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
