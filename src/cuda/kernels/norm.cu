// Layer norm with what comes before it: the branch's bias, its dropout and the residual sum.
//
// -DSTREAM   the residual stream and its gradient (bf16, f16, float)
// -DBRANCH   what the linears give and take; another than STREAM under autocast
// -DPARAM    weight and shift of the norm
// -DGRAD     the gradient of the norm's output: STREAM, or BRANCH where a linear has made it
// -DCHUNKS   pieces of a row that a lane keeps in registers; a piece is 16 bytes of STREAM
// -DWARPS    warps that share a row: 1, 2, 4 or 8
// -DHAS_BRANCH, -DHAS_NORM   what of it there is
//
// CHUNKS * WARPS * 32 pieces hold a row. The backward is bound by what it keeps in registers, three sums for each
// element of a lane: 8 elements a lane and more warps to a row are better than the other way round, and a row of
// more than one warp costs one barrier.

// The rows of a token tensor [N, L, C], or [L, N, C] where they lie by position.
struct Rows { int rows, channels, positions, samples, by_position; };

// The index, in [N, L, C], of the first element of a row of memory. A multiple of 4, as C is.
__device__ __forceinline__ u64 place(Rows s, int row) {
  if (!s.by_position) return (u64)row * s.channels;
  int l = row / s.samples, n = row - l * s.samples;
  return ((u64)n * s.positions + l) * s.channels;
}

// ---- pieces: N elements of any type, as they lie in memory

const int N = Per<STREAM>::N;

template <int BYTES> struct Raw;
template <> struct alignas(8) Raw<8> { u32 w[2]; };
template <> struct alignas(16) Raw<16> { u32 w[4]; };
template <> struct alignas(16) Raw<32> { u32 w[8]; };

template <class T>
struct Piece {
  static const int WORDS = N * sizeof(T) / 4;
  Raw<4 * WORDS> raw;
};
template <class T>
__device__ __forceinline__ Piece<T> zeros() {
  Piece<T> piece;
  for (int i = 0; i < Piece<T>::WORDS; i++) piece.raw.w[i] = 0;
  return piece;
}
template <class T>
__device__ __forceinline__ Piece<T> fetch(const T* p) {
  Piece<T> piece;
  piece.raw = *(const Raw<4 * Piece<T>::WORDS>*)p;
  return piece;
}
template <class T>
__device__ __forceinline__ void put(T* p, Piece<T> piece) {
  *(Raw<4 * Piece<T>::WORDS>*)p = piece.raw;
}
template <class T>
__device__ __forceinline__ void widen(float* out, Piece<T> piece) {
  const int EACH = Per<T>::N;
  for (int i = 0; i < (N + EACH - 1) / EACH; i++) {
    Words4 four;
    float wide[EACH];
    for (int j = 0; j < 4; j++) four.w[j] = 4 * i + j < Piece<T>::WORDS ? piece.raw.w[4 * i + j] : 0;
    unpack(wide, four, T());
    for (int e = 0; e < EACH; e++)
      if (i * EACH + e < N) out[i * EACH + e] = wide[e];
  }
}
template <class T>
__device__ __forceinline__ Piece<T> narrowed(const float* in, T) {
  const int EACH = Per<T>::N;
  Piece<T> piece;
  for (int i = 0; i < (N + EACH - 1) / EACH; i++) {
    float wide[EACH];
    for (int e = 0; e < EACH; e++) wide[e] = i * EACH + e < N ? in[i * EACH + e] : 0.f;
    Words4 four = packed(wide, T());
    for (int j = 0; j < 4; j++)
      if (4 * i + j < Piece<T>::WORDS) piece.raw.w[4 * i + j] = four.w[j];
  }
  return piece;
}

// ---- rows: where a thread stands in the block and in its row

struct Place {
  int lane, part, group, groups;   // `part` of the WARPS that share a row; `group` of the rows that go at once
};
__device__ __forceinline__ Place stand() {
  int warp = threadIdx.x / 32;
  return {(int)threadIdx.x % 32, warp % WARPS, warp / WARPS, (int)blockDim.x / 32 / WARPS};
}
__device__ __forceinline__ int column(Place me, int chunk) { return ((chunk * WARPS + me.part) * 32 + me.lane) * N; }

// The sums of a and b over a row, in every thread of it. Where warps share rows, `turn` alternates from call to call:
// whoever writes a slot again has met everybody at a barrier since it was read.
__device__ __forceinline__ void sum_row(float& a, float& b, Place me, int turn) {
  a = sum_lanes(a);
  b = sum_lanes(b);
  if (WARPS == 1) return;
  float* slots = (float*)shared_memory() + (turn & 1) * me.groups * WARPS * 2 + me.group * WARPS * 2;
  if (me.lane == 0) {
    slots[2 * me.part] = a;
    slots[2 * me.part + 1] = b;
  }
  __syncthreads();
  a = b = 0;
  for (int i = 0; i < WARPS; i++) {
    a += slots[2 * i];
    b += slots[2 * i + 1];
  }
}

