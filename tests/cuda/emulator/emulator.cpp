// Runs a kernel on a CPU: threads are fibers, collectives are rendezvous, accesses go through the checker.
//
// # Rationale
// A block runs on one thread of the process, one fiber at a time, each until it waits for others. So a fault is the
// same every time, and a seed other than 0 gives another order of the fibers. In mode "check" the kernel is compiled
// with -fsanitize=thread, and the __tsan_ functions that this puts before every access are those below, not libtsan's:
// an access that is not allowed is never made.
//
// # Limitations
// x86-64; barriers of whole blocks and __syncwarp of whole warps; one launch at a time.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "checker.h"
#include "emulator.h"

Dim3 threadIdx, blockIdx, blockDim, gridDim;
static const size_t SHARED = 227 * 1024, STACK = 64 * 1024, GUARD = 4096;
alignas(1024) unsigned char emulator_shared[SHARED];
static const char *image, *image_end;  // the library of the kernel that runs

// ---- fibers

// The registers that a callee saves go to the old stack, its pointer to *save; then the same from the new one.
asm(R"(
.text
.type emulator_switch,@function
emulator_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
extern "C" void emulator_switch(void **save, void *to);

enum State { READY, AT_BARRIER, AT_COLLECTIVE, ENDED };
enum Collective { SYNC, SHUFFLE, BALLOT = SHUFFLE + 4, PRODUCT, MATRICES = PRODUCT + 3, MATRICES_TRANSPOSED };
struct Copy {
  void *to;
  unsigned char bytes[16];
};
struct Fiber {
  void *top;
  unsigned char *stack;
  State state;
  Where where;     // of the barrier or collective that it waits at
  void *brings;    // what it brings there
  std::vector<Copy> open;                // copies since the last commit
  std::vector<std::vector<Copy>> groups;  // oldest first
};
struct Meeting {
  unsigned mask, arrived;
  int collective;
  Where where;
};

static std::vector<Fiber> fibers;
static std::vector<int> ready;  // from `next_ready` on
static size_t next_ready;
static std::vector<std::vector<Meeting>> meetings;  // of each warp
static int current, threads, at_barrier, ended;
static void *scheduler_top;
static unsigned char *stacks;
static size_t stack_count;
static uint64_t random_state;
static bool in_random_order, checking, failed;
static std::string report;
static void (*entry)(void **);
static void **entry_arguments;

static Checker checker;
static uint32_t block_number, barriers;
static std::vector<uint32_t> syncs;  // of each warp

static std::string at(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }
static std::string who(int thread) {
  char text[80];
  snprintf(text, sizeof text, "thread %d of block (%u, %u, %u) ", thread, blockIdx.x, blockIdx.y, blockIdx.z);
  return text;
}
static void leave() { emulator_switch(&fibers[current].top, scheduler_top); }
// Does not return to the fiber: nothing that is wrong is carried out.
[[noreturn]] static void fail(const std::string &place, const std::string &what) {
  report = place + ": " + who(current) + what;
  failed = true;
  leave();
  abort();
}
static void wake(int fiber) {
  fibers[fiber].state = READY;
  ready.push_back(fiber);
}
// After a rendezvous: in random order the last to arrive need not be the first to go on.
static void go_on() {
  fibers[current].state = READY;
  if (!in_random_order) return;
  ready.push_back(current);
  leave();
}
static uint64_t next_random() {
  random_state ^= random_state << 13, random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}
static void fiber_main() {
  entry(entry_arguments);
  Fiber &fiber = fibers[current];
  bool copies = !fiber.open.empty();
  for (auto &group : fiber.groups) copies |= !group.empty();
  if (copies) fail("at the end", "ends while a copy is under way that was not waited for");
  fiber.state = ENDED;
  ended++;
  leave();
  abort();
}
static void start_fiber(int i) {
  Fiber &fiber = fibers[i];
  fiber.stack = stacks + i * (STACK + GUARD) + GUARD;
  void **top = (void **)(fiber.stack + STACK - 64);
  top[-1] = nullptr;              // fiber_main has nowhere to return to
  top[-2] = (void *)fiber_main;
  for (int saved = 3; saved < 9; saved++) top[-saved] = nullptr;
  fiber.top = top - 8;
  wake(i);
}

// ---- accesses

static std::string in_code(const void *code) {  // harness.py asks addr2line for file and line
  char text[40];
  snprintf(text, sizeof text, "{code 0x%zx}", (size_t)((const char *)code - image));
  return text;
}
static void access(uintptr_t p, size_t bytes, Checker::Act act, const std::string *place, const void *code) {
  if (!checking) return;
  const uintptr_t own = (uintptr_t)fibers[current].stack;
  if (p - own < STACK) return;
  auto inside = [&](const void *begin, size_t size) { return p - (uintptr_t)begin < size; };
  const bool built_in = inside(&threadIdx, sizeof(Dim3)) || inside(&blockIdx, sizeof(Dim3)) ||
                        inside(&blockDim, sizeof(Dim3)) || inside(&gridDim, sizeof(Dim3));
  if (act == Checker::READS && built_in) return;
  std::string what;
  const bool constant = inside(image, image_end - image);
  if (constant && act == Checker::READS) return;
  if (constant)
    what = "writes to the program's own memory";
  else if (inside(stacks, stack_count * (STACK + GUARD)))
    what = std::string(act == Checker::READS ? "reads" : "writes") + " a variable of another thread";
  else
    what = checker.access(p, bytes, act, {block_number, (uint32_t)current + 1, barriers, syncs[current / 32]});
  if (!what.empty()) fail(place ? *place : in_code(code), what);
}
#define CODE (const void *)((char *)__builtin_return_address(0) - 1)
#define ACCESS(PREFIX, BYTES)                                                                                \
  extern "C" void __tsan_##PREFIX##read##BYTES(void *p) {                                                    \
    access((uintptr_t)p, BYTES, Checker::READS, nullptr, CODE);                                              \
  }                                                                                                          \
  extern "C" void __tsan_##PREFIX##write##BYTES(void *p) {                                                   \
    access((uintptr_t)p, BYTES, Checker::WRITES, nullptr, CODE);                                             \
  }
