// Attention of any number of queries and keys (V1, N > 64): keys stream past the queries of a block and, for gradients
// of keys and values, queries past its keys, so that no gradient needs atomics.
//
// -DPART=FORWARD | BY_QUERY | BY_KEY compiles one kernel. Its geometry, beside the tiles' defines:
//   FORWARD            KEYS a warp and step; TILES of 16 queries a warp; GROUPS of warps with queries of their own; the
//                      SPLIT warps of a group share its queries, and each has every SPLIT-th KEYS of the keys.
//   BY_QUERY, BY_KEY   HELD rows a block (queries; keys), PASSING rows a step, WARPS. A step's scores are cut into
//                      QUERY_WARPS x WARPS / QUERY_WARPS pieces, the gradient HELD x D into WARPS / SLICES x SLICES.
//
// A warp of 16 rows reads as many bytes of its right operand from shared memory as keep a quarter of an H100's tensor
// cores busy; one of 32 rows uses them twice.
#define FORWARD 0
#define BY_QUERY 1
#define BY_KEY 2
#if PART == FORWARD
const int THREADS = 32 * GROUPS * SPLIT;
#else
const int THREADS = 32 * WARPS;
#endif
const float LN2 = 0.6931471805599453f;

// The order of keys in the columns of scores: column j of the left or right (`half`) block of 16. A lane has columns 2t
// and 2t + 1 of both: these are keys 4t .. 4t + 3, whose dropout bits are one word. The upper lanes have their pairs
// swapped: else rows 0 and 8 of a tile would be read at once, which lie in one bank.
__device__ __forceinline__ int key_of(int half, int j) { return 4 * (j / 2) + 2 * (half ^ (j / 4)) + j % 2; }

// The rows of one head at one position, `step` elements apart.
template <class E> struct Strip { E* base; i64 step; int rows; };

// `rows` of the `total` rows at each position, of a tensor with rows of `stride` elements.
template <class E>
__device__ __forceinline__ Strip<E> strip(E* x, int stride, Heads s, int total, int rows, int l, int h) {
  i64 first = s.by_position ? (i64)l * total : l;
  return {x + first * stride + h * HEAD, (s.by_position ? 1 : s.positions) * (i64)stride, rows};
}
// The place in [L, N, H] of what a query has one number of.
__device__ __forceinline__ i64 statistic(Heads s, int l, int h, int n) {
  return ((i64)l * s.samples + n) * s.heads + h;
}

// COUNT rows from `first` on to shared memory, zeros for those that are not there.
template <int COUNT> __device__ __forceinline__ void stage(T* to, Strip<const T> from, int first) {
  const int PIECES = WIDE / PER, TOGETHER = THREADS / PIECES;   // rows at a time, where threads keep their columns
  if (THREADS % PIECES == 0) {
    int row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * PER;
    const T* at = from.base + (i64)(first + row) * from.step + column;
#pragma unroll 4   // more of them cost registers
    for (int i = 0; i < COUNT; i += TOGETHER, row += TOGETHER, at += TOGETHER * from.step) {
      bool there = first + row < from.rows && column < HEAD;
      if (COUNT % TOGETHER == 0 || row < COUNT) copy_async(to + row * STRIDE + column, there ? at : from.base, there);
    }
  } else {
    for (int i = threadIdx.x; i < COUNT * PIECES; i += THREADS) {
      int row = i / PIECES, column = i % PIECES * PER;
      bool there = first + row < from.rows && column < HEAD;
      const T* at = from.base + (i64)(first + row) * from.step + column;
      copy_async(to + row * STRIDE + column, there ? at : from.base, there);
    }
  }
}

// ---- dropout, four consecutive keys of a query at a time

struct Draws { u64 state, rows8; int shift; bool aligned; u32 limit; };

