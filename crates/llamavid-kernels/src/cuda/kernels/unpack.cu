// Matrices in blocks become numbers, for products with many rows: cuBLAS multiplies those on tensor cores, and unpacking costs a read
// and a write of the matrix.
//
// What the blocks stand for is what `formats/block_format.rs` says, in f32 and then rounded. A thread has eight numbers next to each
// other, so a warp writes its vectors side by side; the scales that lanes share come from the cache.
#include "numbers.cuh"

// Equals `UnpackArguments` of `arguments.rs`.
struct UnpackArguments {
    const void *blocks; // whole ones, at a multiple of 16 bytes
    void *result;
    int64_t count; // of numbers
};

namespace {

constexpr int THREADS = 256;

__device__ inline float half_at(const unsigned char *from) { return to_float(*reinterpret_cast<const __half *>(from)); }

// Eight bytes that lie at a multiple of two.
__device__ inline uint2 load_eight(const unsigned char *from) {
    const uint16_t *const pairs = reinterpret_cast<const uint16_t *>(from);
    return {uint32_t(pairs[0]) | uint32_t(pairs[1]) << 16, uint32_t(pairs[2]) | uint32_t(pairs[3]) << 16};
}

__device__ inline uint32_t byte_of(const uint2 &bytes, int place) { return (place < 4 ? bytes.x : bytes.y) >> place % 4 * 8 & 255; }

// Each format gives eight numbers of a block, the first of which is at `first`.
struct Q8_0 {
    static constexpr int LENGTH = 32, BYTES = 34;
    __device__ static inline void read(const unsigned char *block, int first, float values[8]) {
        const float scale = half_at(block);
        const uint2 bytes = load_eight(block + 2 + first);
#pragma unroll
        for (int place = 0; place < 8; place++) values[place] = scale * float(int8_t(byte_of(bytes, place)));
    }
};

struct Q4_0 {
    static constexpr int LENGTH = 32, BYTES = 18;
    __device__ static inline void read(const unsigned char *block, int first, float values[8]) {
        const float scale = half_at(block);
        const uint2 bytes = load_eight(block + 2 + first % 16);
        const int shift = first / 16 * 4;
#pragma unroll
        for (int place = 0; place < 8; place++)
            values[place] = scale * float(int(byte_of(bytes, place) >> shift & 15) - 8);
    }
};

// Eighths of a block with a scale and a min each, in 6 bits; of each 64 numbers the first 32 are the lower bits of as many bytes,
// the next the upper ones. `FIVE`: a fifth bit of each number is in 32 bytes between.
template <bool FIVE> struct Eighths {
    static constexpr int LENGTH = 256, BYTES = FIVE ? 176 : 144;
    __device__ static inline void read(const unsigned char *block, int first, float values[8]) {
        const int eighth = first / 32, place_in = first % 32;
        const uint4 head = load_vector(block);
        uint32_t scale = eighth < 4 ? head.y & 0x3f3f3f3f : (head.w & 0x0f0f0f0f) | (head.y >> 2 & 0x30303030);
        uint32_t least = eighth < 4 ? head.z & 0x3f3f3f3f : (head.w >> 4 & 0x0f0f0f0f) | (head.z >> 2 & 0x30303030);
        scale = scale >> eighth % 4 * 8 & 255;
        least = least >> eighth % 4 * 8 & 255;
        union {
            uint32_t bits;
            __half numbers[2];
        } both;
        both.bits = head.x;
        const float step = to_float(both.numbers[0]) * float(int(scale));
        const float base = to_float(both.numbers[1]) * float(int(least));
        const unsigned char *const four = block + (FIVE ? 48 : 16) + eighth / 2 * 32 + place_in;
        uint2 bytes = *reinterpret_cast<const uint2 *>(four);
        const int shift = eighth % 2 * 4;
        bytes = {bytes.x >> shift & 0x0f0f0f0f, bytes.y >> shift & 0x0f0f0f0f};
        if (FIVE) {
            const uint2 fifth = *reinterpret_cast<const uint2 *>(block + 16 + place_in);
            bytes.x |= (fifth.x >> eighth & 0x01010101) << 4;
            bytes.y |= (fifth.y >> eighth & 0x01010101) << 4;
        }
#pragma unroll
        for (int place = 0; place < 8; place++) values[place] = fmaf(float(int(byte_of(bytes, place))), step, -base);
    }
};

struct Q6_K {
    static constexpr int LENGTH = 256, BYTES = 210;
    __device__ static inline void read(const unsigned char *block, int first, float values[8]) {
        const int half = first / 128, quarter = first / 32 % 4, place_in = first % 32;
        const float scale = float(int8_t(block[192 + first / 16])) * half_at(block + 208);
        const uint2 low = load_eight(block + half * 64 + quarter % 2 * 32 + place_in);
        const uint2 high = load_eight(block + 128 + half * 32 + place_in);
        const int shift = quarter / 2 * 4;
        const uint2 bytes = {(low.x >> shift & 0x0f0f0f0f) | (high.x >> quarter * 2 & 0x03030303) << 4,
                             (low.y >> shift & 0x0f0f0f0f) | (high.y >> quarter * 2 & 0x03030303) << 4};
#pragma unroll
        for (int place = 0; place < 8; place++) values[place] = scale * float(int(byte_of(bytes, place)) - 32);
    }
};

template <class T, class Blocks> __device__ inline void unpack(const UnpackArguments &a) {
    const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (first >= a.count) return;
    float values[8];
    const unsigned char *const block = static_cast<const unsigned char *>(a.blocks) + first / Blocks::LENGTH * Blocks::BYTES;
    Blocks::read(block, int(first % Blocks::LENGTH), values);
    write_eight(static_cast<T *>(a.result) + first, 0, 8, true, values);
}

} // namespace

#define OF_TYPE(NAME, TYPE)                                                              \
    KERNEL(unpack_q8_0_##NAME, UnpackArguments, THREADS, (unpack<TYPE, Q8_0>(a)))           \
    KERNEL(unpack_q4_0_##NAME, UnpackArguments, THREADS, (unpack<TYPE, Q4_0>(a)))           \
    KERNEL(unpack_q4_k_##NAME, UnpackArguments, THREADS, (unpack<TYPE, Eighths<false>>(a))) \
    KERNEL(unpack_q5_k_##NAME, UnpackArguments, THREADS, (unpack<TYPE, Eighths<true>>(a)))  \
    KERNEL(unpack_q6_k_##NAME, UnpackArguments, THREADS, (unpack<TYPE, Q6_K>(a)))

OF_TYPE(f32, float)
OF_TYPE(f16, __half)
OF_TYPE(bf16, __nv_bfloat16)
