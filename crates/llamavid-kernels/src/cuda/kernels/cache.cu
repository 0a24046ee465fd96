// Keys and values on their way into the cache of past positions and out of it, and the rotation by their positions.
#include "numbers.cuh"

// Equals `RotateArguments` of `arguments.rs`. Queries (B, heads, S, d), and keys and values (B, key heads, S, d) on their way into caches
// (B, key heads, capacity, d); each with strides of batch, head and row in numbers.
struct RotateArguments {
    const void *queries, *keys, *values;
    void *rotated; // queries, one after the other
    void *key_cache, *value_cache;
    const void *cosines, *sines; // (S, d / 2), in the dtype of the rest
    int64_t query_strides[3], key_strides[3], value_strides[3], cache_strides[3];
    int32_t batch, heads, key_heads, rows, width; // no key heads where there are queries alone
    int32_t vectors; // whether halves of rows lie at multiples of 16 bytes
};

// Equals `StoreArguments` of `arguments.rs`. Numbers (B, heads, S, d) with strides in numbers, and where they are held: strides in
// bytes.
struct StoreArguments {
    void *numbers;
    void *held;
    int64_t number_strides[3], held_strides[3]; // of batch, head and row
    int32_t batch, heads, rows, width;
};

namespace {

constexpr int THREADS = 256;

// Which row of which head of which sequence.
struct Row {
    int batch, head, row;
    __device__ Row(int64_t index, int heads, int rows)
        : batch(int(index / rows / heads)), head(int(index / rows % heads)), row(int(index % rows)) {}
    __device__ int64_t place(const int64_t strides[3]) const {
        return batch * strides[0] + head * strides[1] + row * strides[2];
    }
};

// The halves of a row turned against each other; values stay as they are. A thread takes eight numbers of either half.
template <class T> __device__ inline void rotate(const RotateArguments &a) {
    const int half = a.width / 2, heads = a.heads + 2 * a.key_heads, eights = (half + 7) / 8;
    const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (index >= int64_t(a.batch) * heads * a.rows * eights) return;
    const int first = int(index % eights) * 8;
    Row row(index / eights, heads, a.rows);
    const T *from = static_cast<const T *>(a.queries) + row.place(a.query_strides);
    T *to = static_cast<T *>(a.rotated) + ((int64_t(row.batch) * a.heads + row.head) * a.rows + row.row) * a.width;
    const bool value = row.head >= a.heads + a.key_heads;
    if (row.head >= a.heads) {
        row.head -= value ? a.heads + a.key_heads : a.heads;
        from = static_cast<const T *>(value ? a.values : a.keys) + row.place(value ? a.value_strides : a.key_strides);
        to = static_cast<T *>(value ? a.value_cache : a.key_cache) + row.place(a.cache_strides);
    }
    float low[8], high[8];
    read_eight(from, first, half, a.vectors, low);
    read_eight(from + half, first, half, a.vectors, high);
    if (!value) {
        float cosines[8], sines[8];
        read_eight(static_cast<const T *>(a.cosines) + int64_t(row.row) * half, first, half, a.vectors, cosines);
        read_eight(static_cast<const T *>(a.sines) + int64_t(row.row) * half, first, half, a.vectors, sines);
#pragma unroll
        for (int place = 0; place < 8; place++) {
            const float turned = low[place] * cosines[place] - high[place] * sines[place];
            high[place] = low[place] * sines[place] + high[place] * cosines[place];
            low[place] = turned;
        }
    }
    write_eight(to, first, half, a.vectors, low);
    write_eight(to + half, first, half, a.vectors, high);
}

// A thread takes one number.
template <class T, class Held, bool BACK> __device__ inline void convert(const StoreArguments &a) {
    const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (index >= int64_t(a.batch) * a.heads * a.rows * a.width) return;
    const int place = int(index % a.width);
    const Row row(index / a.width, a.heads, a.rows);
    T *const number = static_cast<T *>(a.numbers) + row.place(a.number_strides) + place;
    Held *const held = reinterpret_cast<Held *>(static_cast<char *>(a.held) + row.place(a.held_strides)) + place;
    if (BACK) *number = from_float<T>(to_float(*held));
    else *held = from_float<Held>(to_float(*number));
}

// A warp takes one block of 32 numbers. The scales are those of ggml, so that a cache is the same wherever it is made.
template <class T> __device__ inline void store_eight_bit(const StoreArguments &a) {
    const int lane = threadIdx.x % 32, blocks = a.width / 32;
    const int64_t index = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / 32;
    if (index >= int64_t(a.batch) * a.heads * a.rows * blocks) return;
    const Row row(index / blocks, a.heads, a.rows);
    const int block = int(index % blocks);
    const float value = to_float(static_cast<const T *>(a.numbers)[row.place(a.number_strides) + block * 32 + lane]);
    float most = fabsf(value);
    for (int distance = 16; distance > 0; distance /= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, distance));
    const float scale = most / 127.0f, inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    unsigned char *const to = static_cast<unsigned char *>(a.held) + row.place(a.held_strides) + block * 34;
    if (lane == 0) *reinterpret_cast<__half *>(to) = from_float<__half>(scale);
    to[2 + lane] = (unsigned char)(int8_t(roundf(value * inverse)));
}