// For keys 4t .. 4t + 3 of the query that is number `row` of all positions and heads, and of those 8, 16, .. rows on.
__device__ __forceinline__ Draws draws(const i64* seed, u32 threshold, u64 row, int keys) {
  u64 at = row * keys;
  u64 state = site_state(seed, 1) + ((at >> 2) + 1 + threadIdx.x % 4) * GAMMA;
  return {state, 2ull * keys * GAMMA, (int)(at & 3) * 16, keys % 4 == 0, threshold << 16};
}
// Bits for the query 8 `rows8` rows on and for keys 4 `words` on, a pair for each half of 16 columns (key_of). A row
// may begin within a word: at the same place of it for all rows of a lane, as 8 K is a multiple of 4.
__device__ __forceinline__ void draw(u32* pair, const Draws& d, int rows8, int words) {
  u64 state = d.state + rows8 * d.rows8 + (u64)words * GAMMA, bits = mix(state);
  if (!d.aligned && d.shift) bits = bits >> d.shift | mix(state + GAMMA) << (64 - d.shift);
  u32 low = (u32)bits, high = (u32)(bits >> 32);
  bool swapped = threadIdx.x % 4 > 1;
  pair[0] = swapped ? high : low;
  pair[1] = swapped ? low : high;
}
// Of a pair, element i. A threshold of 65536 is a limit of 0, which keeps all; the scale, 0, drops them.
__device__ __forceinline__ bool kept(u32 pair, int i, u32 limit) { return (i ? pair : pair << 16) >= limit; }

// ---- products: 16 ROWS rows a warp, whose right operands are read once for all of them

// float32 is three tf32 products of high and low parts, or one where torch allows it.
template <int R> struct Split { u32 high[R][4], low[R][4]; };

// acc[16 R x 8] += a[16 R x 8] b[8 x 8]: of `b` a lane has two numbers, accumulators are `pitch` apart.
template <int R>
__device__ __forceinline__ void multiply_split(float (*acc)[4], int pitch, const Split<R>& a, float b0, float b1) {
  u32 high[2], low[2];
  split(b0, high[0], low[0]);
  split(b1, high[1], low[1]);
#pragma unroll
  for (int r = 0; r < R; r++) {
    if (!TF32) {   // the small ones first
      mma_tf32(acc[r * pitch], a.low[r], high);
      mma_tf32(acc[r * pitch], a.high[r], low);
    }
    mma_tf32(acc[r * pitch], a.high[r], high);
  }
}
template <int R, int C>
__device__ __forceinline__ void scores_float(float (*acc)[2 * C][4], const float* a, const float* b) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
  for (int k = 0; k < WIDE; k += 8) {
    Split<R> left;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        split(a[(r * 16 + g + i % 2 * 8) * STRIDE + k + t + i / 2 * 4], left.high[r][i], left.low[r][i]);
#pragma unroll
    for (int c = 0; c < 2 * C; c++) {
      const float* at = b + (c / 2 * 16 + key_of(c % 2, g)) * STRIDE + k + t;
      multiply_split<R>(acc[0] + c, 2 * C, left, at[0], at[4]);
    }
  }
}
// In a step of 8, columns 2t and 2t + 1 are taken for k = t and t + 4, of weights and rows alike (see tiles.cu).
template <int R, int C>
__device__ __forceinline__ void weigh_float(float (*acc)[WIDE / 8][4], const float (*p)[2 * C][4], const float* b) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int c = 0; c < 2 * C; c++) {
    Split<R> left;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) split(p[r][c][i % 2 * 2 + i / 2], left.high[r][i], left.low[r][i]);
    const float* at = b + (c / 2 * 16 + key_of(c % 2, 2 * t)) * STRIDE + g;
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++)
      multiply_split<R>(acc[0] + n, WIDE / 8, left, at[n * 8], at[STRIDE + n * 8]);
  }
}
template <int R, int C, int DEPTH, bool TRANSPOSED>
__device__ __forceinline__ void accumulate_float(float (*acc)[2 * C][4], const float* a, int a_stride, const float* b,
                                                 int columns) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
  for (int k = 0; k < DEPTH; k += 8) {
    Split<R> left;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int row = r * 16 + g + i % 2 * 8, column = k + 2 * t + i / 2;
        split(a[TRANSPOSED ? column * a_stride + row : row * a_stride + column], left.high[r][i], left.low[r][i]);
      }
    const float* at = b + (k + 2 * t) * STRIDE + g;
#pragma unroll
    for (int n = 0; n < 2 * C; n++) {
      if (WIDE % (16 * C) && n * 8 >= columns) break;
      multiply_split<R>(acc[0] + n, 2 * C, left, at[n * 8], at[STRIDE + n * 8]);
    }
  }
}

