// One row times matrices, as decoding has it: reading the weights is the work, and everything beside it is done on the way. The row's
// norm of root mean squares is a factor that the sums get in the end; up to three matrices read the same row; biases, a residual or the
// gate of the feed-forward layer follow the sums.
//
// A warp has two rows of a matrix at a time, or one of each of two matrices that are gate and value. Weights in blocks are ggml's Q4_K
// and Q6_K, unpacked in registers; what they are multiplied with is rounded to 8 bits in blocks of 32, as on the CPU.
//
// Weights are on their way at all times: the first ones before the row is read, and while some are multiplied, those of the next turn or
// of the warp's next rows.
#include "numbers.cuh"

// Equals `ProductArguments` of `arguments.rs`.
struct ProductArguments {
    const void *x;           // (columns)
    const void *norm;        // (columns): the weights of x's norm, or nothing
    const void *residual;    // added to the first result, or nothing
    const void *weights[3];  // (rows, columns) each
    const void *biases[3];   // (rows) each, or nothing
    void *results[3];        // (rows) each
    int32_t rows[3];         // 0 of a matrix that is not there
    int32_t six_bits[3];     // whether blocks are Q6_K
    int32_t columns;
    float eps;
};

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// Rows of the matrices, two for a warp: two of one matrix, or one each of gate and value.
struct Pair {
    int matrices[2], rows[2];
};

__device__ inline const unsigned char *row_of(const ProductArguments &a, const Pair &pair, int which, int row_bytes) {
    return static_cast<const unsigned char *>(a.weights[pair.matrices[which]]) + int64_t(pair.rows[which]) * row_bytes;
}

// The row as it is, for weights that are numbers. 16 bytes of each of two rows of weights are a lane's at a time, and `AT_ONCE` times as
// many are on their way. The row has zeros up to whole turns; what they meet is read, and counts for nothing.
template <class T> struct Numbers {
    static constexpr int AT_ONCE = 4, TURN = 32 * 8 * AT_ONCE;
    struct Read {
        uint4 vectors[AT_ONCE][2];
    };
    float *x;

    __device__ Numbers(int, uint4 *shared) : x(reinterpret_cast<float *>(shared)) {}

    __device__ void write(int first, const float values[8]) const { write_eight(x, first, 0, true, values); }

    __device__ static void load(const ProductArguments &a, const Pair &pair, int turn, Read &read) {
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const T *const row = reinterpret_cast<const T *>(row_of(a, pair, which, a.columns * int(sizeof(T))));
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                const int first = turn * TURN + next * 256 + int(threadIdx.x % 32) * 8;
                read.vectors[next][which] = load_once(row + min(first, a.columns - 8));
            }
        }
    }

    // The first turn's weights are on their way.
    __device__ static void begin(const ProductArguments &a, const Pair &pair, Read &read) { load(a, pair, 0, read); }

    // The sums of a pair, whose first turn is in `read`; then that of the next pair is, if there is one.
    __device__ void add(const ProductArguments &a, const Pair &pair, const Pair &after, bool more, Read &read, float sums[2]) const {
        const int turns = (a.columns + TURN - 1) / TURN;
        for (int turn = 0; turn < turns; turn++) {
            const Read own = read;
            if (turn + 1 < turns) load(a, pair, turn + 1, read);
            else if (more) load(a, after, 0, read);
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                float values[8];
                read_eight(x, turn * TURN + next * 256 + int(threadIdx.x % 32) * 8, 0, true, values);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    union {
                        uint4 bits;
                        T numbers[8];
                    } vector;
                    vector.bits = own.vectors[next][which];
#pragma unroll
                    for (int place = 0; place < 8; place++) sums[which] += to_float(vector.numbers[place]) * values[place];
                }
            }
        }
    }
};

// The row in int8, with a scale for each 32 and what their sum stands for. Four lanes share a block of 256 weights.
struct Rounded {
    static constexpr int TURN = 8 * 256;
    struct Read {
        uint4 heads[2], quants[2][2];
    };
    unsigned char *x;
    float *scales, *weighted;

    __device__ Rounded(int padded, uint4 *shared)
        : x(reinterpret_cast<unsigned char *>(shared)), scales(reinterpret_cast<float *>(x + padded)), weighted(scales + padded / 32) {}

    // Where a number of the row is: of each turn, the first 16 numbers of all lanes lie side by side, then their next ones.
    __device__ unsigned char *at(int number) const {
        return x + number / TURN * TURN + (number / 16 % 4 * 32 + number / 64 % 32) * 16 + number % 16;
    }

