// Attention over at most 64 samples at every position, forward and backward: -DR (tiles of 16 rows, ceil(N / 16)).
//
// R warps take a unit: one head of floor(16 R / N) positions, whose samples lie block by block on the diagonal of a
// matrix of weights that stays in registers. So every number is read once and written once, whole rows of the softmax
// are at hand, and nothing but q, k, v and the gradient is needed for the backward: the largest score and the sum are
// found again as the forward found them. (Tried: exp(S - lse). Where scores are 1e5 large, the rounding of lse leaves
// rows that sum to 1 within 1 % only.)
//
// A block holds blockDim.x / (32 R) units, the heads of one position beside each other, as their rows are neighbours.
const int ROWS = 16 * R, LANES = 32 * R, BLOCKS = 2 * R, TILE = ROWS * STRIDE;
// Weights in shared memory, [queries, keys]
const int WEIGHTS_STRIDE = ROWS + PER, WEIGHTS = ROWS * WEIGHTS_STRIDE;
// What holds the keys or the values first and weights later
const int PLACE = TILE > WEIGHTS ? TILE : WEIGHTS;
const u32 ALL = 0xffffffffu;

__device__ __forceinline__ void meet() {
  if (R == 1) __syncwarp();
  else __syncthreads();
}

// What a lane knows of its unit. `of_lane` is the row of memory that row lane % 16 of this warp's tile stands for, the
// others are those of the lane's two rows of an accumulator, g and g + 8. A row of memory is -1 where there is none.
struct Unit {
  int head, of_lane, memory[2], position[2], sample[2];
  int first[2];   // the column of the position's first sample
};
// Of the unit's positions, those from `begin` to `end`; the others' rows are taken as zeros.
__device__ __forceinline__ Unit unit_at(Heads s, int unit, int packed, int begin, int end) {
  int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % R * 16, l0 = unit / s.heads * packed;
  Unit u;
  u.head = unit % s.heads;
  int row = tile + lane % 16, position = R == 1 ? row / s.samples : row >= s.samples;
  bool there = position >= begin && position < end && l0 + position < s.positions;
  u.of_lane = there ? memory_row(s, l0 + position, row - position * s.samples) : -1;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int from = lane / 4 + 8 * half, p = R == 1 ? __shfl_sync(ALL, position, from) : 0;
    u.memory[half] = __shfl_sync(ALL, u.of_lane, from);
    u.first[half] = p * s.samples;
    u.position[half] = l0 + p;
    u.sample[half] = tile + from - u.first[half];
  }
  return u;
}

// This warp's 16 rows of `PARTS` neighbours in a row of memory, one tile each, `tile` elements apart.
template <int PARTS>
__device__ __forceinline__ void stage(T* to, int tile, const T* from, int stride, int width, const Unit& u) {
  const int PIECE = WHOLE ? PER : 1, PIECES = WIDE / PIECE;
#pragma unroll 4
  for (int i = threadIdx.x % 32; i < 16 * PIECES; i += 32) {
    int row = i / PIECES, c = i % PIECES * PIECE, memory = __shfl_sync(ALL, u.of_lane, row);
    bool there = memory >= 0 && c < HEAD;
    const T* at = from + (there ? (i64)memory * stride + u.head * HEAD + c : 0);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      T* put = to + part * tile + row * STRIDE + c;
      const T* get = at + part * width;
      if (WHOLE) copy_async(put, get, there);
      else {
        T zero = {};
        *put = there ? *get : zero;
      }
    }
  }
}

// Scores to exp((score - largest) scale), 0 in the columns of other positions; the row's largest score and the sum.
__device__ __forceinline__ void exponentials(
    float (*p)[4], const Unit& u, int samples, float softmax_scale, float* largest, float* sum) {
  int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = -INFINITY_, total = 0;
#pragma unroll
    for (int c = 0; c < BLOCKS; c++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& x = p[c][2 * half + e];
        if ((u32)(c * 8 + 2 * t + e - u.first[half]) >= (u32)samples) x = -INFINITY_;
        top = fmaxf(top, x);
      }
    top = quad_max(top);
#pragma unroll
    for (int c = 0; c < BLOCKS; c++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& x = p[c][2 * half + e];
        x = exp2_fast((x - top) * (softmax_scale * LOG2E));   // the difference of large scores is exact
        total += x;
      }
    largest[half] = top;
    sum[half] = quad_sum(total);
  }
}