// acc[16 R x 16 C] += a[16 R x WIDE] b[16 C x WIDE]^T, columns in the order of key_of
template <int R, int C, class E>
__device__ __forceinline__ void scores(float (*acc)[2 * C][4], const E* a, const E* b) {
  if constexpr (PER == 4) scores_float<R, C>(acc, a, b);
  else {
    int lane = threadIdx.x % 32;
    a += lane % 16 * STRIDE + lane / 16 * 8;
    b += key_of(lane / 16, lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < WIDE; k += 16) {
      u32 left[R][4];
#pragma unroll
      for (int r = 0; r < R; r++) ldmatrix4(left[r], a + r * 16 * STRIDE + k);
#pragma unroll
      for (int c = 0; c < C; c++) {
        u32 right[4];
        ldmatrix4(right, b + c * 16 * STRIDE + k);
#pragma unroll
        for (int r = 0; r < R; r++) {
          mma(E(), acc[r][2 * c], left[r], right);
          mma(E(), acc[r][2 * c + 1], left[r], right + 2);
        }
      }
    }
  }
}
// acc[16 R x WIDE] += p[16 R x 16 C] b[16 C x WIDE], p as `scores` leaves it
template <int R, int C, class E>
__device__ __forceinline__ void weigh(float (*acc)[WIDE / 8][4], const float (*p)[2 * C][4], const E* b) {
  if constexpr (PER == 4) weigh_float<R, C>(acc, p, b);
  else {
    int lane = threadIdx.x % 32;
    b += key_of(lane / 8 % 2, lane % 8) * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int c = 0; c < C; c++) {
      u32 left[R][4];
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float* from = p[r][2 * c + i / 2] + i % 2 * 2;
          left[r][i] = pack(E(), from[0], from[1]);
        }
#pragma unroll
      for (int n = 0; n < WIDE / 8; n += 2) {
        u32 right[4];
        ldmatrix4_trans(right, b + c * 16 * STRIDE + n * 8);
#pragma unroll
        for (int r = 0; r < R; r++) {
          mma(E(), acc[r][n], left[r], right);
          mma(E(), acc[r][n + 1], left[r], right + 2);
        }
      }
    }
  }
}
// acc[16 R x 16 C] += a[16 R x DEPTH] b[DEPTH x 16 C], of which the first `columns` are there. `a` lies in shared
// memory as it is, or as its transpose.
template <int R, int C, int DEPTH, bool TRANSPOSED, class E>
__device__ __forceinline__ void accumulate(float (*acc)[2 * C][4], const E* a, int a_stride, const E* b, int columns) {
  if constexpr (PER == 4) accumulate_float<R, C, DEPTH, TRANSPOSED>(acc, a, a_stride, b, columns);
  else {
    int lane = threadIdx.x % 32;
    a += TRANSPOSED ? (lane % 8 + lane / 16 * 8) * a_stride + lane / 8 % 2 * 8 : lane % 16 * a_stride + lane / 16 * 8;
    b += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      u32 left[R][4];
#pragma unroll
      for (int r = 0; r < R; r++) {
        if (TRANSPOSED) ldmatrix4_trans(left[r], a + k * a_stride + r * 16);
        else ldmatrix4(left[r], a + r * 16 * a_stride + k);
      }
#pragma unroll
      for (int c = 0; c < C; c++) {
        if (WIDE % (16 * C) && c * 16 >= columns) break;
        u32 right[4];
        ldmatrix4_trans(right, b + k * STRIDE + c * 16);
#pragma unroll
        for (int r = 0; r < R; r++) {
          mma(E(), acc[r][2 * c], left[r], right);
          mma(E(), acc[r][2 * c + 1], left[r], right + 2);
        }
      }
    }
  }
}

// Scores of keys from `left` on have no weight.
template <int R, int C> __device__ __forceinline__ void hide(float (*p)[2 * C][4], int left) {
  if (left >= 16 * C) return;
#pragma unroll
  for (int c = 0; c < 2 * C; c++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      bool hidden = c / 2 * 16 + key_of(c % 2, threadIdx.x % 4 * 2 + e % 2) >= left;
#pragma unroll
      for (int r = 0; r < R; r++) p[r][c][e] = hidden ? -INFINITY_ : p[r][c][e];
    }
}

#if PART == FORWARD

const int ROWS = 16 * TILES * GROUPS, STEP = KEYS * SPLIT, PIECES = HEAD / PER;
// By how many powers of two a row's weights may grow before all that it has is made smaller.
const float SLACK = 8;

