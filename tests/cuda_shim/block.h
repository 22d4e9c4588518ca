// The threads of a block as fibers of one host thread: they run in turn, and each waits in a
// barrier or a shuffle for the others. A block in which some wait for ever, as where threads of a
// warp take different ways to a shuffle, throws.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

// Which thread of a block is the first to run: 0, or the last. Results must not depend on it.
inline bool backwards = false;

class Block {
 public:
  // Runs body() for each thread of a block.
  static void run(unsigned threads, std::function<void()> body) {
    Block block(threads, std::move(body));
    current() = &block;
    block.schedule();
    current() = nullptr;
    if (block.error_) std::rethrow_exception(block.error_);
  }
  static Block*& current() {
    static Block* block;
    return block;
  }

  // Waits until `count` threads have come to `barrier`: the block's, or a warp's.
  void wait(unsigned barrier, unsigned count) {
    Barrier& b = barriers_[barrier];
    const unsigned generation = b.generation;
    if (++b.waiting == count) {
      b.waiting = 0, ++b.generation;
    } else {
      while (b.generation == generation) yield();
    }
    moved_ = true;
  }

  // Two places for each thread take turns: nobody is further ahead than the next call.
  void exchange(void* value, std::size_t bytes, unsigned lanes) {
    const unsigned at = threadIdx.x, warp = at / 32;
    double* place = slots_.data() + (fibers_[at].turn ^= 1) * threads_;
    std::memcpy(place + at, value, bytes);
    const unsigned last = threads_ - warp * 32;
    wait(1 + warp, last < 32 ? last : 32);
    if ((at ^ lanes) >= threads_) throw std::runtime_error("shuffle from a lane that is not there");
    std::memcpy(value, place + (at ^ lanes), bytes);
  }

 private:
  static constexpr std::size_t kStack = 64 * 1024;
  struct Fiber {
    ucontext_t start;
    jmp_buf state;
    bool started = false, done = false;
    unsigned turn = 0;
  };
  struct Barrier {
    unsigned waiting = 0, generation = 0;
  };

  // One block runs at a time, and the next takes the same stacks.
  static std::vector<std::unique_ptr<char[]>>& stacks() {
    static std::vector<std::unique_ptr<char[]>> stacks;
    return stacks;
  }

  Block(unsigned threads, std::function<void()> body)
      : threads_(threads),
        fibers_(threads),
        barriers_(1 + (threads + 31) / 32),
        slots_(2 * threads),
        body_(std::move(body)) {}

  // A warp runs until all of it waits, then the next does: as far ahead of others as it may get.
  void schedule() {
    const unsigned warps = (threads_ + 31) / 32;
    for (bool moved = true; moved && !error_;) {
      moved = false;
      for (unsigned i = 0; i < warps && !error_; ++i)
        while (run_warp(backwards ? warps - 1 - i : i)) moved = true;
    }
    for (const Fiber& fiber : fibers_)
      if (!fiber.done && !error_)
        error_ = std::make_exception_ptr(std::runtime_error("threads wait for ever"));
  }

  // One turn for each thread of a warp; whether one of them got any further.
  bool run_warp(unsigned warp) {
    moved_ = false;
    const unsigned first = warp * 32, count = threads_ - first < 32 ? threads_ - first : 32;
    for (unsigned i = 0; i < count && !error_; ++i) {
      const unsigned at = first + (backwards ? count - 1 - i : i);
      if (fibers_[at].done) continue;
      threadIdx.x = at;
      resume(fibers_[at]);
    }
    return moved_ && !error_;
  }

  // Contexts start a fiber; jumps, which cost no system call, switch afterwards.
  void resume(Fiber& fiber) {
    if (_setjmp(scheduler_)) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    if (stacks().size() <= threadIdx.x) stacks().resize(threadIdx.x + 1);
    auto& stack = stacks()[threadIdx.x];
    if (!stack) stack.reset(new char[kStack]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Block::enter, 0);
    setcontext(&fiber.start);
  }
  static void enter() {
    Block& block = *current();
    try {
      block.body_();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.fibers_[threadIdx.x].done = true;
    _longjmp(block.scheduler_, 1);
  }
  void yield() {
    if (!_setjmp(fibers_[threadIdx.x].state)) _longjmp(scheduler_, 1);
  }

  unsigned threads_;
  std::vector<Fiber> fibers_;
  std::vector<Barrier> barriers_;
  std::vector<double> slots_;
  std::function<void()> body_;
  jmp_buf scheduler_;
  bool moved_ = false;
  std::exception_ptr error_;
};