// Bit 4 c + i: whether the weight [c][i] of a lane is its position's and is kept.
__device__ __forceinline__ u32 kept_weights(const Unit& u, Heads s, u64 site, u32 threshold) {
  int t = threadIdx.x % 4, odd = t & 1, samples = s.samples;
  bool shared = samples % 4 == 0;   // an even lane and the odd one after it share a word of each row
  u64 rows[2];                      // first elements in [L, H, N, K]
#pragma unroll
  for (int half = 0; half < 2; half++)
    rows[half] = (((u64)u.position[half] * s.heads + u.head) * samples + u.sample[half]) * samples;
  u32 kept = 0;
#pragma unroll 1   // unrolled, the words of R = 4 took 168 registers
  for (int c = 0; c < BLOCKS; c++) {
    u32 bits[2] = {ALL, ALL};   // 16 for each of two neighbours, the left one's lower
    if (threshold && shared) {   // the even lane draws the upper row's word, the odd one the lower row's
      u64 drawn = word(site, ((odd ? rows[1] - u.first[1] : rows[0] - u.first[0]) + c * 8 + 2 * (t & 2)) >> 2);
      u32 own = odd ? (u32)(drawn >> 32) : (u32)drawn;
      u32 got = __shfl_xor_sync(ALL, odd ? (u32)drawn : (u32)(drawn >> 32), 1);
      bits[0] = odd ? got : own;
      bits[1] = odd ? own : got;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int j = c * 8 + 2 * t - u.first[half];
      bool left = (u32)j < (u32)samples, right = (u32)(j + 1) < (u32)samples;
      if (threshold && !shared && (left || right)) {
        u64 at = rows[half] + (i64)j;   // the left one's; it may be the last of the row before
        u64 drawn = word(site, at >> 2);
        bits[half] = bits_of(drawn, (u32)at);
        if ((at & 3) == 3) drawn = word(site, (at + 1) >> 2);
        bits[half] |= bits_of(drawn, (u32)at + 1) << 16;
      }
      left = left && (bits[half] & 0xffffu) >= threshold;
      right = right && bits[half] >> 16 >= threshold;
      kept |= ((u32)left | (u32)right << 1) << (4 * c + 2 * half);
    }
  }
  return kept;
}

__device__ __forceinline__ void drop_weights(float (*p)[4], u32 kept) {
#pragma unroll
  for (int c = 0; c < BLOCKS; c++)
#pragma unroll
    for (int i = 0; i < 4; i++) p[c][i] = kept >> (4 * c + i) & 1 ? p[c][i] : 0.f;
}

// 0, or NaN if a number of an accumulator is not finite
template <int COUNT> __device__ __forceinline__ float not_finite(const float (*acc)[4]) {
  float all = 0;
#pragma unroll
  for (int c = 0; c < COUNT; c++)
#pragma unroll
    for (int i = 0; i < 4; i++) all += acc[c][i] * 0.f;
  return all;
}

// weights[16 x ROWS] b[ROWS x HEAD] times a factor for each of the lane's two rows, to these rows of memory (null: not
// there), 32 columns at a time, as more would take registers. Returns 0, or NaN if a result of the tile is not finite.
__device__ __forceinline__ float write_product(
    const Weights<T, BLOCKS>& weights, const T* b, T* const* rows, const float* factors) {
  float all = 0;
  const int TOGETHER = sizeof(T) == 2 && WIDE <= 64 ? 2 : 1;
#pragma unroll TOGETHER
  for (int column = 0; column < WIDE / 32 * 32; column += 32) {
    float acc[4][4] = {};
    multiply<4>(acc, weights, b + column);
#pragma unroll
    for (int half = 0; half < 2; half++) write_blocks<4>(rows[half], acc, half, factors[half], column);
    all += not_finite<4>(acc);
  }
  if (WIDE % 32) {
    const int column = WIDE / 32 * 32;
    float acc[2][4] = {};
    multiply<2>(acc, weights, b + column);
#pragma unroll
    for (int half = 0; half < 2; half++) write_blocks<2>(rows[half], acc, half, factors[half], column);
    all += not_finite<2>(acc);
  }
  return all;
}