#define ACCESSES(BYTES) ACCESS(, BYTES) ACCESS(unaligned_, BYTES) ACCESS(volatile_, BYTES)
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
extern "C" void __tsan_read_range(void *p, size_t bytes) { access((uintptr_t)p, bytes, Checker::READS, nullptr, CODE); }
extern "C" void __tsan_write_range(void *p, size_t bytes) { access((uintptr_t)p, bytes, Checker::WRITES, nullptr, CODE); }
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}

// What -fsanitize=bounds and the like find; `data` begins with the place.
struct Found {
  const char *file;
  unsigned line, column;
};
#define FINDS(NAME, WHAT)                                                                                    \
  extern "C" void __ubsan_handle_##NAME(const Found *found) { fail(at({found->file, (int)found->line}), WHAT); }
FINDS(out_of_bounds, "reaches beyond an array of its own")
FINDS(shift_out_of_bounds, "shifts by more bits than there are")
FINDS(divrem_overflow, "divides by zero")

// ---- collectives: the last lane of a mask to arrive does the work of all

template <class Work>
static void meet(int collective, unsigned mask, void *brings, Where where, Work work) {
  Fiber &fiber = fibers[current];
  const int first = current / 32 * 32, lane = current - first, width = std::min(32, threads - first);
  if (!(mask >> lane & 1)) fail(at(where), "is not in the mask of its own collective");
  if (width < 32) mask &= (1u << width) - 1;
  fiber.state = AT_COLLECTIVE, fiber.where = where, fiber.brings = brings;
  Meeting *meeting = nullptr;
  for (auto &other : meetings[current / 32])
    if (other.mask == mask) meeting = &other;
  if (!meeting) meeting = &meetings[current / 32].emplace_back(Meeting{mask, 0, collective, where});
  if (!meeting->arrived) meeting->collective = collective, meeting->where = where;
  if (meeting->collective != collective || meeting->where.line != where.line ||
      strcmp(meeting->where.file, where.file))
    fail(at(where), "meets lanes of its warp that are in another collective, at " + at(meeting->where));
  meeting->arrived |= 1u << lane;
  if (meeting->arrived != mask) return leave();
  meeting->arrived = 0;
  void *lanes[32] = {};
  for (int i = 0; i < width; i++)
    if (mask >> i & 1) lanes[i] = fibers[first + i].brings;
  work(lanes);
  for (int i = 0; i < width; i++)
    if ((mask >> i & 1) && first + i != current) wake(first + i);
  go_on();
}
void emulator_barrier(Where where) {
  Fiber &fiber = fibers[current];
  fiber.state = AT_BARRIER, fiber.where = where;
  if (++at_barrier < threads) return leave();
  for (auto &other : fibers)
    if (other.where.line != where.line || strcmp(other.where.file, where.file))
      fail(at(where), "meets threads of its block that are at another barrier, at " + at(other.where));
  at_barrier = 0;
  barriers++;
  for (int i = 0; i < threads; i++)
    if (i != current) wake(i);
  go_on();
}
void emulator_syncwarp(unsigned mask, Where where) {
  if (mask != ~0u) fail(at(where), "orders a part of its warp alone, which the checker does not know");
  meet(SYNC, mask, nullptr, where, [&](void **) { syncs[current / 32]++; });
}
struct Shuffled {
  unsigned long long in, out;
  int argument;
};
unsigned long long emulator_shuffle(
    unsigned mask, unsigned long long bits, EmulatedShuffle kind, int argument, int width, Where where) {
  Shuffled mine = {bits, 0, argument};
  meet(SHUFFLE + kind, mask, &mine, where, [&](void **lanes) {
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) continue;
      auto &lane = *(Shuffled *)lanes[i];
      const int first = i / width * width;
      int from = i;
      if (kind == SHUFFLE_INDEX) from = first + (lane.argument & (width - 1));
      if (kind == SHUFFLE_XOR) from = i ^ lane.argument;
      if (kind == SHUFFLE_DOWN) from = i + lane.argument;
      if (kind == SHUFFLE_UP) from = i - lane.argument;
      if (from >= first + width || (kind == SHUFFLE_UP && from < first)) from = i;
      if (!lanes[from]) fail(at(where), "shuffles from a lane that is not in the mask");
      lane.out = ((Shuffled *)lanes[from])->in;
    }
  });
  return mine.out;
}
unsigned emulator_ballot(unsigned mask, bool vote, Where where) {
  Shuffled mine = {vote, 0, 0};
  meet(BALLOT, mask, &mine, where, [&](void **lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
      if (lanes[i]) votes |= (unsigned)((Shuffled *)lanes[i])->in << i;
    for (int i = 0; i < 32; i++)
      if (lanes[i]) ((Shuffled *)lanes[i])->out = votes;
  });
  return (unsigned)mine.out;
}

