// Sums over rows, in two steps and a fixed order: each block leaves those of its rows, a second kernel adds them up.
//
// -DELEMENT           of the matrix that column_partials reads
// -DOUT_A, -DOUT_B    of the two groups of vectors that column_sums writes

__device__ __forceinline__ void put(bf16* p, float x) { p->bits = (u16)pack(bf16(), x, 0.f); }
__device__ __forceinline__ void put(f16* p, float x) { p->bits = (u16)pack(f16(), x, 0.f); }
__device__ __forceinline__ void put(float* p, float x) { *p = x; }

// partials[block, at ..] = the sums of the columns of [rows, columns] over the rows of a block.
// Grid: (row blocks, columns / (32 N) rounded up). Shared: [warps, 32 N] floats.
extern "C" __global__ void __launch_bounds__(512, 2) column_partials(
    const ELEMENT* __restrict__ matrix, int rows, int columns, float* __restrict__ partials, int stride, int at) {
  const int N = Per<ELEMENT>::N, WIDE = 32 * N;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int first = blockIdx.y * WIDE, column = first + lane * N;
  float sums[N] = {};
  if (column < columns) {
#pragma unroll 4
    for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
      float x[N];
      load(x, matrix + (i64)row * columns + column);
      for (int i = 0; i < N; i++) sums[i] += x[i];
    }
  }
  float* all = (float*)shared_memory();
  for (int i = 0; i < N; i++) all[warp * WIDE + lane * N + i] = sums[i];
  __syncthreads();
  float* out = partials + (i64)blockIdx.x * stride + at + first;
  for (int c = threadIdx.x; c < WIDE && first + c < columns; c += blockDim.x) {
    float total = 0;
    for (int w = 0; w < warps; w++) total += all[w * WIDE + c];
    out[c] = total;
  }
}

// Where the columns of each sum end; it begins where the one before it ends.
struct Ends { int at[8]; };

// The sums of the columns of [parts, columns]: one vector after the other, four of OUT_A and four of OUT_B. One
// without columns may be null.
// Each lane has a column; the warps share the parts. Grid: columns / 32, rounded up. Shared: [warps, 32] floats.
extern "C" __global__ void __launch_bounds__(512, 2) column_sums(
    const float* __restrict__ partials, int parts, Ends ends, OUT_A* __restrict__ a0, OUT_A* __restrict__ a1,
    OUT_A* __restrict__ a2, OUT_A* __restrict__ a3, OUT_B* __restrict__ b0, OUT_B* __restrict__ b1,
    OUT_B* __restrict__ b2, OUT_B* __restrict__ b3) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int columns = ends.at[7], column = blockIdx.x * 32 + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int part = warp; part < parts; part += warps) sum += partials[(i64)part * columns + column];
  }
  float* all = (float*)shared_memory();
  all[warp * 32 + lane] = sum;
  __syncthreads();
  if (warp || column >= columns) return;
  sum = 0;
  for (int w = 0; w < warps; w++) sum += all[w * 32 + lane];
  if (column < ends.at[0]) put(a0 + column, sum);
  else if (column < ends.at[1]) put(a1 + column - ends.at[0], sum);
  else if (column < ends.at[2]) put(a2 + column - ends.at[1], sum);
  else if (column < ends.at[3]) put(a3 + column - ends.at[2], sum);
  else if (column < ends.at[4]) put(b0 + column - ends.at[3], sum);
  else if (column < ends.at[5]) put(b1 + column - ends.at[4], sum);
  else if (column < ends.at[6]) put(b2 + column - ends.at[5], sum);
  else put(b3 + column - ends.at[6], sum);
}
