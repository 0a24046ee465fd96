// Products of 16 x 8 numbers by a warp, and copies into shared memory that run beside them.
//
// Which lane holds what is the PTX manual's: sections "mma.m16n8k16" and "ldmatrix". The lane's group is lane / 4, its place in it
// lane % 4.
#pragma once

#include "numbers.cuh"

#ifdef __CUDACC__

// sums (16, 8) += left (16, 16) right (16, 8).
template <class T> __device__ inline void multiply_add(float sums[4], const uint32_t left[4], uint32_t right0, uint32_t right1);

template <>
__device__ inline void multiply_add<__half>(float sums[4], const uint32_t left[4], uint32_t right0, uint32_t right1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

template <>
__device__ inline void multiply_add<__nv_bfloat16>(float sums[4], const uint32_t left[4], uint32_t right0, uint32_t right1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// 2 to some power, as quickly as a device has it: the last two digits of f32 may be wrong.
__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Two numbers rounded to 16 bits, the first in the lower half, in one instruction.
template <class T> __device__ inline uint32_t packed_pair(float low, float high);

template <> __device__ inline uint32_t packed_pair<__half>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <> __device__ inline uint32_t packed_pair<__nv_bfloat16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ inline uint32_t shared_address(const void *pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// Four matrices of 8 rows of 16 bytes; lanes 8 m to 8 m + 7 give the rows of matrix m.
__device__ inline void load_matrices(uint32_t parts[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_transposed(uint32_t parts[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes into shared memory; zeros where there are none to copy.
__device__ inline void copy_begin(void *shared, const void *from, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(from), "r"(present ? 16 : 0)
                 : "memory");
}

// Ends a group of copies.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `GROUPS` groups of this thread are on their way.
template <int GROUPS> __device__ inline void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"); }

#endif
