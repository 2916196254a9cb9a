// Softmax and dropout of scores that are in memory, for heads too wide for attention_long: -DELEMENT, -DSCORE.
//
// Scores [L H, queries, K] are those of the queries from `first` on, not yet scaled, of type SCORE: ELEMENT, or float,
// as the product that makes them may leave them. A row has WARPS (a block; where it is 1, four rows are a block), and
// CHUNKS times 16 bytes of ELEMENT a lane hold it in registers; with CHUNKS = 0 it is read again for each of maximum,
// sum and result. WHOLE says that K is a multiple of the elements in 16 bytes. Keys from `counted` on have no weight.
using T = ELEMENT;
const int PIECE = Per<T>::N, LANES = 32 * WARPS, ROWS = WARPS == 1 ? 4 : 1, THREADS = LANES * ROWS;
const int HELD = CHUNKS ? CHUNKS : 1;
const float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
#define INFINITY_ __uint_as_float(0x7f800000u)
struct Heads { int samples, keys, counted, positions, heads, by_position; };

// A piece of a row that has `left` elements more; what is beyond them stays as it is.
template <class E> __device__ __forceinline__ void read(float* out, const E* from, int left) {
  if (WHOLE) {
    if (left <= 0) return;
    for (int i = 0; i < PIECE; i += Per<E>::N) load(out + i, from + i);
  } else {
    for (int e = 0; e < PIECE; e++)
      if (e < left) out[e] = value(from[e]);
  }
}
__device__ __forceinline__ void write(T* to, const float* in, int left) {
  if (WHOLE) {
    if (left > 0) store(to, in);
  } else {
    alignas(16) T out[PIECE];
    store(out, in);
    for (int e = 0; e < PIECE; e++)
      if (e < left) to[e] = out[e];
  }
}
__device__ __forceinline__ float max_lanes(float x) {
  for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
// Of the row, the same in each of its lanes; `slot` sets apart what is in shared memory at once.
template <bool MAXIMUM> __device__ __forceinline__ float of_row(float x, int slot) {
  x = MAXIMUM ? max_lanes(x) : sum_lanes(x);
  if (WARPS == 1) return x;
  float* parts = (float*)shared_memory() + slot * WARPS;
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[0];
  for (int i = 1; i < WARPS; i++) x = MAXIMUM ? fmaxf(x, parts[i]) : x + parts[i];
  return x;
}

// The row that a lane works on, the lane's place among those of the row, and the row's among those of the masks.
struct Place { i64 row; int lane, n, h, l, chunks; u64 mask_at; bool there; };
__device__ __forceinline__ Place place(Heads s, int first, int queries) {
  Place p;
  p.row = (i64)blockIdx.x * ROWS + threadIdx.x / LANES;
  p.lane = threadIdx.x % LANES;
  i64 unit = p.row / queries;
  p.there = unit < (i64)s.positions * s.heads;
  p.n = first + (int)(p.row % queries);
  p.h = (int)(unit % s.heads);
  p.l = (int)(unit / s.heads);
  p.chunks = CHUNKS ? CHUNKS : (s.keys + LANES * PIECE - 1) / (LANES * PIECE);
  p.mask_at = ((u64)unit * s.samples + p.n) * s.keys;
  return p;
}
__device__ __forceinline__ void scaled(float* x, const SCORE* row, int at, Heads s) {
  read(x, row + at, s.keys - at);
  for (int e = 0; e < PIECE; e++)
    if (at + e >= s.counted) x[e] = -INFINITY_;
}
// exp2(x factor - level) of a piece: what rounding makes of the level leaves with the row's sum, as in attention_long.
__device__ __forceinline__ void powers(float* x, float factor, float level) {
  for (int e = 0; e < PIECE; e++) x[e] = exp2_fast(fmaf(x[e], factor, -level));
}
__device__ __forceinline__ float row_level(float (*x)[PIECE], const SCORE* row, Place p, Heads s, float factor) {
  float top = -INFINITY_;
#pragma unroll
  for (int c = 0; c < p.chunks; c++) {
    float* piece = x[CHUNKS ? c : 0];
    scaled(piece, row, (c * LANES + p.lane) * PIECE, s);
    for (int e = 0; e < PIECE; e++) top = fmaxf(top, piece[e]);
  }
  return of_row<true>(top, 0) * factor;
}

// dropped = dropout(softmax(softmax_scale scores)), zeros from `counted` on; it may be the scores' own memory.
extern "C" __global__ void __launch_bounds__(THREADS) softmax_forward(
    const SCORE* scores, Heads s, int first, int queries, float softmax_scale, const i64* seed, u32 threshold,
    float drop_scale, T* dropped, float* lse) {
  Place p = place(s, first, queries);
  if (!p.there) return;
  u64 site = threshold ? site_state(seed, 1) : 0;
  const SCORE* row = scores + p.row * s.keys;
  float x[HELD][PIECE], sum = 0, factor = softmax_scale * LOG2E, level = row_level(x, row, p, s, factor);
#pragma unroll
  for (int c = 0; c < p.chunks; c++) {
    float* piece = x[CHUNKS ? c : 0];
    if (!CHUNKS) scaled(piece, row, (c * LANES + p.lane) * PIECE, s);
    powers(piece, factor, level);
    for (int e = 0; e < PIECE; e++) sum += piece[e];
  }
  sum = of_row<false>(sum, 1);
  float inverse = 1 / sum;
#pragma unroll
  for (int c = 0; c < p.chunks; c++) {
    float* piece = x[CHUNKS ? c : 0];
    int at = (c * LANES + p.lane) * PIECE;
    if (!CHUNKS) {
      scaled(piece, row, at, s);
      powers(piece, factor, level);
    }
    for (int e = 0; e < PIECE; e++) piece[e] *= inverse;
    if (threshold) drop<PIECE>(piece, site, p.mask_at + at, threshold, drop_scale);
    write(dropped + p.row * s.keys + at, piece, s.keys - at);
  }
  if (lse && p.lane == 0) lse[((i64)p.l * s.samples + p.n) * s.heads + p.h] = level * LN2 + logf(sum);
}

// With P = softmax(S) and m its dropout's multipliers: grad_S = P (m grad_dropped - sum P m grad_dropped), here times
// softmax_scale. P is made again from the scores as the forward made it; so the rounding of no kept sum is in it.
// `dropped`, made again for the values' gradient, may be the scores' memory, `grad_scores` that of grad_dropped.
extern "C" __global__ void __launch_bounds__(THREADS) softmax_backward(
    const SCORE* scores, const SCORE* grad_dropped, Heads s, int first, int queries, float softmax_scale,
    const i64* seed, u32 threshold, float drop_scale, T* dropped, T* grad_scores) {
  Place p = place(s, first, queries);
  if (!p.there) return;
  u64 site = threshold ? site_state(seed, 1) : 0;
  const SCORE* row = scores + p.row * s.keys;
  const SCORE* grad_row = grad_dropped + p.row * s.keys;
  float x[HELD][PIECE], grads[HELD][PIECE], sum = 0, dot = 0;
  float factor = softmax_scale * LOG2E, level = row_level(x, row, p, s, factor);
  // Of a piece: P times the row's sum, and m grad_dropped.
  auto piece_of = [&](float* power, float* grad, int at) {
    powers(power, factor, level);
    for (int e = 0; e < PIECE; e++) grad[e] = 0;
    read(grad, grad_row + at, s.keys - at);
    for (int e = 0; e < PIECE; e++)
      if (at + e >= s.counted) grad[e] = 0;
    if (threshold) drop<PIECE>(grad, site, p.mask_at + at, threshold, drop_scale);
  };
#pragma unroll
  for (int c = 0; c < p.chunks; c++) {
    float* power = x[CHUNKS ? c : 0];
    float* grad = grads[CHUNKS ? c : 0];
    int at = (c * LANES + p.lane) * PIECE;
    if (!CHUNKS) scaled(power, row, at, s);
    piece_of(power, grad, at);
    for (int e = 0; e < PIECE; e++) {
      sum += power[e];
      dot += power[e] * grad[e];
    }
  }
  sum = of_row<false>(sum, 1);
  float inverse = 1 / sum, delta = of_row<false>(dot, 2) * inverse;
#pragma unroll
  for (int c = 0; c < p.chunks; c++) {
    float* power = x[CHUNKS ? c : 0];
    float* grad = grads[CHUNKS ? c : 0];
    int at = (c * LANES + p.lane) * PIECE;
    if (!CHUNKS) {
      scaled(power, row, at, s);
      piece_of(power, grad, at);
    }
    for (int e = 0; e < PIECE; e++) {
      power[e] *= inverse;
      grad[e] = power[e] * (grad[e] - delta) * softmax_scale;
    }
    write(grad_scores + p.row * s.keys + at, grad, s.keys - at);
    if (threshold) drop<PIECE>(power, site, p.mask_at + at, threshold, drop_scale);
    write(dropped + p.row * s.keys + at, power, s.keys - at);
  }
}
