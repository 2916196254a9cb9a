// The feed-forward's activation with the dropout behind it.
//
// -DELEMENT   of the hidden layer (bf16, f16, float)
// -DGELU      1: GELU (Hendrycks and Gimpel, 2016), with the normal distribution itself; 0: ReLU
//
// A thread has 16 bytes of the columns and some rows: what turns a row of memory into a place of the mask is then
// done once for each, and the backward adds its columns up in registers.

// The rows of a token tensor [N, L, F], or [L, N, F] where they lie by position.
struct Rows { int rows, channels, positions, samples, by_position; };

// The index, in [N, L, F], of the first element of a row of memory. A multiple of 4, as F is.
__device__ __forceinline__ u64 place(Rows s, int row) {
  if (!s.by_position) return (u64)row * s.channels;
  int l = row / s.samples, n = row - l * s.samples;
  return ((u64)n * s.positions + l) * s.channels;
}

const int N = Per<ELEMENT>::N, WIDE = 32 * N;
const u32 HIDDEN = 2;   // the site of call::random
// Rows of a thread that are under way at once.
const int AT_ONCE = 2;

// ---- GELU: each fused operation is written down, so that the backward makes again what the forward gave, bit by bit

#ifdef EMULATED
inline float inverse(float x) { return 1.f / x; }
#else
// Within 2 units in the last place; 0 for infinity.
__device__ __forceinline__ float inverse(float x) { return __fdividef(1.f, x); }
#endif

// e^(-z^2 / 2). float32 would lose as many bits as the exponent has before the point: what the square and the product
// have rounded away is put back.
__device__ __forceinline__ float bell(float z) {
  const float K = -0.72134752044448170f;   // -1 / (2 ln 2) ...
  const float K_REST = -9.62981495e-9f;     // ... and what float32 leaves of it
  float square = z * z, exponent = square * K, power = exp2_fast(exponent);
  if (sizeof(ELEMENT) < 4) return power;
  float rest = fmaf(square, K_REST, fmaf(fmaf(z, z, -square), K, fmaf(square, K, -exponent)));
  return square < 256.f ? fmaf(power, rest * 0.69314718f, power) : power;
}
// The normal distribution at -|z|, divided by bell(z): t P(t) with t = 1 / (1 + p |z|), as Hastings (1955) has it
// for erf, but P is ours, of least relative error over all z: 7.5e-6 of degree 5 for 16 bits, 2.5e-8 of degree 8.
// Tried and dropped: erff, whose instructions take longer than the memory for 16 bits (and 1 + erf loses the left tail).
__device__ __forceinline__ float tail(float z) {
  if (sizeof(ELEMENT) < 4) {
    float t = inverse(fmaf(0.31f, fabsf(z), 1.f));
    float p = fmaf(-0.0723000397f, t, 0.175912905f);
    p = fmaf(p, t, 0.0205024286f);
    p = fmaf(p, t, 0.131104597f);
    p = fmaf(p, t, 0.120965613f);
    p = fmaf(p, t, 0.123817447f);
    return p * t;
  }
  float t = inverse(fmaf(0.27f, fabsf(z), 1.f));
  float p = fmaf(0.0290643336f, t, -0.127003415f);
  p = fmaf(p, t, 0.170891815f);
  p = fmaf(p, t, -0.0705221392f);
  p = fmaf(p, t, 0.108767594f);
  p = fmaf(p, t, 0.0716311869f);
  p = fmaf(p, t, 0.101922528f);
  p = fmaf(p, t, 0.10752644f);
  p = fmaf(p, t, 0.107721668f);
  return p * t;
}
__device__ __forceinline__ float normal(float z, float bell) {
  float beyond = tail(z);
  return z > 0 ? fmaf(-beyond, bell, 1.f) : beyond * bell;
}
__device__ __forceinline__ float activation(float z) {
  if (GELU) return z * normal(z, bell(z));
  return z <= 0 ? 0.f : z;   // what is no number stays so
}