// Softmax over the keys that have passed (Milakov and Gimelshein, 2018, arXiv:1805.02867). A row's level is a rounded
// scaled score, within SLACK of the highest. exp2(score * factor - level) is one fused multiply-add away from the
// unrounded score: whatever rounding makes of a level of whatever size is common to a row and leaves with its sum.
extern "C" __global__ void __launch_bounds__(THREADS) attention_long_forward(
    const T* __restrict__ q, int q_stride, const T* __restrict__ k, const T* __restrict__ v, int kv_stride, Heads s,
    float softmax_scale, const i64* seed, u32 threshold, float drop_scale, T* __restrict__ attended,
    float* __restrict__ lse) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  int group = warp % GROUPS, part = warp / GROUPS;
  int blocks = (s.samples + ROWS - 1) / ROWS, unit = blockIdx.x / blocks, first = blockIdx.x % blocks * ROWS;
  int h = unit % s.heads, l = unit / s.heads;
  T* rows = (T*)shared_memory();
  T* passing = rows + ROWS * STRIDE;   // keys and values of a step, and those of the next
  Strip<const T> queries = strip(q, q_stride, s, s.samples, s.samples, l, h);
  Strip<const T> keys = strip(k, kv_stride, s, s.keys, s.counted, l, h);
  Strip<const T> values = strip(v, kv_stride, s, s.keys, s.counted, l, h);
  stage<ROWS>(rows, queries, first);
  stage<STEP>(passing, keys, 0);
  stage<STEP>(passing + STEP * STRIDE, values, 0);
  copy_commit();

  int own = group * 16 * TILES;   // the first of the warp's rows
  Draws d = {};
  if (threshold) d = draws(seed, threshold, ((u64)l * s.heads + h) * s.samples + first + own + g, s.keys);
  float factor = softmax_scale * LOG2E, level[TILES][2], sum[TILES][2], o[TILES][WIDE / 8][4] = {};
#pragma unroll
  for (int r = 0; r < TILES; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      level[r][half] = -INFINITY_;
      sum[r][half] = 0;
    }
  int steps = (s.counted + STEP - 1) / STEP;
  for (int i = 0; i < steps; i++) {
    copy_wait<0>();
    __syncthreads();   // this step is here, and the one before is done with
    if (i + 1 < steps) {
      T* next = passing + (i + 1) % 2 * 2 * STEP * STRIDE;
      stage<STEP>(next, keys, (i + 1) * STEP);
      stage<STEP>(next + STEP * STRIDE, values, (i + 1) * STEP);
    }
    copy_commit();
    int first_key = i * STEP + part * KEYS;
    if (first_key >= s.counted) continue;

    const T* now = passing + (i % 2 * 2 * STEP + part * KEYS) * STRIDE;
    float p[TILES][KEYS / 8][4] = {};
    scores<TILES, KEYS / 16>(p, rows + own * STRIDE, now);
    hide<TILES, KEYS / 16>(p, s.counted - first_key);
    bool higher[TILES][2], any = false;
    float high[TILES][2];
#pragma unroll
    for (int r = 0; r < TILES; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = -INFINITY_;
#pragma unroll
        for (int c = 0; c < KEYS / 8; c++) top = fmaxf(top, fmaxf(p[r][c][2 * half], p[r][c][2 * half + 1]));
        high[r][half] = quad_max(top) * factor;
        higher[r][half] = high[r][half] > level[r][half] + SLACK;
        any |= higher[r][half];
      }
    if (__any_sync(0xffffffffu, any)) {
#pragma unroll
      for (int r = 0; r < TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float shrink = higher[r][half] ? exp2_fast(level[r][half] - high[r][half]) : 1.f;
          level[r][half] = higher[r][half] ? high[r][half] : level[r][half];
          sum[r][half] *= shrink;
#pragma unroll
          for (int c = 0; c < WIDE / 8; c++) {
            o[r][c][2 * half] *= shrink;
            o[r][c][2 * half + 1] *= shrink;
          }
        }
    }
#pragma unroll
    for (int r = 0; r < TILES; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int c = 0; c < KEYS / 16; c++) {
          u32 pair[2] = {~0u, ~0u};
          if (threshold) draw(pair, d, 2 * r + half, first_key / 4 + 4 * c);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            float& x = p[r][2 * c + e / 2][2 * half + e % 2];
            x = exp2_fast(fmaf(x, factor, -level[r][half]));
            sum[r][half] += x;
            x = kept(pair[e / 2], e % 2, d.limit) ? x : 0.f;
          }
        }
      }
    weigh<TILES, KEYS / 16>(o, p, now + STEP * STRIDE);
  }

  float scale = threshold ? drop_scale : 1.f;
  Strip<T> to = strip(attended, s.heads * HEAD, s, s.samples, s.samples, l, h);
