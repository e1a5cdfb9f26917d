// Runs CUDA kernel source on the CPU, for tests only: the threads of a block are fibers that switch
// at barriers, and blocks run one after the other.
//
// Detects wrong indices, diverging barriers, results that depend on the order of blocks and, with
// AddressSanitizer, accesses out of bounds. Does not model memory ordering or speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time, so a static is the block's own memory
#define CMRFAST_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), cmrfast::on_host::launch(grid, block, [&] { kernel(__VA_ARGS__); }))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct __half {
  _Float16 bits;
};
inline float __half2float(__half value) { return static_cast<float>(value.bits); }
inline __half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace cmrfast::on_host {

// A suspended stack. Jumping to it is much cheaper than swapcontext, which makes a system call for
// the signal mask; but AddressSanitizer follows only swapcontext.
struct Context {
  ucontext_t full;
  jmp_buf jump;

  static void move(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
    swapcontext(&from.full, &to.full);
#else
    if (_setjmp(from.jump) == 0) _longjmp(to.jump, 1);
#endif
  }
  void start_from(Context& from) {
#ifdef __SANITIZE_ADDRESS__
    swapcontext(&from.full, &full);
#else
    if (_setjmp(from.jump) == 0) setcontext(&full);
#endif
  }
};

enum class State { kFresh, kRunning, kAtWarp, kAtBlock, kDone };

struct Fiber {
  static constexpr size_t stack_bytes = 48 << 10;  // small: ASan unpoisons all of it at each switch
  Context context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
};

struct Thread {
  State state = State::kFresh;
  dim3 index;
  Fiber* fiber = nullptr;
  uint64_t slot = 0;  // the value that it passes to its warp
};

// One block at a time. A fiber takes thread after thread until one has to wait; only then is
// another fiber needed, so that kernels without barriers run on a single one.
struct Machine {
  dim3 grid, block, block_index;
  std::function<void()> body;
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Fiber>> all;
  std::vector<Fiber*> idle;
  size_t next = 0, current = 0;
  Context home;

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  // Results may not depend on which block or thread comes first, so tests change the order:
  // CMRFAST_ON_HOST_ORDER=reversed, or shuffled, by a step that has no factor in common with count.
  std::string order;
  size_t in_order(size_t i, size_t count) const {
    if (order == "reversed") return count - 1 - i;
    if (order != "shuffled") return i;
    size_t step = count * 5 / 8 + 1;
    while (std::gcd(step, count) > 1) ++step;
    return (i * step + count / 3) % count;
  }

  Thread& me() { return threads[current]; }

  void wait(State state) {
    Thread& self = me();
    self.state = state;
    Context::move(self.fiber->context, home);
  }

  static void work() {
    Machine& m = get();
    Fiber* self = m.idle.back();
    m.idle.pop_back();
    while (m.next < m.threads.size()) {
      m.current = m.in_order(m.next++, m.threads.size());
      m.me().fiber = self;
      m.me().state = State::kRunning;
      m.body();
      m.me().state = State::kDone;
    }
    m.idle.push_back(self);
    Context::move(self->context, m.home);
  }

  void start_fiber() {
    if (idle.empty()) {
      all.push_back(std::make_unique<Fiber>());
      idle.push_back(all.back().get());
    }
    Fiber& fiber = *idle.back();
    getcontext(&fiber.context.full);
    fiber.context.full.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.full.uc_stack.ss_size = Fiber::stack_bytes;
    fiber.context.full.uc_link = nullptr;
    makecontext(&fiber.context.full, work, 0);
    fiber.context.start_from(home);
  }

  size_t count(State state, size_t begin, size_t end) const {
    return static_cast<size_t>(std::count_if(threads.begin() + begin, threads.begin() + end,
                                             [&](const Thread& t) { return t.state == state; }));
  }

  // Lets the threads of [begin, end) go on if all of them wait here or have ended.
  bool release(State state, size_t begin, size_t end) {
    const size_t waiting = count(state, begin, end);
    if (waiting == 0 || waiting + count(State::kDone, begin, end) < end - begin) return false;
    for (size_t i = begin; i < end; ++i) {
      if (threads[i].state == state) threads[i].state = State::kRunning;
    }
    return true;
  }

  void run_block() {
    const size_t n = threads.size();
    for (size_t i = 0; i < n; ++i) {
      threads[i] = Thread{};
      const unsigned t = static_cast<unsigned>(i);
      threads[i].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
    }
    next = 0;
    while (next < n) start_fiber();
    while (count(State::kDone, 0, n) < n) {
      bool released = false;
      for (size_t w = 0; w < n; w += 32) {
        released |= release(State::kAtWarp, w, std::min(n, w + 32));
      }
      if (!released) {
        // Threads that ended do not free those that wait: on a GPU that would be no barrier.
        if (count(State::kAtBlock, 0, n) < n) {
          std::fprintf(stderr, "on_host: a barrier was reached by %zu of %zu threads\n",
                       n - count(State::kDone, 0, n), n);
          std::abort();
        }
        release(State::kAtBlock, 0, n);
      }
      for (current = 0; current < n; ++current) {
        if (me().state == State::kRunning) {
          const size_t self = current;
          Context::move(home, me().fiber->context);
          current = self;
        }
      }
    }
  }
};

template <class Body>
void launch(dim3 grid, dim3 block, Body&& body) {
  Machine& m = Machine::get();
  m.grid = grid;
  m.block = block;
  m.body = body;
  m.threads.resize(static_cast<size_t>(block.x) * block.y * block.z);
  const char* order = std::getenv("CMRFAST_ON_HOST_ORDER");
  m.order = order == nullptr ? "" : order;
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  for (size_t b = 0; b < blocks; ++b) {
    const size_t at = m.in_order(b, blocks);
    m.block_index =
        dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
             static_cast<unsigned>(at / grid.x / grid.y));
    m.run_block();
  }
}

inline int lane() { return static_cast<int>(Machine::get().current & 31); }

// Every thread of a warp hands over its value and takes that of another lane.
template <class T>
T exchange(T value, int from) {
  Machine& m = Machine::get();
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const size_t self = m.current, warp = self / 32 * 32;
  std::memcpy(&m.me().slot, &value, sizeof(T));
  m.wait(State::kAtWarp);
  const size_t source = warp + static_cast<size_t>(from);
  if (from >= 0 && from < 32 && source < m.threads.size()) {
    std::memcpy(&value, &m.threads[source].slot, sizeof(T));
  }
  m.wait(State::kAtWarp);
  return value;
}

}  // namespace cmrfast::on_host

#define threadIdx (cmrfast::on_host::Machine::get().me().index)
#define blockIdx (cmrfast::on_host::Machine::get().block_index)
#define gridDim (cmrfast::on_host::Machine::get().grid)

inline void __syncthreads() {
  cmrfast::on_host::Machine::get().wait(cmrfast::on_host::State::kAtBlock);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cmrfast::on_host::exchange(value, cmrfast::on_host::lane() ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return cmrfast::on_host::exchange(value, cmrfast::on_host::lane() - distance);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return cmrfast::on_host::exchange(value, lane);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    votes |= cmrfast::on_host::exchange<unsigned>(vote, lane) << lane;
  }
  return votes;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
