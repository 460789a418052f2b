// The device side of the emulator: what CUDA C needs to be compiled by g++ and run on a CPU.
//
// Every CUDA thread of one block is a fiber on its own small stack. A fiber runs until it meets a barrier
// (`__syncthreads`, or any warp-wide operation) and then hands over to the next. Blocks run one after another. So
// the emulator finds wrong indices, wrong barriers, wrong results and, under AddressSanitizer, accesses out of
// bounds; it does not find data races between blocks or a missing memory fence. To make a missing barrier show, the
// order in which the fibers of a block run is a setting: GPU_EMU_ORDER = forward | reverse | a number (seed).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

struct EmuDim { unsigned x = 1, y = 1, z = 1; };

namespace emu {

// ---------------------------------------------------------------- fibers
enum class Wait { Running, Block, Warp, Finished };

struct Fiber {
    void *stack_pointer = nullptr;
    EmuDim thread;
    unsigned index = 0;  // linear index in the block
    Wait wait = Wait::Running;
};

static const size_t STACK_BYTES = 64 * 1024;
static std::vector<Fiber> fibers;
static std::vector<char *> stacks;
static std::vector<unsigned> order;
static Fiber *current = nullptr;
static void *scheduler_stack_pointer = nullptr;
static EmuDim grid_dim, block_dim, block_index;
static char *dynamic_shared_base = nullptr;
static void (*kernel_body)(void *) = nullptr;
static void *kernel_argument = nullptr;
static unsigned long long exchange[1024][2];  // what each thread shows to its warp
static std::mutex one_launch;

#if !defined(__x86_64__)
#error "the emulator switches stacks with x86-64 instructions"
#endif
// Saves the callee-saved registers and the stack pointer, and continues where `load` was saved.
extern "C" void rowmill_emu_switch(void **save, void *load);
asm(R"(
.text
.globl rowmill_emu_switch
.hidden rowmill_emu_switch
.type rowmill_emu_switch,@function
rowmill_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size rowmill_emu_switch,.-rowmill_emu_switch
)");

static void yield(Wait why) {
    current->wait = why;
    rowmill_emu_switch(&current->stack_pointer, scheduler_stack_pointer);
}

__attribute__((noinline)) static void fiber_entry() {
    kernel_body(kernel_argument);
    yield(Wait::Finished);
    abort();  // a finished fiber is never resumed
}

static void prepare(Fiber &fiber, char *stack) {
    // The stack of a fiber that "is about to return" into fiber_entry with zeroed registers.
    auto top = reinterpret_cast<uintptr_t>(stack + STACK_BYTES) & ~uintptr_t(15);
    auto words = reinterpret_cast<uintptr_t *>(top);
    words[-1] = 0;
    words[-2] = reinterpret_cast<uintptr_t>(&fiber_entry);
    for (int i = 3; i <= 8; i++) words[-i] = 0;
    fiber.stack_pointer = words - 8;
    fiber.wait = Wait::Running;
}

static unsigned block_threads() { return block_dim.x * block_dim.y * block_dim.z; }

static void set_order(unsigned threads) {
    order.resize(threads);
    for (unsigned i = 0; i < threads; i++) order[i] = i;
    const char *setting = getenv("GPU_EMU_ORDER");
    if (!setting || !strcmp(setting, "forward")) return;
    if (!strcmp(setting, "reverse")) { std::reverse(order.begin(), order.end()); return; }
    uint64_t state = strtoull(setting, nullptr, 10) * 0x9E3779B97F4A7C15ull + 1;
    for (unsigned i = threads; i > 1; i--) {
        state ^= state << 13; state ^= state >> 7; state ^= state << 17;
        std::swap(order[i - 1], order[state % i]);
    }
}

// Lets the fibers in [begin, end) go on if every one that is not finished waits for `why`.
static bool release(unsigned begin, unsigned end, Wait why) {
    bool any = false;
    for (unsigned i = begin; i < end; i++) {
        if (fibers[i].wait == Wait::Finished) continue;
        if (fibers[i].wait != why) return false;
        any = true;
    }
    if (any)
        for (unsigned i = begin; i < end; i++)
            if (fibers[i].wait != Wait::Finished) fibers[i].wait = Wait::Running;
    return any;
}

// Runs one block to its end; false when its threads wait for barriers that can never be complete.
static bool run_block() {
    unsigned threads = block_threads();
    fibers.resize(threads);
    while (stacks.size() < threads) stacks.push_back(static_cast<char *>(malloc(STACK_BYTES)));
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].index = i;
        fibers[i].thread = {i % block_dim.x, (i / block_dim.x) % block_dim.y, i / (block_dim.x * block_dim.y)};
        prepare(fibers[i], stacks[i]);
    }
    for (;;) {
        bool progress = false, finished = true;
        for (unsigned i : order) {
            if (fibers[i].wait != Wait::Running) continue;
            current = &fibers[i];
            rowmill_emu_switch(&scheduler_stack_pointer, current->stack_pointer);
            progress = true;
        }
        for (unsigned warp = 0; warp < threads; warp += 32)
            progress |= release(warp, std::min(warp + 32, threads), Wait::Warp);
        for (auto &fiber : fibers) finished &= fiber.wait == Wait::Finished;
        if (finished) return true;
        if (!progress && !release(0, threads, Wait::Block)) {
            fprintf(stderr, "emulator: divergent barrier in block %u\n", block_index.x);
            return false;
        }
    }
}