// ---- tensor cores: products are exact and rounded once, with what d held; a device may round more often

struct Fragments {
  float *d;
  const unsigned *a, *b;
};
static float half_value(EmulatedType type, unsigned bits) {
  if (type == EMULATED_BF16) return __uint_as_float(bits << 16);
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}
void emulator_mma(EmulatedType type, float *d, const unsigned *a, const unsigned *b, Where where) {
  Fragments mine = {d, a, b};
  meet(PRODUCT + type, ~0u, &mine, where, [&](void **lanes) {
    float left[16][16] = {}, right[16][8] = {};
    for (int i = 0; i < 32; i++) {
      if (!lanes[i]) fail(at(where), "multiplies in a warp of fewer than 32 threads");
      auto &lane = *(Fragments *)lanes[i];
      const int g = i / 4, t = i % 4;
      if (type == EMULATED_TF32) {
        auto exact = [&](unsigned bits) {
          float value = __uint_as_float(bits);
          if (bits & 0x1fff && value == value) fail(at(where), "multiplies a number that was not rounded to tf32");
          return value;
        };
        for (int r = 0; r < 4; r++) left[g + 8 * (r & 1)][t + 4 * (r >> 1)] = exact(lane.a[r]);
        for (int r = 0; r < 2; r++) right[t + 4 * r][g] = exact(lane.b[r]);
      } else {
        for (int e = 0; e < 2; e++) {
          for (int r = 0; r < 4; r++)
            left[g + 8 * (r & 1)][2 * t + e + 8 * (r >> 1)] = half_value(type, lane.a[r] >> 16 * e & 0xffff);
          for (int r = 0; r < 2; r++)
            right[2 * t + e + 8 * r][g] = half_value(type, lane.b[r] >> 16 * e & 0xffff);
        }
      }
    }
    double product[16][8] = {};
    for (int row = 0; row < 16; row++)
      for (int k = 0; k < (type == EMULATED_TF32 ? 8 : 16); k++)
        for (int column = 0; column < 8; column++) product[row][column] += (double)left[row][k] * right[k][column];
    for (int i = 0; i < 32; i++) {
      auto &lane = *(Fragments *)lanes[i];
      for (int c = 0; c < 4; c++)
        lane.d[c] = (float)(lane.d[c] + product[i / 4 + 8 * (c >> 1)][i % 4 * 2 + (c & 1)]);
    }
  });
}
struct Rows16 {
  unsigned *d;
  const unsigned char *row;
};
void emulator_ldmatrix(unsigned *d, const void *row, bool transposed, Where where) {
  Rows16 mine = {d, (const unsigned char *)row};
  const std::string place = checking ? at(where) : "";
  access((uintptr_t)row, 16, Checker::READS, &place, nullptr);
  meet(MATRICES + transposed, ~0u, &mine, where, [&](void **lanes) {
    for (int i = 0; i < 32; i++)
      if (!lanes[i]) fail(at(where), "loads matrices in a warp of fewer than 32 threads");
    for (int m = 0; m < 4; m++) {
      uint16_t matrix[8][8];
      for (int r = 0; r < 8; r++) memcpy(matrix[r], ((Rows16 *)lanes[8 * m + r])->row, 16);
      for (int i = 0; i < 32; i++) {
        const int g = i / 4, t = i % 4;
        unsigned low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
        unsigned high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
        ((Rows16 *)lanes[i])->d[m] = low | high << 16;
      }
    }
  });
}