    // Four lanes next to each other have a block of 32.
    __device__ void write(int first, const float values[8]) const {
        float most = 0.0f;
#pragma unroll
        for (int place = 0; place < 8; place++) most = fmaxf(most, fabsf(values[place]));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        const float inverse = most == 0.0f ? 0.0f : 127.0f / most;
        uint32_t rounded[2] = {};
#pragma unroll
        for (int place = 0; place < 8; place++)
            rounded[place / 4] |= uint32_t(int(rintf(values[place] * inverse)) & 255) << place % 4 * 8;
        *reinterpret_cast<uint2 *>(at(first)) = {rounded[0], rounded[1]};
        int sum = products_of_four(0x01010101, rounded[1], products_of_four(0x01010101, rounded[0], 0));
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (first % 32 == 0) {
            scales[first / 32] = most / 127.0f;
            weighted[first / 32] = most / 127.0f * float(sum);
        }
    }

    __device__ static void load(const ProductArguments &a, const Pair &pair, int turn, Read &read) {
        const int block = min(turn * 8 + int(threadIdx.x % 32) / 4, a.columns / 256 - 1);
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const unsigned char *const from = row_of(a, pair, which, a.columns / 256 * 144) + block * 144;
            const unsigned char *const own = from + 16 + threadIdx.x % 4 * 32;
            read.heads[which] = load_once(from);
            read.quants[which][0] = load_once(own);
            read.quants[which][1] = load_once(own + 16);
        }
    }

    // The first turn's weights are on their way, if they are of four bits.
    __device__ static void begin(const ProductArguments &a, const Pair &pair, Read &read) {
        if (!a.six_bits[pair.matrices[0]]) load(a, pair, 0, read);
    }

    // The sums of a pair, whose first turn is in `read`; then that of the next pair is, if there is one.
    __device__ void add(const ProductArguments &a, const Pair &pair, const Pair &after, bool more, Read &read, float sums[2]) const {
        const int turns = (a.columns + TURN - 1) / TURN;
        if (a.six_bits[pair.matrices[0]]) {
            for (int turn = 0; turn < turns; turn++) add_six_bits(a, pair, turn, sums);
            if (more) begin(a, after, read);
            return;
        }
        for (int turn = 0; turn < turns; turn++) {
            const Read own = read;
            if (turn + 1 < turns) load(a, pair, turn + 1, read);
            else if (more) begin(a, after, read);
            add_four_bits(turn, own, sums);
        }
    }

    // Of a block, 16 bytes hold what all weights have in common (a scale and a min, and eight of each in 6 bits) and 128 the
    // weights: of each 32 bytes the lower halves are 32 weights, the upper ones the next 32. A lane has 32 of those bytes.
    __device__ void add_four_bits(int turn, const Read &read, float sums[2]) const {
        const int chunk = threadIdx.x % 4, shift = chunk % 2 * 16, eighth = turn * 64 + threadIdx.x % 32 * 2;
        const unsigned char *const own = x + turn * TURN + threadIdx.x % 32 * 16;
        const uint4 lower[2] = {load_vector(own), load_vector(own + 512)}, upper[2] = {load_vector(own + 1024), load_vector(own + 1536)};
        const float2 scale = *reinterpret_cast<const float2 *>(scales + eighth);
        const float2 sum = *reinterpret_cast<const float2 *>(weighted + eighth);
        // Upper halves stay where they are, so that products with them are 16 times as large.
        const float upper_scale = scale.y * 0.0625f;
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const uint4 &head = read.heads[which];
            const uint32_t y = head.y >> shift, z = head.z >> shift, w = head.w >> shift;
            const uint32_t own_scales = chunk < 2 ? y & 0x3f3f : (w & 0x0f0f) | (y >> 2 & 0x3030);
            const uint32_t mins = chunk < 2 ? z & 0x3f3f : (w >> 4 & 0x0f0f) | (z >> 2 & 0x3030);
            int lower_product = 0, upper_product = 0;
#pragma unroll
            for (int part = 0; part < 2; part++) {
                lower_product = products_of_vector(read.quants[which][part], 0x0f0f0f0f, lower[part], lower_product);
                upper_product = products_of_vector(read.quants[which][part], 0xf0f0f0f0, upper[part], upper_product);
            }
            union {
                uint32_t bits;
                __half numbers[2];
            } both;
            both.bits = head.x;
            sums[which] += to_float(both.numbers[0]) * (scale.x * float(int(own_scales & 255) * lower_product) +
                                                        upper_scale * float(int(own_scales >> 8) * upper_product)) -
                           to_float(both.numbers[1]) * (sum.x * float(int(mins & 255)) + sum.y * float(int(mins >> 8)));
        }
    }

    // Of a block, 128 bytes hold the lower four bits of the weights, 64 their upper two, 16 the scales of 16 weights each, and two a scale
    // of those. A lane has 16 weights of each quarter of a half. They count from -32.
    __device__ void add_six_bits(const ProductArguments &a, const Pair &pair, int turn, float sums[2]) const {
        const int part = threadIdx.x % 4, half = part / 2, blocks = a.columns / 256;
        const int block = min(turn * 8 + int(threadIdx.x % 32) / 4, blocks - 1);
        uint32_t low[2][2][5], high[2][5], scale[2][3], odd[2];
        __half all[2];
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const unsigned char *const from = row_of(a, pair, which, blocks * 210) + block * 210;
            // Blocks lie at multiples of two: whole words are read from where one begins.
            odd[which] = uint32_t(reinterpret_cast<uintptr_t>(from)) & 2;
            const unsigned char *const words = from - odd[which];
            load_words<5>(words + half * 64 + part % 2 * 16, odd[which], low[which][0]);
            load_words<5>(words + half * 64 + 32 + part % 2 * 16, odd[which], low[which][1]);
            load_words<5>(words + 128 + half * 32 + part % 2 * 16, odd[which], high[which]);
            load_words<3>(words + 192 + half * 8, odd[which], scale[which]);
            all[which] = *reinterpret_cast<const __half *>(from + 208);
        }
        uint4 own[4];
        float scales_of[4];
