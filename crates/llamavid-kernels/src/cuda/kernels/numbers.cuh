// Numbers of 16 and 32 bits, and what the lanes of a warp do together.
//
// Sources are compiled twice: to PTX, and for the processor by the test of `emulation.rs`, where `emulation.hpp` stands in for
// the device. Numbers are computed in f32 whatever they are stored in.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
// What stays on the device between launches, zeros at first.
#define DEVICE_MEMORY __device__
// A kernel whose one argument is `a`. All of it is behind what was launched before.
#define KERNEL(NAME, ARGUMENTS, THREADS, ...)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ ARGUMENTS a) {              \
        let_next_begin();                                                                                          \
        wait_for_earlier();                                                                                        \
        __VA_ARGS__;                                                                                               \
    }
// One whose threads have much on their way each: they get as many registers as leave room for `BLOCKS` blocks on a multiprocessor. It
// waits by itself.
#define LOADING_KERNEL(NAME, ARGUMENTS, THREADS, BLOCKS, ...) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ ARGUMENTS a) { __VA_ARGS__; }
#else
#include "../emulation.hpp"
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float LARGEST = 3.402823466e38f;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T> __device__ T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline __half from_float<__half>(float value) { return __float2half_rn(value); }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// Two numbers of 16 bits in a register, the first in the lower half.
template <class T> __device__ inline uint32_t packed(T low, T high) {
    union {
        T numbers[2];
        uint32_t bits;
    } pair;
    pair.numbers[0] = low;
    pair.numbers[1] = high;
    return pair.bits;
}

// 16 bytes that lie at a multiple of as many.
__device__ inline uint4 load_vector(const void *from) { return *static_cast<const uint4 *>(from); }

// The same of what is read once.
__device__ inline uint4 load_once(const void *from) {
#ifdef __CUDACC__
    return __ldg(static_cast<const uint4 *>(from));
#else
    return load_vector(from);
#endif
}

// What other blocks of the same launch wrote.
__device__ inline float load_written(const float *from) {
#ifdef __CUDACC__
    return __ldcg(from);
#else
    return *from;
#endif
}

// The sum and the products of four bytes without signs with four that have them.
__device__ inline int products_of_four(uint32_t left, uint32_t right, int sum) {
#ifdef __CUDACC__
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(left), "r"(right));
#else
    for (int place = 0; place < 32; place += 8) sum += uint8_t(left >> place) * int8_t(right >> place);
#endif
    return sum;
}

// Kernels of a stream may begin before the one in front of them has ended, where they are launched so (architecture 9.0 and later): they
// wait before they touch what others write, and read only what is constant until then.
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Eight numbers in a row, read or written in vectors of 16 bytes where the row lies so.
template <class T> __device__ inline void read_eight(const T *row, int first, int width, bool whole, float values[8]) {
    if (whole) {
        union {
            uint4 bits[sizeof(T) / 2];
            T numbers[8];
        } vector;
#pragma unroll
        for (int part = 0; part < int(sizeof(T)) / 2; part++)
            vector.bits[part] = reinterpret_cast<const uint4 *>(row + first)[part];
#pragma unroll
        for (int place = 0; place < 8; place++) values[place] = to_float(vector.numbers[place]);
    } else {
#pragma unroll
        for (int place = 0; place < 8; place++)
            values[place] = first + place < width ? to_float(row[first + place]) : 0.0f;
    }
}

template <class T> __device__ inline void write_eight(T *row, int first, int width, bool whole, const float values[8]) {
    if (whole) {
        union {
            uint4 bits[sizeof(T) / 2];
            T numbers[8];
        } vector;
#pragma unroll
        for (int place = 0; place < 8; place++) vector.numbers[place] = from_float<T>(values[place]);
#pragma unroll
        for (int part = 0; part < int(sizeof(T)) / 2; part++)
            reinterpret_cast<uint4 *>(row + first)[part] = vector.bits[part];
    } else {
#pragma unroll
        for (int place = 0; place < 8; place++)
            if (first + place < width) row[first + place] = from_float<T>(values[place]);
    }
}

// The sum over groups of `LANES` lanes next to each other, in each of them.
template <int LANES> __device__ inline float sum_of_lanes(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// The sum over a block of at most 32 warps, in each thread. `scratch` holds a number a warp and may be used again at once.
__device__ inline float sum_of_block(float value, float *scratch) {
    value = sum_of_lanes<32>(value);
    const int warps = blockDim.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < warps; warp++) sum += scratch[warp];
    return sum;
}