// The rows of `to` (`stride` elements each, this head's part) that are the lane's.
__device__ __forceinline__ void rows_of(T** rows, T* to, int stride, const Unit& u) {
#pragma unroll
  for (int half = 0; half < 2; half++)
    rows[half] = u.memory[half] < 0 ? nullptr : to + (i64)u.memory[half] * stride + u.head * HEAD;
}

// A position's infinities are nobody else's, but zero weights times another position's infinite rows are no numbers.
// Where a product was not finite, the unit is done again, position by position. (`turn` -1 is all of them at once.)
__device__ __forceinline__ int turns_left(float finite, int packed) {
  if (R > 1) return 0;   // one position a unit
  __syncwarp();          // the tiles may be filled again
  return packed > 1 && __ballot_sync(ALL, finite != 0.f) ? packed : 0;
}

// attended [M, C] = dropout(softmax(Q K^T scale)) V, and the log-sum-exp [L, N, H] of each row of scores (or null).
// Shared memory: 3 TILE elements a unit.
extern "C" __global__ void __launch_bounds__(128) attention_small_forward(
    const T* __restrict__ qkv, Heads s, float softmax_scale, const i64* __restrict__ seed, u32 threshold,
    float drop_scale, T* __restrict__ attended, float* __restrict__ lse) {
  int warp = threadIdx.x / 32, tile = warp % R * 16 * STRIDE, packed = ROWS / s.samples, width = s.heads * HEAD;
  int unit = blockIdx.x * (blockDim.x / LANES) + warp / R;
  T* q = (T*)shared_memory() + warp / R * 3 * TILE;
  T *k = q + TILE, *v = k + TILE;
  u64 site = threshold ? site_state(seed, 1) : 0;
  int turns = 0;
  for (int turn = -1; turn < turns; turn++) {
    Unit u = unit_at(s, unit, packed, turn < 0 ? 0 : turn, turn < 0 ? packed : turn + 1);
    stage<3>(q + tile, TILE, qkv, 3 * width, width, u);
    copy_commit();
    u32 kept = kept_weights(u, s, site, threshold);
    copy_wait<0>();
    meet();
    float p[BLOCKS][4] = {}, largest[2], sum[2], factors[2];
    rows_by_rows<BLOCKS>(p, q + tile, k);
    exponentials(p, u, s.samples, softmax_scale, largest, sum);
    T* rows[2];
    rows_of(rows, attended, width, u);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      factors[half] = drop_scale / sum[half];
      if (lse && u.memory[half] >= 0 && threadIdx.x % 4 == 0)
        lse[((i64)u.position[half] * s.samples + u.sample[half]) * s.heads + u.head] =
            largest[half] * softmax_scale + logf(sum[half]);
    }
    drop_weights(p, kept);
    Weights<T, BLOCKS> weights;
    take_weights(weights, p);
    float finite = write_product(weights, v, rows, factors);
    if (turn < 0) turns = turns_left(finite, packed);
    else meet();
  }
}