#pragma unroll
  for (int r = 0; r < TILES; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) sum[r][half] = quad_sum(sum[r][half]);
  if (SPLIT == 1) {
#pragma unroll
    for (int r = 0; r < TILES; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int n = first + own + r * 16 + half * 8 + g;
        bool there = n < s.samples;
        if (lse && t == 0 && there) lse[statistic(s, l, h, n)] = level[r][half] * LN2 + logf(sum[r][half]);
        float inverse = scale / sum[r][half];
        T* row = there ? to.base + n * to.step : nullptr;
        const int COUNT = WIDE % 32 ? 2 : 4;
#pragma unroll
        for (int c = 0; c < WIDE / 8; c += COUNT) write_blocks<COUNT>(row, o[r] + c, half, inverse, c * 8);
      }
  } else {
    // What the warps of a group have of each row is added up in the order of their keys.
    const int ROW = WIDE + 4;
    float* outputs = (float*)shared_memory();
    float* levels = outputs + SPLIT * ROWS * ROW;
    float* sums = levels + SPLIT * ROWS;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < TILES; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int row = part * ROWS + own + r * 16 + half * 8 + g;
        if (t == 0) {
          levels[row] = level[r][half];
          sums[row] = sum[r][half];
        }
#pragma unroll
        for (int c = 0; c < WIDE / 8; c++)
          put2(outputs + row * ROW + c * 8 + 2 * t, o[r][c][2 * half], o[r][c][2 * half + 1]);
      }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
      int row = i / PIECES, column = i % PIECES * PER, n = first + row;
      if (n >= s.samples) continue;
      float high = -INFINITY_, total = 0, out[PER] = {};
      for (int w = 0; w < SPLIT; w++) high = fmaxf(high, levels[w * ROWS + row]);
      for (int w = 0; w < SPLIT; w++) {
        int at = w * ROWS + row;
        float share = exp2_fast(levels[at] - high);   // 0 for a warp that no keys were left for
        total += sums[at] * share;
        for (int e = 0; e < PER; e++) out[e] += outputs[at * ROW + column + e] * share;
      }
      for (int e = 0; e < PER; e++) out[e] *= scale / total;
      store(to.base + n * to.step + column, out);
      if (lse && column == 0) lse[statistic(s, l, h, n)] = high * LN2 + logf(total);
    }
  }
}

#else

// With S = scale Q K^T, P = softmax(S), P~ its dropout and Y = P~ V (as in aten::attention):
//   grad_V = P~^T grad_Y, grad_P = dropout(grad_Y V^T), delta = sum_j P grad_P = grad_Y . Y,
//   grad_S = P (grad_P - delta), grad_Q = scale grad_S K, grad_K = scale grad_S^T Q.
// P is exp2(S log2 e - lse log2 e) over its own sum, which is 1 but for the rounding of lse: up to 1 % off at scores of
// 1e5. BY_QUERY sees whole rows: it makes the sum and divides by it, and leaves 1 / sum (`share`) and delta to BY_KEY.
// The scale of dropout waits for the end: with m the mask of 0 and 1,
//   grad_S = drop_scale P (m grad_Y V^T - delta / drop_scale).
const int KEY_WARPS = WARPS / QUERY_WARPS;
const int QUERIES = PART == BY_QUERY ? HELD : PASSING, KEYS = PART == BY_QUERY ? PASSING : HELD;
const int QT = QUERIES / QUERY_WARPS / 16, KT = KEYS / KEY_WARPS / 16;   // 16 x 16 tiles of a warp's scores
const int RT = HELD / (WARPS / SLICES) / 16, DT = (WIDE / 16 + SLICES - 1) / SLICES;   // and of its gradient
// Rows of grad_S and P~ in shared memory: 16 bytes of padding, 32 where float32 is read along columns.
const int ACROSS = KEYS + (PART == BY_KEY && PER == 4 ? 2 : 1) * PER;
static_assert(QT >= 1 && KT >= 1 && RT >= 1, "a warp has a tile");
static_assert(QT * 16 * QUERY_WARPS == QUERIES && KT * 16 * KEY_WARPS == KEYS, "the scores are cut evenly");
static_assert(RT * 16 * (WARPS / SLICES) == HELD && WARPS % SLICES == 0, "the rows of the gradient are cut evenly");
static_assert(DT * 16 * (SLICES - 1) < WIDE, "the last slice, which may be narrower, has columns");

// Of a lane's queries.
struct Terms { float level[QT][2], delta[QT][2], share[QT][2]; };