// ---- copies: what is under way is not there before it is waited for, and reads as what is no number

void emulator_copy(void *to, const void *from, bool there, Where where) {
  Copy copy = {to, {}};
  const std::string place = checking ? at(where) : "";
  if (there) {
    access((uintptr_t)from, 16, Checker::READS, &place, nullptr);
    memcpy(copy.bytes, from, 16);
  } else if ((uintptr_t)from % 16) {
    fail(at(where), "copies from an address that is no multiple of 16");
  }
  access((uintptr_t)to, 16, Checker::COPIES_TO, &place, nullptr);
  memset(to, 0xff, 16);
  fibers[current].open.push_back(copy);
}
void emulator_commit() {
  auto &fiber = fibers[current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
void emulator_wait(int under_way) {
  auto &groups = fibers[current].groups;
  const std::string place = "a copy that lands";
  while ((int)groups.size() > under_way) {
    for (auto &copy : groups.front()) {
      access((uintptr_t)copy.to, 16, Checker::LANDS, &place, nullptr);
      memcpy(copy.to, copy.bytes, 16);
    }
    groups.erase(groups.begin());
  }
}

// ---- launch

extern "C" void emulator_clear() { checker.buffers.clear(); }
extern "C" void emulator_buffer(
    const char *name, void *p, size_t rows, size_t width, size_t stride, int readable, int writable) {
  checker.buffers.emplace_back(name, (uintptr_t)p, rows, width, stride, readable, writable);
}
static void run_block() {
  const size_t warps = (threads + 31) / 32;
  meetings.assign(warps, {});
  syncs.assign(warps, 0);
  ready.clear();
  next_ready = at_barrier = ended = barriers = 0;
  fibers.assign(threads, Fiber{});
  for (int i = 0; i < threads; i++) start_fiber(i);
  while (next_ready < ready.size() && !failed) {
    if (in_random_order) std::swap(ready[next_ready], ready[next_ready + next_random() % (ready.size() - next_ready)]);
    current = ready[next_ready++];
    if (next_ready == 65536) ready.erase(ready.begin(), ready.begin() + next_ready), next_ready = 0;
    threadIdx = {(unsigned)current, 0, 0};
    emulator_switch(&scheduler_top, fibers[current].top);
  }
  if (failed || ended == threads) return;
  int first = 0;
  while (fibers[first].state == ENDED) first++;
  const bool barrier = fibers[first].state == AT_BARRIER;
  failed = true;
  report = at(fibers[first].where) + ": " + who(first) + "waits for ever at a " + (barrier ? "barrier" : "collective");
  for (int i = first + 1, more = 0; i < threads && more < 3; i++)
    if (fibers[i].state != ENDED && fibers[i].where.line != fibers[first].where.line)
      report += "; thread " + std::to_string(i) + " waits at " + at(fibers[i].where), more++;
  if (ended) report += "; " + std::to_string(ended) + " threads have ended";
}
// Nothing, or the sentence of what went wrong.
extern "C" const char *emulator_run(
    void (*kernel)(void **), void **arguments, const char *const *library, const unsigned *grid, unsigned block,
    size_t shared, uint64_t seed, int check) {
  entry = kernel, entry_arguments = arguments, image = library[0], image_end = library[1];
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block, 1, 1};
  threads = (int)block, checking = check, failed = false, report.clear();
  in_random_order = seed != 0, random_state = seed * 2654435761u + 88172645463325252ull;
  block_number = 0;
  if (shared > SHARED) return "the launch asks for more shared memory than a block can have";
  if (stack_count < block) {
    if (stacks) munmap(stacks, stack_count * (STACK + GUARD));
    const size_t bytes = block * (STACK + GUARD);
    stacks = (unsigned char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (unsigned i = 0; i < block; i++) mprotect(stacks + i * (STACK + GUARD), GUARD, PROT_NONE);
    stack_count = block;
  }
  if (check) {
    checker.buffers.emplace_back("shared memory", (uintptr_t)emulator_shared, 1, shared, shared, false, true);
    checker.buffers.back().shared = true;
    std::stable_sort(checker.buffers.begin(), checker.buffers.end(),
                     [](const Buffer &a, const Buffer &b) { return a.writable > b.writable; });
    checker.start();
  }
  for (unsigned z = 0; z < grid[2] && !failed; z++)
    for (unsigned y = 0; y < grid[1] && !failed; y++)
      for (unsigned x = 0; x < grid[0] && !failed; x++) {
        blockIdx = {x, y, z};
        block_number++;
        memset(emulator_shared, 0xff, shared);
        run_block();
      }
  return failed ? report.c_str() : nullptr;
}