// activated = drop(act(z)), in the memory of z if that is wanted.
// Grid: (rows / (AT_ONCE warps) rounded up, F / WIDE rounded up).
extern "C" __global__ void __launch_bounds__(256) activation_forward(
    const ELEMENT* z, const i64* __restrict__ seed, u32 threshold, float scale, Rows shape, ELEMENT* activated) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int column = blockIdx.y * WIDE + lane * N, first = blockIdx.x * warps * AT_ONCE + warp;
  if (column >= shape.channels) return;
  u64 state = threshold ? site_state(seed, HIDDEN) : 0;
  Words4 from[AT_ONCE];
#pragma unroll
  for (int k = 0; k < AT_ONCE; k++) {
    int row = first + k * warps;
    if (row < shape.rows) from[k] = *(const Words4*)(z + (i64)row * shape.channels + column);
  }
#pragma unroll
  for (int k = 0; k < AT_ONCE; k++) {
    int row = first + k * warps;
    if (row >= shape.rows) return;
    float x[N];
    unpack(x, from[k], ELEMENT());
    for (int i = 0; i < N; i++) x[i] = activation(x[i]);
    if (threshold) drop<N>(x, state, (place(shape, row) / 4 + column / 4) * 4, threshold, scale);
    store(activated + (i64)row * shape.channels + column, x);
  }
}

// grad_z = act'(z) drop(grad_activated), in the memory of grad_activated if that is wanted; for GELU what the forward
// gave, made again, where `activated` is not null; and the sums of grad_z over the rows of a block where at_bias >= 0.
//
// ReLU needs no mask: what the forward has dropped is 0 in `kept` like what did not pass. Its comparison is torch's.
// Grid: (row blocks, F / WIDE rounded up). Shared: [warps, WIDE] floats.
extern "C" __global__ void __launch_bounds__(512, 2) activation_backward(
    const ELEMENT* grad_activated, const ELEMENT* __restrict__ kept, const i64* __restrict__ seed, u32 threshold,
    float scale, Rows shape, ELEMENT* grad_z, ELEMENT* __restrict__ activated, float* __restrict__ partials, int stride,
    int at_bias) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int first = blockIdx.y * WIDE, column = first + lane * N, step = gridDim.x * warps;
  bool there = column < shape.channels;
  u64 state = GELU && threshold ? site_state(seed, HIDDEN) : 0;
  float sums[N] = {};
  for (int top = blockIdx.x * warps + warp; there && top < shape.rows; top += AT_ONCE * step) {
    Words4 grads[AT_ONCE], known[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      i64 at = (i64)(top + k * step) * shape.channels + column;
      if (top + k * step >= shape.rows) continue;
      grads[k] = *(const Words4*)(grad_activated + at);
      known[k] = *(const Words4*)(kept + at);
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      int row = top + k * step;
      if (row >= shape.rows) continue;
      i64 at = (i64)row * shape.channels + column;
      float g[N], z[N];
      unpack(g, grads[k], ELEMENT());
      unpack(z, known[k], ELEMENT());
      if (GELU) {
        u64 element = threshold ? (place(shape, row) / 4 + column / 4) * 4 : 0;
        if (threshold) drop<N>(g, state, element, threshold, scale);
        for (int i = 0; i < N; i++) {
          float b = bell(z[i]), below = normal(z[i], b);
          g[i] *= fmaf(z[i] * 0.3989422804014327f, b, below);
          z[i] *= below;
        }
        if (activated) {
          if (threshold) drop<N>(z, state, element, threshold, scale);
          store(activated + at, z);
        }
      } else {
        for (int i = 0; i < N; i++) g[i] = z[i] <= 0 ? 0.f : g[i] * scale;
      }
      store(grad_z + at, g);
      for (int i = 0; i < N; i++) sums[i] += g[i];
    }
  }
  if (at_bias < 0) return;
  float* all = (float*)shared_memory();
  for (int i = 0; i < N; i++) all[warp * WIDE + lane * N + i] = sums[i];
  __syncthreads();
  float* out = partials + (i64)blockIdx.x * stride + at_bias + first;
  for (int c = threadIdx.x; c < WIDE && first + c < shape.channels; c += blockDim.x) {
    float total = 0;
    for (int w = 0; w < warps; w++) total += all[w * WIDE + c];
    out[c] = total;
  }
}
