// What may be wrong with an access to memory: bounds, alignment, rights, order. Knows nothing of fibers.
//
// # The order of accesses
// Two accesses of one place, one of them a write, are a race unless the same thread made both, or a barrier of the
// block lies between them, or both threads are of one warp and a __syncwarp lies between them. A shuffle orders
// nothing: it is no fence of memory. Blocks are ordered by nothing but the end of the launch. So a moment is (block,
// barriers of the block so far, __syncwarps of the warp so far), and a place keeps its last write and the reads since.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

struct Moment {
  uint32_t block, thread, barriers, syncs;  // block and thread count from 1: 0 is nobody
  uint32_t warp() const { return (thread - 1) / 32 + 1; }
  uint32_t lane() const { return 1u << (thread - 1) % 32; }
};

// Two bytes, the smallest element.
struct Place {
  enum State : uint8_t { UNWRITTEN, GIVEN, WRITTEN, IN_FLIGHT };
  static const uint32_t SEVERAL = ~0u;  // blocks or warps that read
  Moment write;
  uint32_t read_block, read_warp, read_barriers, read_syncs, read_lanes;
  State state;

  // Whether another thread wrote here, and nothing orders that before `now`.
  bool write_beside(const Moment &now) const {
    if (state < WRITTEN) return false;
    if (write.block != now.block) return true;
    if (write.thread == now.thread || write.barriers != now.barriers) return false;
    return write.warp() != now.warp() || write.syncs == now.syncs;
  }
  bool read_beside(const Moment &now) const {
    if (!read_block) return false;
    if (read_block != now.block) return true;
    if (read_barriers != now.barriers) return false;
    if (read_warp != now.warp()) return true;
    return read_syncs == now.syncs && (read_lanes & ~now.lane());
  }
  void wrote(const Moment &now, State to) {
    write = now;
    state = to;
    read_block = 0;
  }
  // Earlier reads of the same warp, before its last __syncwarp, are ordered before whatever comes after this one.
  void did_read(const Moment &now) {
    bool same = read_block == now.block && read_barriers == now.barriers;
    if (read_block && read_block != now.block) {
      read_block = SEVERAL;
    } else if (!same) {
      read_block = now.block, read_barriers = now.barriers;
      read_warp = now.warp(), read_syncs = now.syncs, read_lanes = now.lane();
    } else if (read_warp != now.warp()) {
      read_warp = SEVERAL;
    } else {
      read_lanes = (read_syncs == now.syncs ? read_lanes : 0) | now.lane();
      read_syncs = now.syncs;
    }
  }
};

// `rows` of `width` bytes, `stride` bytes apart; what lies between them belongs to somebody else.
struct Buffer {
  std::string name;
  uintptr_t begin;
  size_t rows, width, stride;
  bool readable, writable, shared;
  std::vector<Place> places;  // of what can change alone

  Buffer(std::string name, uintptr_t begin, size_t rows, size_t width, size_t stride, bool readable, bool writable)
      : name(std::move(name)), begin(begin), rows(rows), width(width), stride(stride), readable(readable),
        writable(writable), shared(false) {
    Place untouched = {};
    if (readable) untouched.state = Place::GIVEN;
    if (writable) places.assign((span() + 1) / 2, untouched);
  }
  size_t span() const { return rows ? (rows - 1) * stride + width : 0; }
  bool has(uintptr_t at, size_t bytes) const {
    size_t offset = at - begin;
    if (at < begin || offset + bytes > span()) return false;
    return stride == width || offset % stride + bytes <= width;
  }
};

class Checker {
 public:
  // LANDS: a copy that was under way arrives.
  enum Act { READS, WRITES, COPIES_TO, LANDS };
  std::vector<Buffer> buffers;  // those that can be written first: in place, they keep the order of an input, too

  // Before a launch, when all buffers are known.
  void start() {
    last = nullptr, apart = true;
    for (auto &a : buffers)
      for (auto &b : buffers)
        if (&a < &b && a.begin < b.begin + b.span() && b.begin < a.begin + a.span()) apart = false;
  }

  // The sentence of what is wrong, without its subject, or nothing.
  std::string access(uintptr_t at, size_t bytes, Act act, const Moment &now) {
    const bool write = act != READS;
    auto says = [&](const std::string &what) { return (write ? "writes " : "reads ") + what; };
    Buffer *buffer = find(at, bytes);
    if (!buffer) return says(std::to_string(bytes) + " bytes " + nowhere(at));
    if (at % bytes && bytes <= 16 && !(bytes & (bytes - 1))) {
      std::string size = std::to_string(bytes);
      return says(size + " bytes of " + buffer->name + " at an address that is no multiple of " + size);
    }
    if (!buffer->writable) return write ? says(buffer->name + ", which is an input") : "";
    size_t first = (at - buffer->begin) / 2, end = (at - buffer->begin + bytes + 1) / 2;
    for (size_t i = first; i < end; i++) {
      Place &place = buffer->places[i];
      if (buffer->shared && place.write.block != now.block) place = Place{};  // what a block before has left
      if (!write && place.state == Place::UNWRITTEN) return says(buffer->name + ", which nothing has written");
      if (place.write_beside(now))
        return says(buffer->name + ", which " + who(place.write, now) + " writes, and nothing orders the two");
      if (place.state == Place::IN_FLIGHT && act != LANDS)
        return says(buffer->name + " where a copy is under way that was not waited for");
      if (write && place.read_beside(now))
        return says(buffer->name + ", which another thread reads, and nothing orders the two");
      if (write) place.wrote(now, act == COPIES_TO ? Place::IN_FLIGHT : Place::WRITTEN);
      else place.did_read(now);
    }
    return {};
  }

 private:
  Buffer *last = nullptr;
  bool apart = false;

  Buffer *find(uintptr_t at, size_t bytes) {
    if (apart && last && last->has(at, bytes)) return last;
    for (auto &buffer : buffers)
      if (buffer.has(at, bytes)) return last = &buffer;
    return nullptr;
  }
  static std::string who(const Moment &other, const Moment &now) {
    std::string thread = "thread " + std::to_string(other.thread - 1);
    return other.block == now.block ? thread : thread + " of another block";
  }
  std::string nowhere(uintptr_t at) const {
    if (at < 4096) return "through a null pointer";
    for (auto &buffer : buffers) {
      uintptr_t end = buffer.begin + buffer.span();
      if (at < buffer.begin && buffer.begin - at <= 256)
        return std::to_string(buffer.begin - at) + " bytes before " + buffer.name;
      if (at >= end && at - end < 256) return std::to_string(at - end) + " bytes behind the end of " + buffer.name;
      if (at >= buffer.begin && at < end) return "across an edge of " + buffer.name;
    }
    return "outside of every argument";
  }
};