// Makes grad_S of what a warp has of a step's scores and, for BY_KEY, P~, both without drop_scale. `left` are the keys
// from the first on that count; `sum` adds up P. `rows8` and `words` say where the step is for dropout.
__device__ __forceinline__ void step_scores(const T* q, const T* grad, const T* k, const T* v, const Terms& of,
                                            float factor, const Draws& d, bool dropout, int rows8, int words, int left,
                                            float (*sum)[2], T* grad_s, T* dropped) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float p[QT][2 * KT][4] = {}, grad_p[QT][2 * KT][4] = {};
  scores<QT, KT>(p, q, k);
  scores<QT, KT>(grad_p, grad, v);
  if (PART == BY_QUERY) hide<QT, KT>(p, left);
#pragma unroll
  for (int r = 0; r < QT; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float level = of.level[r][half], delta = of.delta[r][half];
#pragma unroll
      for (int c = 0; c < KT; c++) {
        u32 pair[2] = {~0u, ~0u};
        if (dropout) draw(pair, d, rows8 + 2 * r + half, words + 4 * c);
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float weight[2], of_s[2];
#pragma unroll
          for (int i = 0; i < 2; i++) {
            weight[i] = exp2_fast(fmaf(p[r][2 * c + e][2 * half + i], factor, -level));
            if (PART == BY_QUERY) sum[r][half] += weight[i];
            else weight[i] *= of.share[r][half];
            bool keep = kept(pair[e], i, d.limit);
            of_s[i] = weight[i] * ((keep ? grad_p[r][2 * c + e][2 * half + i] : 0.f) - delta);
            weight[i] = keep ? weight[i] : 0.f;
          }
          int at = (r * 16 + half * 8 + g) * ACROSS + c * 16 + key_of(e, 2 * t);
          put2(grad_s + at, of_s[0], of_s[1]);
          if (PART == BY_KEY) put2(dropped + at, weight[0], weight[1]);
        }
      }
    }
}

// A warp's piece of the gradient, times `scale`, to the rows from `first` on: zeros from `counted` on.
__device__ __forceinline__ void write_gradient(Strip<T> to, int first, int counted, int column, float (*acc)[2 * DT][4],
                                               const float (*scale)[2]) {
  const int COUNT = DT % 2 ? 2 : 4;
#pragma unroll
  for (int r = 0; r < RT; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int n = first + r * 16 + half * 8 + threadIdx.x % 32 / 4;
      if (n >= counted) {
#pragma unroll
        for (int c = 0; c < 2 * DT; c++) acc[r][c][2 * half] = acc[r][c][2 * half + 1] = 0;
      }
      T* row = n < to.rows ? to.base + n * to.step : nullptr;
#pragma unroll
      for (int c = 0; c < 2 * DT; c += COUNT)
        write_blocks<COUNT>(row, acc[r] + c, half, scale[r][half], column + c * 8);
    }
}

#if PART == BY_QUERY

extern "C" __global__ void __launch_bounds__(THREADS) attention_long_backward_query(
    const T* __restrict__ q, int q_stride, const T* __restrict__ k, const T* __restrict__ v, int kv_stride,
    const float* __restrict__ lse, const T* __restrict__ attended, const T* __restrict__ grad_attended, Heads s,
    float softmax_scale, const i64* seed, u32 threshold, float drop_scale, T* __restrict__ grad_q, int grad_q_stride,
    float* __restrict__ delta, float* __restrict__ share) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, width = s.heads * HEAD;
  int blocks = (s.samples + HELD - 1) / HELD, unit = blockIdx.x / blocks, first = blockIdx.x % blocks * HELD;
  int h = unit % s.heads, l = unit / s.heads, steps = (s.counted + PASSING - 1) / PASSING;
  T* held = (T*)shared_memory();
  T* held_grad = held + HELD * STRIDE;
  T* passing = held_grad + HELD * STRIDE;   // keys and values of a step, and those of the next
  T* grad_s = passing + (steps > 1 ? 4 : 2) * PASSING * STRIDE;
  float* of_rows = (float*)(grad_s + QUERIES * ACROSS);   // delta / drop_scale; at the end sums
  Strip<const T> queries = strip(q, q_stride, s, s.samples, s.samples, l, h);
  Strip<const T> grads = strip(grad_attended, width, s, s.samples, s.samples, l, h);
  Strip<const T> keys = strip(k, kv_stride, s, s.keys, s.counted, l, h);
  Strip<const T> values = strip(v, kv_stride, s, s.keys, s.counted, l, h);
  stage<HELD>(held, queries, first);
  stage<HELD>(held_grad, grads, first);
  stage<PASSING>(passing, keys, 0);
  stage<PASSING>(passing + PASSING * STRIDE, values, 0);
  copy_commit();

  float unscale = 1.f - (float)threshold / 65536.f;   // 1 / drop_scale, and 0 for 0
  Strip<const T> outputs = strip(attended, width, s, s.samples, s.samples, l, h);
  for (int row = warp * 4 + lane / 8; row < HELD; row += WARPS * 4) {   // 8 lanes each
    int n = first + row;
    float sum = 0;
    for (int c = lane % 8 * PER; c < HEAD && n < s.samples; c += 8 * PER) {
      float y[PER], grad_y[PER];
      load(y, outputs.base + n * outputs.step + c);
      load(grad_y, grads.base + n * grads.step + c);
      for (int e = 0; e < PER; e++) sum += y[e] * grad_y[e];
    }
    for (int across = 4; across; across >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, across);
    if (lane % 8 == 0) {
      of_rows[row] = sum * unscale;
      if (n < s.samples) delta[statistic(s, l, h, n)] = sum;
    }
  }
  __syncthreads();

  int own_queries = warp / KEY_WARPS * 16 * QT, own_keys = warp % KEY_WARPS * 16 * KT;
  int own_rows = warp / SLICES * 16 * RT, own_columns = warp % SLICES * 16 * DT;
  Draws d = {};
  if (threshold) d = draws(seed, threshold, ((u64)l * s.heads + h) * s.samples + first + own_queries + g, s.keys);
  Terms of;
  float factor = softmax_scale * LOG2E, sum[QT][2], acc[RT][2 * DT][4] = {};
