// Every function of the prelude on its own, so that a device can be held to what the emulator takes it for.

// One warp a tile, fragments as they lie in registers: a [tiles, 32, 4], b [tiles, 32, 2], c and d [tiles, 32, 4].
#define PRODUCT(NAME, CALL)                                                                                  \
  extern "C" __global__ void __launch_bounds__(32) NAME(const u32* a, const u32* b, const float* c, float* d) {        \
    int at = blockIdx.x * 32 + threadIdx.x;                                                                  \
    float sums[4];                                                                                           \
    u32 left[4], right[2];                                                                                   \
    for (int i = 0; i < 4; i++) sums[i] = c[4 * at + i];                                                     \
    for (int i = 0; i < 4; i++) left[i] = a[4 * at + i];                                                     \
    for (int i = 0; i < 2; i++) right[i] = b[2 * at + i];                                                    \
    CALL;                                                                                                    \
    for (int i = 0; i < 4; i++) d[4 * at + i] = sums[i];                                                     \
  }
PRODUCT(product_bf16, mma(bf16(), sums, left, right))
PRODUCT(product_f16, mma(f16(), sums, left, right))
PRODUCT(product_tf32, mma_tf32(sums, left, right))

// Four matrices of 8 rows of 16 bytes, 32 rows in all, as registers [32, 4]; then the same transposed.
extern "C" __global__ void __launch_bounds__(32) matrices(const Words4* rows, u32* plain, u32* transposed) {
  int lane = threadIdx.x;
  Words4* tile = (Words4*)shared_memory();
  tile[lane] = rows[lane];
  __syncwarp();
  u32 taken[4];
  ldmatrix4(taken, tile + lane);
  for (int i = 0; i < 4; i++) plain[4 * lane + i] = taken[i];
  ldmatrix4_trans(taken, tile + lane);
  for (int i = 0; i < 4; i++) transposed[4 * lane + i] = taken[i];
}

// Copies two pieces a thread, in two groups; the first is read while the second may be under way.
extern "C" __global__ void __launch_bounds__(64) copies(const Words4* from, const u32* there, Words4* to) {
  Words4* mine = (Words4*)shared_memory() + threadIdx.x;
  int first = blockIdx.x * 128 + threadIdx.x, second = first + 64;
  copy_async(mine, from + first, there[first]);
  copy_commit();
  copy_async(mine + 64, from + second, there[second]);
  copy_commit();
  copy_wait<1>();
  to[first] = *mine;
  copy_wait<0>();
  to[second] = mine[64];
}

// [8, 32]: what each lane gets from others, and votes.
extern "C" __global__ void __launch_bounds__(32) lanes(const u32* x, const float* y, u32* out, float* sums) {
  const u32 ALL = 0xffffffffu;
  int lane = threadIdx.x;
  u32 mine = x[lane];
  u32 got[8] = {
      __shfl_sync(ALL, mine, (lane * 7 + 3) & 31),
      __shfl_sync(ALL, mine, 5, 8),
      __shfl_xor_sync(ALL, mine, 1),
      __shfl_xor_sync(ALL, mine, 16),
      __shfl_down_sync(ALL, mine, 3),
      __shfl_up_sync(ALL, mine, 3, 8),
      __ballot_sync(ALL, mine & 1),
      (u32)__any_sync(ALL, mine == x[9]) + 2 * (u32)__all_sync(ALL, mine == x[9]),
  };
  u64 wide = __shfl_xor_sync(ALL, (u64)mine << 32 | (u32)lane, 9);
  got[3] ^= (u32)(wide >> 32) + (u32)wide;
  for (int i = 0; i < 8; i++) out[32 * i + lane] = got[i];
  sums[lane] = sum_lanes(y[lane]);
}

// Two numbers a thread, by the scalar functions.
#define ROUNDING(NAME, TYPE)                                                                                 \
  extern "C" __global__ void __launch_bounds__(256) round_##NAME(const float* x, int pairs, u32* out) {      \
    int at = blockIdx.x * 256 + threadIdx.x;                                                                 \
    if (at < pairs) out[at] = pack(TYPE(), x[2 * at], x[2 * at + 1]);                                        \
  }
ROUNDING(bf16, bf16)
ROUNDING(f16, f16)
extern "C" __global__ void __launch_bounds__(256) round_tf32(const float* x, int count, u32* out) {
  int at = blockIdx.x * 256 + threadIdx.x;
  if (at < count) out[at] = tf32(x[at]);
}
extern "C" __global__ void __launch_bounds__(256) powers(const float* x, int count, float* out) {
  int at = blockIdx.x * 256 + threadIdx.x;
  if (at < count) out[at] = exp2_fast(x[at]);
}

// 16 bytes a thread: as numbers by load and by value, and from there back by store.
#define ELEMENTS(NAME, TYPE)                                                                                 \
  extern "C" __global__ void __launch_bounds__(256) elements_##NAME(                                         \
      const TYPE* x, int pieces, float* wide, float* single, TYPE* again) {                                  \
    int at = (blockIdx.x * 256 + threadIdx.x) * Per<TYPE>::N;                                                \
    if (at >= pieces * Per<TYPE>::N) return;                                                                 \
    float values[Per<TYPE>::N];                                                                              \
    load(values, x + at);                                                                                    \
    for (int i = 0; i < Per<TYPE>::N; i++) {                                                                 \
      wide[at + i] = values[i];                                                                              \
      single[at + i] = value(x[at + i]);                                                                     \
    }                                                                                                        \
    store(again + at, values);                                                                               \
  }
ELEMENTS(bf16, bf16)
ELEMENTS(f16, f16)
ELEMENTS(float, float)

// The words of a site, and what is left of `x` where it stands `first` elements into a mask.
extern "C" __global__ void __launch_bounds__(256) hash_words(const i64* seed, u32 site, int count, u64* out) {
  u64 state = site_state(seed, site);
  for (int at = blockIdx.x * 256 + threadIdx.x; at < count; at += gridDim.x * 256) out[at] = word(state, at);
}
extern "C" __global__ void __launch_bounds__(256) dropped(
    const float* x, const i64* seed, u32 site, i64 first, u32 threshold, float scale, int pieces, float* out) {
  int at = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (at >= pieces * 8) return;
  float values[8];
  load(values, x + at);
  load(values + 4, x + at + 4);
  drop<8>(values, site_state(seed, site), (u64)first + at, threshold, scale);
  store(out + at, values);
  store(out + at + 4, values + 4);
}