template <class T> __device__ inline void store_four_bit(const StoreArguments &a) {
    const int lane = threadIdx.x % 32, blocks = a.width / 32;
    const int64_t index = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / 32;
    if (index >= int64_t(a.batch) * a.heads * a.rows * blocks) return;
    const Row row(index / blocks, a.heads, a.rows);
    const int block = int(index % blocks);
    const float value = to_float(static_cast<const T *>(a.numbers)[row.place(a.number_strides) + block * 32 + lane]);
    // The number furthest from 0, with its sign, is -8; the first of equal ones counts.
    float most = value;
    int first = lane;
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, most, distance);
        const int place = __shfl_xor_sync(ALL_LANES, first, distance);
        if (fabsf(other) > fabsf(most) || (fabsf(other) == fabsf(most) && place < first)) {
            most = other;
            first = place;
        }
    }
    const float scale = most / -8.0f, inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    const int whole = min(15, int(value * inverse + 8.5f));
    const int upper = __shfl_xor_sync(ALL_LANES, whole, 16);
    unsigned char *const to = static_cast<unsigned char *>(a.held) + row.place(a.held_strides) + block * 18;
    if (lane == 0) *reinterpret_cast<__half *>(to) = from_float<__half>(scale);
    if (lane < 16) to[2 + lane] = (unsigned char)(whole | upper << 4);
}

// A thread takes one number of a block.
template <class T, bool FOUR> __device__ inline void read_blocks(const StoreArguments &a) {
    const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (index >= int64_t(a.batch) * a.heads * a.rows * a.width) return;
    const int place = int(index % a.width), inside = place % 32;
    const Row row(index / a.width, a.heads, a.rows);
    const unsigned char *const from = static_cast<const unsigned char *>(a.held) + row.place(a.held_strides) +
                                      place / 32 * (FOUR ? 18 : 34);
    const float scale = to_float(*reinterpret_cast<const __half *>(from));
    float whole;
    if (FOUR) whole = float((inside < 16 ? from[2 + inside] & 15 : from[2 + inside - 16] >> 4) - 8);
    else whole = float(int8_t(from[2 + inside]));
    static_cast<T *>(a.numbers)[row.place(a.number_strides) + place] = from_float<T>(scale * whole);
}

} // namespace

#define OF_TYPE(NAME, TYPE)                                                                   \
    KERNEL(rotate_##NAME, RotateArguments, THREADS, (rotate<TYPE>(a)))                       \
    KERNEL(store_##NAME##_f16, StoreArguments, THREADS, (convert<TYPE, __half, false>(a)))   \
    KERNEL(read_##NAME##_f16, StoreArguments, THREADS, (convert<TYPE, __half, true>(a)))     \
    KERNEL(store_##NAME##_q8_0, StoreArguments, THREADS, (store_eight_bit<TYPE>(a)))         \
    KERNEL(read_##NAME##_q8_0, StoreArguments, THREADS, (read_blocks<TYPE, false>(a)))       \
    KERNEL(store_##NAME##_q4_0, StoreArguments, THREADS, (store_four_bit<TYPE>(a)))          \
    KERNEL(read_##NAME##_q4_0, StoreArguments, THREADS, (read_blocks<TYPE, true>(a)))

OF_TYPE(f32, float)
OF_TYPE(f16, __half)
OF_TYPE(bf16, __nv_bfloat16)