#pragma unroll
  for (int r = 0; r < QT; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = own_queries + r * 16 + half * 8 + g, n = first + row;
      of.level[r][half] = n < s.samples ? lse[statistic(s, l, h, n)] * LOG2E : INFINITY_;
      of.delta[r][half] = of_rows[row];
      sum[r][half] = 0;
    }
  for (int i = 0; i < steps; i++) {
    copy_wait<0>();
    __syncthreads();   // this step is here, and the one before is done with
    if (i + 1 < steps) {
      T* next = passing + (i + 1) % 2 * 2 * PASSING * STRIDE;
      stage<PASSING>(next, keys, (i + 1) * PASSING);
      stage<PASSING>(next + PASSING * STRIDE, values, (i + 1) * PASSING);
    }
    copy_commit();
    const T* now = passing + i % 2 * 2 * PASSING * STRIDE;
    int first_key = i * PASSING + own_keys;
    step_scores(held + own_queries * STRIDE, held_grad + own_queries * STRIDE, now + own_keys * STRIDE,
                now + (PASSING + own_keys) * STRIDE, of, factor, d, threshold, 0, first_key / 4, s.counted - first_key,
                sum, grad_s + own_queries * ACROSS + own_keys, nullptr);
    __syncthreads();
    accumulate<RT, DT, PASSING, false>(acc, grad_s + own_rows * ACROSS, ACROSS, now + own_columns, WIDE - own_columns);
  }

  // Every warp has read its delta before the first step.
#pragma unroll
  for (int r = 0; r < QT; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float whole = quad_sum(sum[r][half]);
      if (t == 0) of_rows[warp % KEY_WARPS * HELD + own_queries + r * 16 + half * 8 + g] = whole;
    }
  __syncthreads();
  float scale[RT][2];
#pragma unroll
  for (int r = 0; r < RT; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = own_rows + r * 16 + half * 8 + g, n = first + row;
      float whole = 0;
      for (int w = 0; w < KEY_WARPS; w++) whole += of_rows[w * HELD + row];
      if (own_columns == 0 && t == 0 && n < s.samples) share[statistic(s, l, h, n)] = 1 / whole;
      scale[r][half] = softmax_scale * (threshold ? drop_scale : 1.f) / whole;
    }
  Strip<T> to = strip(grad_q, grad_q_stride, s, s.samples, s.samples, l, h);
  write_gradient(to, first + own_rows, s.samples, own_columns, acc, scale);
}

#else

