// A processor that behaves as a graphics processor as far as the kernels of this folder go, for a test of their arithmetic where
// there is no device. It is no measure of speed, and what a device does beside this remains to be tried on one.
//
// The threads of a block are fibres that take turns until each waits at a barrier. Lanes of a warp exchange what they hold through
// memory. Shared memory begins as not-a-number, copies into it arrive no sooner than they are waited for, and what is written beyond
// its end is found. Blocks run one after the other.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __device__
#define __shared__ static thread_local
#define DEVICE_MEMORY static thread_local
#define DYNAMIC_SHARED(name) uint4 *const name = reinterpret_cast<uint4 *>(emulation::block->shared)

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

struct uint2 {
    uint32_t x, y;
};

struct float2 {
    float x, y;
};

struct dim3 {
    unsigned x, y, z;
};

namespace emulation {

struct Copy {
    void *to;
    const void *from;
    bool present;
};

struct Fibre {
    ucontext_t context;
    jmp_buf place;
    std::vector<char> stack;
    dim3 thread;
    unsigned exchanges = 0;
    bool begun = false, done = false;
    std::vector<std::vector<Copy>> copies{{}}; // groups, the last one open
};

struct Barrier {
    unsigned arrived = 0, passed = 0;
};

// What the lanes give each other, twice: a lane may be one exchange ahead.
struct Warp {
    Barrier barrier;
    unsigned char given[2][32][32];
};

struct Block {
    dim3 block, grid, index;
    std::vector<Fibre> fibres;
    std::vector<Warp> warps;
    Barrier barrier;
    char *shared = nullptr;
    Fibre *current = nullptr;
    jmp_buf scheduler;
    ucontext_t main;
    void (*kernel)(const void *);
    const void *arguments;
    bool moved = false; // whether anything happened in this round of turns
};

inline thread_local Block *block = nullptr;

inline void give_way() {
    Fibre *self = block->current;
    if (_setjmp(self->place) == 0) _longjmp(block->scheduler, 1);
}

inline void wait(Barrier &barrier, unsigned count) {
    const unsigned passed = barrier.passed;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        barrier.passed++;
        block->moved = true;
    } else {
        while (barrier.passed == passed) give_way();
    }
}

// Gives `size` bytes to the other lanes; what all lanes gave.
inline const unsigned char (*exchange(const void *given, size_t size))[32] {
    Fibre *self = block->current;
    Warp &warp = block->warps[self->thread.x / 32];
    unsigned char(*room)[32] = warp.given[self->exchanges++ % 2];
    std::memcpy(room[self->thread.x % 32], given, size);
    wait(warp.barrier, 32);
    return room;
}

inline void begin_fibre() {
    block->kernel(block->arguments);
    block->current->done = true;
    block->moved = true;
    _longjmp(block->scheduler, 1);
}

// Lets a fibre run until it gives way.
inline void take_turn(Fibre &fibre) {
    block->current = &fibre;
    if (_setjmp(block->scheduler) == 0) {
        if (fibre.begun) _longjmp(fibre.place, 1);
        fibre.begun = true;
        setcontext(&fibre.context);
    }
}

constexpr size_t GUARD = 4096;

// Runs all blocks of a grid. 0, or 1 for threads that wait for each other for ever, 2 for a write beyond shared memory.
inline int run(void (*kernel)(const void *), const void *arguments, const unsigned *grid, unsigned threads, unsigned shared) {
    Block state;
    block = &state;
    state.block = {threads, 1, 1};
    state.grid = {grid[0], grid[1], grid[2]};
    state.kernel = kernel;
    state.arguments = arguments;
    std::vector<char> memory(shared + GUARD + 16);
    state.shared = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
    state.fibres.resize(threads);
    for (Fibre &fibre : state.fibres) fibre.stack.resize(64 << 10);
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned number = 0; number < blocks; number++) {
        state.index = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
        state.barrier = {};
        state.warps.assign((threads + 31) / 32, {});
        std::memset(state.shared, 0xff, shared + GUARD);
        for (unsigned thread = 0; thread < threads; thread++) {
            Fibre &fibre = state.fibres[thread];
            fibre.thread = {thread, 0, 0};
            fibre.exchanges = 0;
            fibre.begun = fibre.done = false;
            fibre.copies.assign(1, {});
            getcontext(&fibre.context);
            fibre.context.uc_stack.ss_sp = fibre.stack.data();
            fibre.context.uc_stack.ss_size = fibre.stack.size();
            fibre.context.uc_link = nullptr;
            makecontext(&fibre.context, begin_fibre, 0);
        }
        for (unsigned left = threads; left > 0;) {
            state.moved = false;
            left = 0;
            for (Fibre &fibre : state.fibres) {
                if (!fibre.done) take_turn(fibre);
                left += !fibre.done;
            }
            if (left > 0 && !state.moved) return 1;
        }
        for (size_t place = 0; place < GUARD; place++)
            if (state.shared[shared + place] != char(0xff)) return 2;
    }
    return 0;
}

} // namespace emulation

// A kernel is a function that runs it; 0 when all went well.
#define KERNEL(NAME, ARGUMENTS, THREADS, ...)                                                                          \
    extern "C" int NAME(const void *arguments, const unsigned *grid, unsigned threads, unsigned shared) {              \
        const auto kernel = [](const void *from) {                                                                     \
            const ARGUMENTS &a = *static_cast<const ARGUMENTS *>(from);                                                \
            __VA_ARGS__;                                                                                               \
        };                                                                                                             \
        return threads > THREADS ? 3 : emulation::run(kernel, arguments, grid, threads, shared);                       \
    }