// residual = x + drop(branch + bias); y = norm(residual) weight + shift, of what of it there is.
//
// The norm is that of the residual as it is kept, rounded, so that the backward is the gradient of this forward. Its
// variance is the mean of squared distances from the mean, not a difference of two large numbers.
// Grid: rows / (blockDim / 32 / WARPS), rounded up.
extern "C" __global__ void __launch_bounds__(256) residual_norm_forward(
    const STREAM* __restrict__ x, const BRANCH* __restrict__ branch, const BRANCH* __restrict__ bias,
    const PARAM* __restrict__ weight, const PARAM* __restrict__ shift, const i64* __restrict__ seed, u32 site,
    u32 threshold, float scale, float eps, Rows shape, STREAM* __restrict__ residual, STREAM* __restrict__ y,
    BRANCH* __restrict__ y_narrow, float* __restrict__ mean, float* __restrict__ rstd) {
  Place me = stand();
  int row = blockIdx.x * me.groups + me.group;
  bool here = row < shape.rows;
  i64 start = (i64)row * shape.channels;

  // All that comes from far is asked for first.
  Piece<STREAM> kept[CHUNKS];
  Piece<BRANCH> added[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int at = column(me, c);
    kept[c] = zeros<STREAM>();
    if (!here || at >= shape.channels) continue;
    kept[c] = fetch(x + start + at);
    if (HAS_BRANCH) added[c] = fetch(branch + start + at);
  }

  u64 state = HAS_BRANCH && threshold ? site_state(seed, site) : 0;
  u64 word0 = HAS_BRANCH && threshold ? place(shape, row) / 4 : 0;
  float sum = 0;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int at = column(me, c);
    if (!here || at >= shape.channels) continue;
    float z[N];
    if (HAS_BRANCH) {
      float term[N];
      widen(term, added[c]);
      if (bias) {
        float b[N];
        widen(b, fetch(bias + at));
        for (int i = 0; i < N; i++) term[i] += b[i];
      }
      if (threshold) drop<N>(term, state, (word0 + at / 4) * 4, threshold, scale);
      widen(z, kept[c]);
      for (int i = 0; i < N; i++) z[i] += term[i];
      kept[c] = narrowed(z, STREAM());
      if (residual) put(residual + start + at, kept[c]);
    }
    if (!HAS_NORM) continue;
    widen(z, kept[c]);
    for (int i = 0; i < N; i++) sum += z[i];
  }
  if (!HAS_NORM) return;

  float each = 1.f / shape.channels, squares = 0, none = 0;
  sum_row(sum, none, me, 0);
  float m = sum * each;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    float z[N];
    widen(z, kept[c]);
    if (column(me, c) < shape.channels)
      for (int i = 0; i < N; i++) squares += (z[i] - m) * (z[i] - m);
  }
  sum_row(squares, none, me, 1);
  float r = rsqrtf(squares * each + eps);
  if (!here) return;
  if (mean && me.lane == 0 && me.part == 0) mean[row] = m;
  if (rstd && me.lane == 0 && me.part == 0) rstd[row] = r;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int at = column(me, c);
    if (at >= shape.channels) continue;
    float z[N], w[N];
    widen(z, kept[c]);
    widen(w, fetch(weight + at));
    for (int i = 0; i < N; i++) z[i] = (z[i] - m) * r * w[i];
    if (shift) {
      widen(w, fetch(shift + at));
      for (int i = 0; i < N; i++) z[i] += w[i];
    }
    if (y) put(y + start + at, narrowed(z, STREAM()));
    if (y_narrow) put(y_narrow + start + at, narrowed(z, BRANCH()));
  }
}

// ---- backward

// The sums of a block's rows, one for each column of a lane, to its row of the partials.
__device__ __forceinline__ void leave_sums(const float (*mine)[N], Place me, int channels, float* out) {
  float* all = (float*)shared_memory();   // [groups, C]
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int at = column(me, c);
    if (at >= channels) continue;
    for (int i = 0; i < N; i++) (me.groups == 1 ? out : all + me.group * channels)[at + i] = mine[c][i];
  }
  if (me.groups == 1) return;
  __syncthreads();
  for (int at = threadIdx.x; at < channels; at += blockDim.x) {
    float total = 0;
    for (int g = 0; g < me.groups; g++) total += all[g * channels + at];
    out[at] = total;
  }
  __syncthreads();
}

// With 8 elements a lane does with 72 registers, or 80 if the weights are wider than what they weigh; with 16, or
// with the sums of 8 warps to add up, with 128.
const int OF_LANE = CHUNKS * N;
const int MOST_THREADS = OF_LANE > 8 || WARPS == 8 ? 256 : sizeof(PARAM) > sizeof(STREAM) ? 384 : 448;
const int LEAST_BLOCKS = OF_LANE > 16 ? 1 : 2;