#pragma unroll
        for (int quarter = 0; quarter < 4; quarter++) {
            const int number = turn * TURN + int(threadIdx.x % 32) / 4 * 256 + half * 128 + quarter * 32;
            own[quarter] = load_vector(at(number + part % 2 * 16));
            // Weights are taken four times as large, so that their sign is that of a byte.
            scales_of[quarter] = scales[number / 32] * 0.25f;
        }
#pragma unroll
        for (int which = 0; which < 2; which++) {
            int products[4] = {};
#pragma unroll
            for (int word = 0; word < 4; word++) {
                const uint32_t first = joined(low[which][0], word, odd[which]), second = joined(low[which][1], word, odd[which]);
                const uint32_t upper = joined(high[which], word, odd[which]);
                const uint32_t quants[4] = {
                    (first << 2 & 0x3c3c3c3c) | ((upper << 6 & 0xc0c0c0c0) ^ 0x80808080),
                    (second << 2 & 0x3c3c3c3c) | ((upper << 4 & 0xc0c0c0c0) ^ 0x80808080),
                    (first >> 2 & 0x3c3c3c3c) | ((upper << 2 & 0xc0c0c0c0) ^ 0x80808080),
                    (second >> 2 & 0x3c3c3c3c) | ((upper & 0xc0c0c0c0) ^ 0x80808080),
                };
#pragma unroll
                for (int quarter = 0; quarter < 4; quarter++) {
                    const uint4 &row = own[quarter];
                    const uint32_t four = word == 0 ? row.x : word == 1 ? row.y : word == 2 ? row.z : row.w;
                    products[quarter] = __dp4a(int(quants[quarter]), int(four), products[quarter]);
                }
            }
            float sum = 0.0f;
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                const uint32_t bytes = joined(scale[which], quarter / 2, odd[which]) >> (quarter % 2 * 2 + part % 2) * 8;
                sum += scales_of[quarter] * float(int(int8_t(bytes & 255)) * products[quarter]);
            }
            sums[which] += to_float(all[which]) * sum;
        }
    }

    // Words from a multiple of four on; the last one only where what is wanted does not begin there.
    template <int COUNT> __device__ static void load_words(const unsigned char *from, uint32_t odd, uint32_t words[COUNT]) {
#pragma unroll
        for (int word = 0; word < COUNT; word++)
            words[word] = word + 1 < COUNT || odd ? reinterpret_cast<const uint32_t *>(from)[word] : 0;
    }
    // The bytes of a word that begins `odd` bytes later.
    __device__ static uint32_t joined(const uint32_t *words, int word, uint32_t odd) {
        return odd ? words[word] >> 16 | words[word + 1] << 16 : words[word];
    }

    // The sum and the products of 16 bytes of weights, those bits of them that are in `mask`, with as many of the row.
    __device__ static int products_of_vector(const uint4 &weights, uint32_t mask, const uint4 &row, int sum) {
        sum = products_of_four(weights.x & mask, row.x, sum);
        sum = products_of_four(weights.y & mask, row.y, sum);
        sum = products_of_four(weights.z & mask, row.z, sum);
        return products_of_four(weights.w & mask, row.w, sum);
    }
};

// The pair with this number.
template <bool GATED> __device__ inline Pair pair_of(const ProductArguments &a, int number) {
    if (GATED) return {{0, 1}, {number, number}};
    int matrix = 0, left = number;
#pragma unroll
    for (int before = 0; before < 2; before++) {
        const int those = (a.rows[before] + 1) / 2;
        if (matrix == before && left >= those) {
            left -= those;
            matrix++;
        }
    }
    // The last row of an odd number is read twice.
    return {{matrix, matrix}, {2 * left, min(2 * left + 1, a.rows[matrix] - 1)}};
}