// ---------------------------------------------------------------- launching
template <class... A> struct Call {
    void (*kernel)(A...);
    void **arguments;
    static void go(void *self) {
        static_cast<Call *>(self)->invoke(std::index_sequence_for<A...>{});
    }
    template <size_t... I> void invoke(std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<A> *>(arguments[I])...);
    }
};

template <class... A>
int launch(void (*kernel)(A...), void **arguments, EmuDim grid, EmuDim block, unsigned shared_bytes) {
    std::lock_guard<std::mutex> guard(one_launch);
    Call<A...> call{kernel, arguments};
    kernel_body = &Call<A...>::go;
    kernel_argument = &call;
    grid_dim = grid;
    block_dim = block;
    set_order(block_threads());
    // An exact heap block, so that AddressSanitizer sees one byte past the end; filled with a pattern because real
    // shared memory is not zeroed either.
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                dynamic_shared_base = static_cast<char *>(aligned_alloc(16, (shared_bytes + 15) / 16 * 16 + 16));
                memset(dynamic_shared_base, 0xCD, shared_bytes);
                block_index = {x, y, z};
                bool fine = run_block();
                free(dynamic_shared_base);
                if (!fine) return 1;
            }
    return 0;
}

// ---------------------------------------------------------------- warp-wide exchange
inline unsigned lane() { return current->index & 31u; }
inline unsigned warp_start() { return current->index & ~31u; }

template <class T> T shuffle(T value, unsigned source) {
    static_assert(sizeof(T) <= 8, "shuffle moves up to 8 bytes");
    unsigned self = current->index;
    memcpy(&exchange[self][0], &value, sizeof(T));
    yield(Wait::Warp);
    unsigned from = warp_start() + source;
    T result;
    memcpy(&result, &exchange[from < block_threads() ? from : self][0], sizeof(T));
    yield(Wait::Warp);
    return result;
}

inline unsigned ballot(bool predicate) {
    exchange[current->index][0] = predicate;
    yield(Wait::Warp);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32 && warp_start() + i < block_threads(); i++)
        if (fibers[warp_start() + i].wait != Wait::Finished)
            votes |= unsigned(exchange[warp_start() + i][0]) << i;
    yield(Wait::Warp);
    return votes;
}
}  // namespace emu

// ---------------------------------------------------------------- the words of CUDA C
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (emu::current->thread)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emu::dynamic_shared_base)
#define GPU_EMULATED 1

static inline void __syncthreads() { emu::yield(emu::Wait::Block); }
static inline void __syncwarp(unsigned = ~0u) { emu::yield(emu::Wait::Warp); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
template <class T> static inline T __shfl_sync(unsigned, T v, unsigned s) { return emu::shuffle(v, s & 31u); }
template <class T> static inline T __shfl_down_sync(unsigned, T v, unsigned d) {
    unsigned l = emu::lane();
    return emu::shuffle(v, l + d < 32 ? l + d : l);
}
template <class T> static inline T __shfl_up_sync(unsigned, T v, unsigned d) {
    unsigned l = emu::lane();
    return emu::shuffle(v, l >= d ? l - d : l);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T v, unsigned d) { return emu::shuffle(v, emu::lane() ^ d); }
static inline unsigned __ballot_sync(unsigned, int p) { return emu::ballot(p != 0); }
static inline int __any_sync(unsigned, int p) { return emu::ballot(p != 0) != 0; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
template <class To, class From> static inline To emu_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To r;
    memcpy(&r, &v, sizeof r);
    return r;
}
static inline unsigned __float_as_uint(float v) { return emu_bits<unsigned>(v); }
static inline float __uint_as_float(unsigned v) { return emu_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return emu_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return emu_bits<double>(v); }
template <class T> static inline T __ldg(const T *p) { return *p; }

template <class T, class U> static inline T atomicAdd(T *p, U v) { T o = *p; *p = o + (T)v; return o; }
template <class T, class U> static inline T atomicMin(T *p, U v) { T o = *p; if ((T)v < o) *p = (T)v; return o; }
template <class T, class U> static inline T atomicMax(T *p, U v) { T o = *p; if ((T)v > o) *p = (T)v; return o; }
template <class T, class U> static inline T atomicOr(T *p, U v) { T o = *p; *p = o | (T)v; return o; }
template <class T, class U> static inline T atomicExch(T *p, U v) { T o = *p; *p = (T)v; return o; }
template <class T, class U, class V> static inline T atomicCAS(T *p, U c, V v) { T o = *p; if (o == (T)c) *p = (T)v; return o; }