// grad_qkv [M, 3C], and attended (or null) made again as the forward made it.
//
// With W the exponentials of a row, r the inverse of their sum, P = r W, m = 1 where a weight stays and else 0, and
// d the scale of dropout (Y = d (m P) V):
//     G = m (grad_Y V^T), e = r sum_j W G, grad_V = d (m P)^T grad_Y,
//     grad_S = d P (G - e), grad_Q = scale grad_S K, grad_K = scale grad_S^T Q.
// What is constant, d and the scale, is left to the end, which keeps the weights of float16 clear of its smallest
// numbers. The transposes go through shared memory, over the keys and values, once nobody needs these.
// Shared memory: 2 TILE + 2 PLACE elements a unit.
extern "C" __global__ void __launch_bounds__(128) attention_small_backward(
    const T* __restrict__ qkv, const T* __restrict__ grad_attended, Heads s, float softmax_scale,
    const i64* __restrict__ seed, u32 threshold, float drop_scale, T* __restrict__ grad_qkv,
    T* __restrict__ attended) {
  int warp = threadIdx.x / 32, first = warp % R * 16, tile = first * STRIDE;
  int packed = ROWS / s.samples, width = s.heads * HEAD, unit = blockIdx.x * (blockDim.x / LANES) + warp / R;
  T* k = (T*)shared_memory() + warp / R * 2 * (TILE + PLACE);
  T *v = k + PLACE, *q = v + PLACE, *grad = q + TILE;
  u64 site = threshold ? site_state(seed, 1) : 0;
  int turns = 0;
  for (int turn = -1; turn < turns; turn++) {
    Unit u = unit_at(s, unit, packed, turn < 0 ? 0 : turn, turn < 0 ? packed : turn + 1);
    stage<1>(q + tile, 0, qkv, 3 * width, width, u);
    stage<2>(k + tile, PLACE, qkv + width, 3 * width, width, u);
    stage<1>(grad + tile, 0, grad_attended, width, width, u);
    copy_commit();
    u32 kept = kept_weights(u, s, site, threshold);
    copy_wait<0>();
    meet();
    float p[BLOCKS][4] = {}, largest[2], sum[2], finite = 0;
    rows_by_rows<BLOCKS>(p, q + tile, k);
    exponentials(p, u, s.samples, softmax_scale, largest, sum);
    T* rows[2];
    Weights<T, BLOCKS> weights;
    if (attended) {
      float stay[BLOCKS][4], factors[2];
#pragma unroll
      for (int c = 0; c < BLOCKS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) stay[c][i] = p[c][i];
      drop_weights(stay, kept);
      take_weights(weights, stay);
      rows_of(rows, attended, width, u);
#pragma unroll
      for (int half = 0; half < 2; half++) factors[half] = drop_scale / sum[half];
      finite += write_product(weights, v, rows, factors);
    }
    float of_p[BLOCKS][4] = {};
    rows_by_rows<BLOCKS>(of_p, grad + tile, v);
    drop_weights(of_p, kept);
    // of_p is G: to grad_S / d, and p to m P
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float inverse = 1.f / sum[half], mean = 0;
#pragma unroll
      for (int c = 0; c < BLOCKS; c++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          p[c][2 * half + e] *= inverse;
          mean += p[c][2 * half + e] * of_p[c][2 * half + e];
        }
      mean = quad_sum(mean);
#pragma unroll
      for (int c = 0; c < BLOCKS; c++)
#pragma unroll
        for (int e = 0; e < 2; e++) of_p[c][2 * half + e] = p[c][2 * half + e] * (of_p[c][2 * half + e] - mean);
    }
    drop_weights(p, kept);
    float scaled = softmax_scale * drop_scale, both[2] = {scaled, scaled}, dropped[2] = {drop_scale, drop_scale};
    take_weights(weights, of_p);
    rows_of(rows, grad_qkv, 3 * width, u);
    finite += write_product(weights, k, rows, both);

    meet();   // nobody needs the keys and values any more
    put_blocks<BLOCKS>(k + first * WEIGHTS_STRIDE, WEIGHTS_STRIDE, of_p, 1, 1);
    put_blocks<BLOCKS>(v + first * WEIGHTS_STRIDE, WEIGHTS_STRIDE, p, 1, 1);
    meet();
    rows_of(rows, grad_qkv + width, 3 * width, u);
    take_columns(weights, k + first, WEIGHTS_STRIDE);
    finite += write_product(weights, q, rows, both);
    rows_of(rows, grad_qkv + 2 * width, 3 * width, u);
    take_columns(weights, v + first, WEIGHTS_STRIDE);
    finite += write_product(weights, grad, rows, dropped);
    if (turn < 0) turns = turns_left(finite, packed);
    else meet();
  }
}