// The row, for all of the block; the sum of its squares where it has a norm, for all of the warp.
template <class T, class Row> __device__ inline float read_row(const ProductArguments &a, const Row &row, int padded) {
    // Vectors of the row that a thread asks for before it uses the first.
    constexpr int AT_ONCE = 4;
    const T *const x = static_cast<const T *>(a.x), *const norm = static_cast<const T *>(a.norm);
    float squares = 0.0f;
    for (int from = threadIdx.x * 8; from < padded; from += THREADS * 8 * AT_ONCE) {
        union Vector {
            uint4 bits;
            T numbers[8];
        } own[AT_ONCE], weights[AT_ONCE];
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const int first = min(from + next * THREADS * 8, a.columns - 8);
            own[next].bits = load_vector(x + first);
            if (norm != nullptr) weights[next].bits = load_vector(norm + first);
        }
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const int first = from + next * THREADS * 8;
            if (first >= padded) break;
            float values[8] = {};
            if (first < a.columns) {
#pragma unroll
                for (int place = 0; place < 8; place++) {
                    values[place] = to_float(own[next].numbers[place]);
                    if (norm == nullptr) continue;
                    squares += values[place] * values[place];
                    values[place] *= to_float(weights[next].numbers[place]);
                }
            }
            row.write(first, values);
        }
    }
    return norm == nullptr ? 0.0f : sum_of_lanes<32>(squares);
}

template <class T, class Row, bool GATED> __device__ inline void multiply(const ProductArguments &a) {
    DYNAMIC_SHARED(shared);
    __shared__ float scratch[WARPS];
    const int warp = threadIdx.x / 32, step = gridDim.x * WARPS;
    int pairs = a.rows[0];
    if (!GATED) pairs = (a.rows[0] + 1) / 2 + (a.rows[1] + 1) / 2 + (a.rows[2] + 1) / 2;
    int number = blockIdx.x * WARPS + warp;
    Pair pair = pair_of<GATED>(a, min(number, pairs - 1));
    typename Row::Read read;
    Row::begin(a, pair, read);
    let_next_begin();
    wait_for_earlier();

    const int padded = (a.columns + Row::TURN - 1) / Row::TURN * Row::TURN;
    const Row row(padded, shared);
    const float squares = read_row<T>(a, row, padded);
    if (threadIdx.x % 32 == 0) scratch[warp] = squares;
    __syncthreads();
    float scale = 1.0f;
    if (a.norm != nullptr) {
        float sum = 0.0f;
#pragma unroll
        for (int from = 0; from < WARPS; from++) sum += scratch[from];
        scale = rsqrtf(sum / float(a.columns) + a.eps);
    }

    for (; number < pairs; number += step) {
        const bool more = number + step < pairs;
        const Pair after = pair_of<GATED>(a, more ? number + step : number);
        // What is added in the end is on its way, too.
        float added[2] = {}, sums[2] = {};
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const T *const bias = static_cast<const T *>(a.biases[pair.matrices[which]]);
            const T *const residual = static_cast<const T *>(a.residual);
            if (bias != nullptr) added[which] = to_float(bias[pair.rows[which]]);
            if (!GATED && residual != nullptr && pair.matrices[0] == 0) added[which] += to_float(residual[pair.rows[which]]);
        }
        row.add(a, pair, after, more, read, sums);
#pragma unroll
        for (int which = 0; which < 2; which++) sums[which] = sum_of_lanes<32>(sums[which]) * scale + added[which];
        if (threadIdx.x % 32 == 0) {
            T *const result = static_cast<T *>(a.results[pair.matrices[0]]);
            if constexpr (GATED) {
                result[pair.rows[0]] = from_float<T>(sums[0] / (1.0f + expf(-sums[0])) * sums[1]);
            } else {
                for (int which = 0; which < 2; which++) result[pair.rows[which]] = from_float<T>(sums[which]);
            }
        }
        pair = after;
    }
}

} // namespace

#define OF_TYPE(NAME, TYPE)                                                                                        \
    LOADING_KERNEL(product_##NAME, ProductArguments, THREADS, 2, (multiply<TYPE, Numbers<TYPE>, false>(a)))       \
    LOADING_KERNEL(product_gated_##NAME, ProductArguments, THREADS, 2, (multiply<TYPE, Numbers<TYPE>, true>(a)))  \
    LOADING_KERNEL(product_blocks_##NAME, ProductArguments, THREADS, 2, (multiply<TYPE, Rounded, false>(a)))      \
    LOADING_KERNEL(product_blocks_gated_##NAME, ProductArguments, THREADS, 2, (multiply<TYPE, Rounded, true>(a)))

OF_TYPE(f16, __half)
OF_TYPE(bf16, __nv_bfloat16)