#define LOADING_KERNEL(NAME, ARGUMENTS, THREADS, BLOCKS, ...) KERNEL(NAME, ARGUMENTS, THREADS, __VA_ARGS__)

#define threadIdx (emulation::block->current->thread)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->block)
#define gridDim (emulation::block->grid)

inline void __syncthreads() { emulation::wait(emulation::block->barrier, unsigned(emulation::block->fibres.size())); }

template <class T> inline T __shfl_xor_sync(unsigned, T value, int distance) {
    const auto *given = emulation::exchange(&value, sizeof value);
    T other;
    std::memcpy(&other, given[(threadIdx.x % 32) ^ unsigned(distance)], sizeof other);
    return other;
}

inline int __dp4a(int left, int right, int sum) {
    for (int place = 0; place < 32; place += 8) sum += int8_t(left >> place) * int8_t(right >> place);
    return sum;
}

inline void __threadfence() {}
// Blocks run one after the other, and so do threads.
inline unsigned atomicAdd(unsigned *to, unsigned value) {
    const unsigned before = *to;
    *to += value;
    return before;
}

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float __half2float(__half half) {
    const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    const float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(float(fraction), -24)
                                       : std::ldexp(float(fraction + 1024), exponent - 25);
    return half.bits & 0x8000 ? -size : size;
}
// To the nearest, and to the even one of two.
inline __half __float2half_rn(float value) {
    const uint16_t sign = uint16_t(bits_of(value) >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (std::isnan(value)) return {uint16_t(sign | 0x7e00)};
    if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
    if (size == 0.0f) return {sign};
    int exponent = 0;
    std::frexp(size, &exponent);
    if (exponent < -13) exponent = -13;
    const float step = std::ldexp(1.0f, exponent - 11);
    const uint32_t whole = uint32_t(std::nearbyint(size / step)); // up to 2048, which is the next exponent's 1024
    return {uint16_t(sign | (uint32_t(exponent + 13) * 1024 + whole))};
}
inline float __bfloat162float(__nv_bfloat16 value) { return float_of(uint32_t(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class T> inline float number(uint32_t pair, int index);
template <> inline float number<__half>(uint32_t pair, int index) { return __half2float({uint16_t(pair >> 16 * index)}); }
template <> inline float number<__nv_bfloat16>(uint32_t pair, int index) { return float_of(pair >> 16 * index << 16); }

// As the manual says where each number is: `left` (16, 16), `right` (16, 8), `sums` (16, 8).
template <class T> inline void multiply_add(float sums[4], const uint32_t left[4], uint32_t right0, uint32_t right1) {
    const uint32_t own[6] = {left[0], left[1], left[2], left[3], right0, right1};
    const auto *given = emulation::exchange(own, sizeof own);
    const int group = int(threadIdx.x % 32 / 4), place = int(threadIdx.x % 4);
    const auto register_of = [&](int lane, int index) {
        uint32_t bits;
        std::memcpy(&bits, given[lane] + 4 * index, 4);
        return bits;
    };
    for (int index = 0; index < 4; index++) {
        const int row = group + index / 2 * 8, column = place * 2 + index % 2;
        double sum = sums[index];
        for (int inner = 0; inner < 16; inner++) {
            const int lane = inner % 8 / 2;
            const uint32_t a = register_of(row % 8 * 4 + lane, row / 8 + inner / 8 * 2);
            const uint32_t b = register_of(column * 4 + lane, 4 + inner / 8);
            sum += double(number<T>(a, inner % 2)) * double(number<T>(b, inner % 2));
        }
        sums[index] = float(sum);
    }
}

inline float power_of_two(float x) { return std::exp2(x); }

template <class T> inline uint32_t packed_pair(float low, float high);
template <> inline uint32_t packed_pair<__half>(float low, float high) {
    return __float2half_rn(low).bits | uint32_t(__float2half_rn(high).bits) << 16;
}
template <> inline uint32_t packed_pair<__nv_bfloat16>(float low, float high) {
    return __float2bfloat16_rn(low).bits | uint32_t(__float2bfloat16_rn(high).bits) << 16;
}

inline void load_matrices(uint32_t parts[4], const void *row) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
    const auto *given = emulation::exchange(&row, sizeof row);
    const unsigned lane = threadIdx.x % 32;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const char *from;
        std::memcpy(&from, given[matrix * 8 + lane / 4], sizeof from);
        std::memcpy(&parts[matrix], from + lane % 4 * 4, 4);
    }
}

inline void load_transposed(uint32_t parts[4], const void *row) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
    const auto *given = emulation::exchange(&row, sizeof row);
    const unsigned lane = threadIdx.x % 32;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        uint16_t pair[2];
        for (unsigned index = 0; index < 2; index++) {
            const char *from;
            std::memcpy(&from, given[matrix * 8 + lane % 4 * 2 + index], sizeof from);
            std::memcpy(&pair[index], from + lane / 4 * 2, 2);
        }
        parts[matrix] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
    }
}

inline void copy_begin(void *shared, const void *from, bool present) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || (present && reinterpret_cast<uintptr_t>(from) % 16 != 0)) std::abort();
    emulation::block->current->copies.back().push_back({shared, from, present});
}
inline void copy_commit() { emulation::block->current->copies.emplace_back(); }
template <int GROUPS> inline void copy_wait() {
    auto &groups = emulation::block->current->copies;
    while (groups.size() > GROUPS + 1) {
        for (const emulation::Copy &copy : groups.front()) {
            if (copy.present) std::memcpy(copy.to, copy.from, 16);
            else std::memset(copy.to, 0, 16);
        }
        groups.erase(groups.begin());
    }
}