// With x^ = (residual - mean) rstd, g = grad_y weight and < > the mean over the channels:
//   grad_residual = rstd (g - <g> - x^ <g x^>) + skip        (without a norm: grad_y + skip)
//   grad_branch   = drop(grad_residual),  normed = x^ weight + shift
// and per block the sums over its rows of grad_branch, grad_y x^ and grad_y.
// Grid: as many blocks as `partials` has rows. Shared: 4 bytes for each of groups * C (where groups > 1), and at
// least 16 a warp.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, LEAST_BLOCKS) residual_norm_backward(
    const GRAD* __restrict__ grad_y, const STREAM* __restrict__ skip, const STREAM* __restrict__ residual,
    const float* __restrict__ mean, const float* __restrict__ rstd, const PARAM* __restrict__ weight,
    const PARAM* __restrict__ shift, const i64* __restrict__ seed, u32 site, u32 threshold, float scale, Rows shape,
    STREAM* __restrict__ grad_residual, BRANCH* __restrict__ grad_branch, BRANCH* __restrict__ normed,
    float* __restrict__ partials, int stride, int at_bias, int at_weight, int at_shift) {
  Place me = stand();
  u64 state = HAS_BRANCH && threshold ? site_state(seed, site) : 0;
  float each = 1.f / shape.channels;
  float of_weight[CHUNKS][N] = {}, of_shift[CHUNKS][N] = {}, of_bias[CHUNKS][N] = {};

  int step = gridDim.x * me.groups;
  // As many turns for every group, as they meet at a barrier.
  for (int top = blockIdx.x * me.groups, turn = 0; top < shape.rows; top += step, turn++) {
    int row = top + me.group;
    bool here = row < shape.rows;
    i64 start = (i64)row * shape.channels;
    Piece<GRAD> grad[CHUNKS];
    Piece<STREAM> kept[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      int at = column(me, c);
      bool there = here && at < shape.channels;
      grad[c] = zeros<GRAD>();
      kept[c] = zeros<STREAM>();
      if (!there) continue;
      grad[c] = fetch(grad_y + start + at);
      if (HAS_NORM) kept[c] = fetch(residual + start + at);
    }
    float m = HAS_NORM && here ? mean[row] : 0, r = HAS_NORM && here ? rstd[row] : 0;

    float g[CHUNKS][N], hat[CHUNKS][N], mean_g = 0, mean_product = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      int at = column(me, c);
      widen(g[c], grad[c]);
      if (!HAS_NORM) continue;
      float w[N], s[N];
      widen(hat[c], kept[c]);
      widen(w, at < shape.channels ? fetch(weight + at) : zeros<PARAM>());
      for (int i = 0; i < N; i++) {
        hat[c][i] = (hat[c][i] - m) * r;
        of_weight[c][i] += g[c][i] * hat[c][i];
        of_shift[c][i] += g[c][i];
        g[c][i] *= w[i];
        mean_g += g[c][i];
        mean_product += g[c][i] * hat[c][i];
      }
      // At once, as nothing else needs the weights again.
      if (!normed || !here || at >= shape.channels) continue;
      for (int i = 0; i < N; i++) w[i] *= hat[c][i];
      if (shift) {
        widen(s, fetch(shift + at));
        for (int i = 0; i < N; i++) w[i] += s[i];
      }
      put(normed + start + at, narrowed(w, BRANCH()));
    }
    // Under way while the sums are; earlier, it would take registers that are not there.
    Piece<STREAM> more[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      int at = column(me, c);
      more[c] = skip && here && at < shape.channels ? fetch(skip + start + at) : zeros<STREAM>();
    }
    if (HAS_NORM) sum_row(mean_g, mean_product, me, turn);
    mean_g *= each;
    mean_product *= each;

    u64 word0 = HAS_BRANCH && threshold ? place(shape, row) / 4 : 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      int at = column(me, c);
      if (!here || at >= shape.channels) continue;
      float other[N];
      widen(other, more[c]);
      for (int i = 0; i < N; i++) {
        if (HAS_NORM) g[c][i] = r * (g[c][i] - mean_g - hat[c][i] * mean_product);
        g[c][i] += other[i];
      }
      if (grad_residual) put(grad_residual + start + at, narrowed(g[c], STREAM()));
      if (!HAS_BRANCH) continue;
      if (threshold) drop<N>(g[c], state, (word0 + at / 4) * 4, threshold, scale);
      put(grad_branch + start + at, narrowed(g[c], BRANCH()));
      for (int i = 0; i < N; i++) of_bias[c][i] += g[c][i];
    }
  }

  if (WARPS > 1) __syncthreads();   // the slots of the last sums are written over
  float* out = partials + (i64)blockIdx.x * stride;
  if (HAS_BRANCH && at_bias >= 0) leave_sums(of_bias, me, shape.channels, out + at_bias);
  if (HAS_NORM && at_weight >= 0) leave_sums(of_weight, me, shape.channels, out + at_weight);
  if (HAS_NORM && at_shift >= 0) leave_sums(of_shift, me, shape.channels, out + at_shift);
}