extern "C" __global__ void __launch_bounds__(THREADS) attention_long_backward_key(
    const T* __restrict__ q, int q_stride, const T* __restrict__ k, const T* __restrict__ v, int kv_stride,
    const float* __restrict__ lse, const float* __restrict__ delta, const float* __restrict__ share,
    const T* __restrict__ grad_attended, Heads s, float softmax_scale, const i64* seed, u32 threshold, float drop_scale,
    T* __restrict__ grad_k, T* __restrict__ grad_v, int grad_kv_stride) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  int blocks = (s.keys + HELD - 1) / HELD, unit = blockIdx.x / blocks, first = blockIdx.x % blocks * HELD;
  int h = unit % s.heads, l = unit / s.heads;
  int steps = first < s.counted ? (s.samples + PASSING - 1) / PASSING : 0;   // keys that do not count get zeros
  T* held = (T*)shared_memory();
  T* held_values = held + HELD * STRIDE;
  T* passing = held_values + HELD * STRIDE;   // queries and gradients of a step, and those of the next
  T* grad_s = passing + (steps > 1 ? 4 : 2) * PASSING * STRIDE;
  T* dropped = grad_s + QUERIES * ACROSS;
  Strip<const T> queries = strip(q, q_stride, s, s.samples, s.samples, l, h);
  Strip<const T> grads = strip(grad_attended, s.heads * HEAD, s, s.samples, s.samples, l, h);
  if (steps) {
    stage<HELD>(held, strip(k, kv_stride, s, s.keys, s.counted, l, h), first);
    stage<HELD>(held_values, strip(v, kv_stride, s, s.keys, s.counted, l, h), first);
    stage<PASSING>(passing, queries, 0);
    stage<PASSING>(passing + PASSING * STRIDE, grads, 0);
  }
  copy_commit();

  int own_queries = warp / KEY_WARPS * 16 * QT, own_keys = warp % KEY_WARPS * 16 * KT;
  int own_rows = warp / SLICES * 16 * RT, own_columns = warp % SLICES * 16 * DT;
  Draws d = {};
  if (threshold) d = draws(seed, threshold, ((u64)l * s.heads + h) * s.samples + own_queries + g, s.keys);
  float factor = softmax_scale * LOG2E, unscale = 1.f - (float)threshold / 65536.f;   // 1 / drop_scale, and 0 for 0
  float of_k[RT][2 * DT][4] = {}, of_v[RT][2 * DT][4] = {};
  for (int i = 0; i < steps; i++) {
    Terms of;
#pragma unroll
    for (int r = 0; r < QT; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int n = i * PASSING + own_queries + r * 16 + half * 8 + g;
        bool there = n < s.samples;
        i64 at = statistic(s, l, h, there ? n : 0);
        of.level[r][half] = there ? lse[at] * LOG2E : INFINITY_;
        of.delta[r][half] = there ? delta[at] * unscale : 0.f;
        of.share[r][half] = there ? share[at] : 0.f;
      }
    copy_wait<0>();
    __syncthreads();   // this step is here, and the one before is done with
    if (i + 1 < steps) {
      T* next = passing + (i + 1) % 2 * 2 * PASSING * STRIDE;
      stage<PASSING>(next, queries, (i + 1) * PASSING);
      stage<PASSING>(next + PASSING * STRIDE, grads, (i + 1) * PASSING);
    }
    copy_commit();
    const T* now = passing + i % 2 * 2 * PASSING * STRIDE;
    int place = own_queries * ACROSS + own_keys;
    step_scores(now + own_queries * STRIDE, now + (PASSING + own_queries) * STRIDE, held + own_keys * STRIDE,
                held_values + own_keys * STRIDE, of, factor, d, threshold, i * (PASSING / 8), (first + own_keys) / 4, 0,
                nullptr, grad_s + place, dropped + place);
    __syncthreads();
    accumulate<RT, DT, PASSING, true>(of_v, dropped + own_rows, ACROSS, now + PASSING * STRIDE + own_columns,
                                      WIDE - own_columns);
    accumulate<RT, DT, PASSING, true>(of_k, grad_s + own_rows, ACROSS, now + own_columns, WIDE - own_columns);
  }

  float scale = threshold ? drop_scale : 1.f, scale_k[RT][2], scale_v[RT][2];
#pragma unroll
  for (int r = 0; r < RT; r++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      scale_k[r][half] = softmax_scale * scale;
      scale_v[r][half] = scale;
    }
  Strip<T> to_k = strip(grad_k, grad_kv_stride, s, s.keys, s.keys, l, h);
  Strip<T> to_v = strip(grad_v, grad_kv_stride, s, s.keys, s.keys, l, h);
  write_gradient(to_k, first + own_rows, s.counted, own_columns, of_k, scale_k);
  write_gradient(to_v, first + own_rows, s.counted, own_columns, of_v, scale_v);
}

#endif
#endif
