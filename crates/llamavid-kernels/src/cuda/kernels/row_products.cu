// One row times matrices, as decoding has it: reading the weights is the work, and everything beside it is done on the way. The row's
// norm of root mean squares is a factor that the sums get in the end; up to three matrices read the same row; biases, a residual or the
// gate of the feed-forward layer follow the sums.
//
// A warp has two rows of a matrix at a time, or one of each of two matrices that are gate and value. Weights in blocks are ggml's Q4_K
// and Q6_K, unpacked in registers; what they are multiplied with is rounded to 8 bits in blocks of 32, as on the CPU.
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

// The row as it is, for weights that are numbers. 16 bytes of each of two rows of weights are a lane's at a time, and `AT_ONCE` times as
// many are on their way. The row has zeros up to whole turns; what they meet is read, and counts for nothing.
template <class T> struct Numbers {
    static constexpr int AT_ONCE = 4, TURN = 32 * 8 * AT_ONCE;
    float *x;

    __device__ Numbers(int, uint4 *shared) : x(reinterpret_cast<float *>(shared)) {}

    __device__ void write(int first, const float values[8]) const { write_eight(x, first, 0, true, values); }

    __device__ void add(const ProductArguments &a, const int matrices[2], const int rows[2], float sums[2]) const {
        const T *weights[2];
        for (int which = 0; which < 2; which++)
            weights[which] = static_cast<const T *>(a.weights[matrices[which]]) + int64_t(rows[which]) * a.columns;
        const int lane = threadIdx.x % 32;
        for (int from = lane * 8; from < a.columns; from += TURN) {
            uint4 read[AT_ONCE][2];
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                const int first = min(from + next * 256, a.columns - 8);
#pragma unroll
                for (int which = 0; which < 2; which++) read[next][which] = load_vector(weights[which] + first);
            }
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                float own[8];
                read_eight(x, from + next * 256, 0, true, own);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    union {
                        uint4 bits;
                        T numbers[8];
                    } vector;
                    vector.bits = read[next][which];
#pragma unroll
                    for (int place = 0; place < 8; place++) sums[which] += to_float(vector.numbers[place]) * own[place];
                }
            }
        }
    }
};

// The sum of the products of four pairs of bytes, and of the bytes themselves.
__device__ inline int products_of_four(uint32_t left, uint32_t right, int sum) { return __dp4a(int(left), int(right), sum); }
__device__ inline int sum_of_four(uint32_t bytes, int sum) { return __dp4a(int(bytes), 0x01010101, sum); }

// Four bytes that lie at a multiple of two.
__device__ inline uint32_t load_four(const unsigned char *from) {
    const uint16_t *const pairs = reinterpret_cast<const uint16_t *>(from);
    return uint32_t(pairs[0]) | uint32_t(pairs[1]) << 16;
}

// The row in whole numbers of 8 bits, with a scale for each 32. Eight lanes share a block of 256 weights; as above, `AT_ONCE` blocks of
// each two rows are on their way.
struct Rounded {
    static constexpr int AT_ONCE = 2, TURN = 4 * 256 * AT_ONCE;
    unsigned char *x;
    float *scales;

    __device__ Rounded(int padded, uint4 *shared)
        : x(reinterpret_cast<unsigned char *>(shared)), scales(reinterpret_cast<float *>(x + padded)) {}

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
        *reinterpret_cast<uint2 *>(x + first) = {rounded[0], rounded[1]};
        if (first % 32 == 0) scales[first / 32] = most / 127.0f;
    }

    __device__ void add(const ProductArguments &a, const int matrices[2], const int rows[2], float sums[2]) const {
        const int blocks = a.columns / 256, bytes = a.six_bits[matrices[0]] ? 210 : 144;
        const unsigned char *weights[2];
        for (int which = 0; which < 2; which++)
            weights[which] = static_cast<const unsigned char *>(a.weights[matrices[which]]) + int64_t(rows[which]) * blocks * bytes;
        if (a.six_bits[matrices[0]]) add_six_bits(weights, blocks, sums);
        else add_four_bits(weights, blocks, sums);
    }

    // Of a block, 16 bytes hold what all weights have in common (a scale and a least value, and eight of each in 6 bits) and 128 the
    // weights: of each 32 bytes the lower halves are 32 weights, the upper ones the next 32. A lane has 16 of those bytes.
    __device__ void add_four_bits(const unsigned char *const weights[2], int blocks, float sums[2]) const {
        const int lane = threadIdx.x % 8, chunk = lane / 2, half = lane % 2;
        for (int from = threadIdx.x % 32 / 8; from < blocks; from += 4 * AT_ONCE) {
            uint4 heads[AT_ONCE][2], quants[AT_ONCE][2];
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                const int block = min(from + 4 * next, blocks - 1);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    heads[next][which] = load_vector(weights[which] + int64_t(block) * 144);
                    quants[next][which] = load_vector(weights[which] + int64_t(block) * 144 + 16 + lane * 16);
                }
            }
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                const int block = from + 4 * next;
                const unsigned char *const own = x + block * 256 + chunk * 64 + half * 16;
                const uint4 lower = load_vector(own), upper = load_vector(own + 32);
                const float lower_scale = scales[block * 8 + chunk * 2], upper_scale = scales[block * 8 + chunk * 2 + 1];
                const int lower_sum = sum_of_vector(lower), upper_sum = sum_of_vector(upper);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    const uint4 head = heads[next][which], four = quants[next][which];
                    // The scales and least values of the chunk's two parts, in bytes.
                    uint32_t scale = chunk < 2 ? head.y & 0x3f3f3f3f : (head.w & 0x0f0f0f0f) | (head.y >> 2 & 0x30303030);
                    uint32_t least = chunk < 2 ? head.z & 0x3f3f3f3f : (head.w >> 4 & 0x0f0f0f0f) | (head.z >> 2 & 0x30303030);
                    scale >>= chunk % 2 * 16;
                    least >>= chunk % 2 * 16;
                    const int lower_product = products_of_vector(masked(four, 0), lower);
                    const int upper_product = products_of_vector(masked(four, 4), upper);
                    union {
                        uint32_t bits;
                        __half numbers[2];
                    } both;
                    both.bits = head.x;
                    sums[which] += to_float(both.numbers[0]) * (lower_scale * float(int(scale & 255) * lower_product) +
                                                                upper_scale * float(int(scale >> 8 & 255) * upper_product)) -
                                   to_float(both.numbers[1]) * (lower_scale * float(int(least & 255) * lower_sum) +
                                                                upper_scale * float(int(least >> 8 & 255) * upper_sum));
                }
            }
        }
    }

    // Of a block, 128 bytes hold the lower four bits of the weights, 64 their upper two, 16 the scales of 16 weights each, and two a scale
    // of those. A lane has eight weights of each quarter of a half. They count from -32.
    __device__ void add_six_bits(const unsigned char *const weights[2], int blocks, float sums[2]) const {
        const int lane = threadIdx.x % 8, half = lane / 4, eighth = lane % 4 * 8;
        for (int block = threadIdx.x % 32 / 8; block < blocks; block += 4) {
            uint32_t parts[4][2];
            int part_sums[4];
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                const uint2 own =
                    *reinterpret_cast<const uint2 *>(x + block * 256 + half * 128 + quarter * 32 + eighth);
                parts[quarter][0] = own.x;
                parts[quarter][1] = own.y;
                part_sums[quarter] = sum_of_four(own.y, sum_of_four(own.x, 0));
            }
#pragma unroll
            for (int which = 0; which < 2; which++) {
                const unsigned char *const from = weights[which] + int64_t(block) * 210;
                const int8_t *const of_sixteen = reinterpret_cast<const int8_t *>(from + 192) + half * 8 + eighth / 16;
                const unsigned char *const low = from + half * 64 + eighth, *const high = from + 128 + half * 32 + eighth;
                float sum = 0.0f;
                int products[4] = {};
#pragma unroll
                for (int four = 0; four < 2; four++) {
                    const uint32_t first = load_four(low + 4 * four), second = load_four(low + 32 + 4 * four);
                    const uint32_t upper = load_four(high + 4 * four);
                    const uint32_t quants[4] = {
                        (first & 0x0f0f0f0f) | (upper << 4 & 0x30303030),
                        (second & 0x0f0f0f0f) | (upper << 2 & 0x30303030),
                        (first >> 4 & 0x0f0f0f0f) | (upper & 0x30303030),
                        (second >> 4 & 0x0f0f0f0f) | (upper >> 2 & 0x30303030),
                    };
#pragma unroll
                    for (int quarter = 0; quarter < 4; quarter++)
                        products[quarter] = products_of_four(quants[quarter], parts[quarter][four], products[quarter]);
                }
#pragma unroll
                for (int quarter = 0; quarter < 4; quarter++)
                    sum += scales[block * 8 + half * 4 + quarter] *
                           float(of_sixteen[2 * quarter] * (products[quarter] - 32 * part_sums[quarter]));
                sums[which] += to_float(*reinterpret_cast<const __half *>(from + 208)) * sum;
            }
        }
    }

    __device__ static uint4 masked(const uint4 &bytes, int shift) {
        return {bytes.x >> shift & 0x0f0f0f0f, bytes.y >> shift & 0x0f0f0f0f, bytes.z >> shift & 0x0f0f0f0f,
                bytes.w >> shift & 0x0f0f0f0f};
    }
    __device__ static int products_of_vector(const uint4 &left, const uint4 &right) {
        return products_of_four(left.x, right.x,
                                products_of_four(left.y, right.y, products_of_four(left.z, right.z, products_of_four(left.w, right.w, 0))));
    }
    __device__ static int sum_of_vector(const uint4 &bytes) {
        return sum_of_four(bytes.x, sum_of_four(bytes.y, sum_of_four(bytes.z, sum_of_four(bytes.w, 0))));
    }
};

template <class T, class Row, bool GATED> __device__ inline void multiply(const ProductArguments &a) {
    DYNAMIC_SHARED(shared);
    __shared__ float scratch[WARPS];
    const int padded = (a.columns + Row::TURN - 1) / Row::TURN * Row::TURN;
    const Row row(padded, shared);
    float squares = 0.0f;
    for (int first = threadIdx.x * 8; first < padded; first += THREADS * 8) {
        float values[8] = {};
        const bool whole = first < a.columns;
        if (whole) read_eight(static_cast<const T *>(a.x), first, 0, true, values);
        if (whole && a.norm != nullptr) {
            float weights[8];
            read_eight(static_cast<const T *>(a.norm), first, 0, true, weights);
#pragma unroll
            for (int place = 0; place < 8; place++) {
                squares += values[place] * values[place];
                values[place] *= weights[place];
            }
        }
        row.write(first, values);
    }
    // Also waits for the row.
    const float mean = sum_of_block(squares, scratch) / float(a.columns);
    const float scale = a.norm == nullptr ? 1.0f : rsqrtf(mean + a.eps);

    const int warp = threadIdx.x / 32;
    int pairs = a.rows[0];
    if (!GATED) pairs = (a.rows[0] + 1) / 2 + (a.rows[1] + 1) / 2 + (a.rows[2] + 1) / 2;
    for (int pair = blockIdx.x * WARPS + warp; pair < pairs; pair += gridDim.x * WARPS) {
        int matrices[2] = {0, GATED ? 1 : 0}, rows[2] = {pair, pair};
        if (!GATED) {
            int matrix = 0, left = pair;
#pragma unroll
            for (int before = 0; before < 2; before++) {
                const int those = (a.rows[before] + 1) / 2;
                if (matrix == before && left >= those) {
                    left -= those;
                    matrix++;
                }
            }
            matrices[0] = matrices[1] = matrix;
            rows[0] = 2 * left;
            // The last row of an odd number is read twice.
            rows[1] = min(2 * left + 1, a.rows[matrix] - 1);
        }
        float sums[2] = {};
        row.add(a, matrices, rows, sums);
#pragma unroll
        for (int which = 0; which < 2; which++) {
            sums[which] = sum_of_lanes<32>(sums[which]) * scale;
            const T *const bias = static_cast<const T *>(a.biases[matrices[which]]);
            if (bias != nullptr) sums[which] += to_float(bias[rows[which]]);
        }
        if (threadIdx.x % 32 > 0) continue;
        T *const result = static_cast<T *>(a.results[matrices[0]]);
        if constexpr (GATED) {
            result[pair] = from_float<T>(sums[0] / (1.0f + expf(-sums[0])) * sums[1]);
        } else {
            const T *const residual = matrices[0] == 0 ? static_cast<const T *>(a.residual) : nullptr;
            for (int which = 0; which < 2; which++) {
                const float more = residual == nullptr ? 0.0f : to_float(residual[rows[which]]);
                result[rows[which]] = from_float<T>(sums[which] + more);
            }
        }
    }
}

} // namespace

#define OF_TYPE(NAME, TYPE)                                                                                     \
    LOADING_KERNEL(product_##NAME, ProductArguments, THREADS, 3, (multiply<TYPE, Numbers<TYPE>, false>(a)))       \
    LOADING_KERNEL(product_gated_##NAME, ProductArguments, THREADS, 3, (multiply<TYPE, Numbers<TYPE>, true>(a)))  \
    LOADING_KERNEL(product_blocks_##NAME, ProductArguments, THREADS, 3, (multiply<TYPE, Rounded, false>(a)))      \
    LOADING_KERNEL(product_blocks_gated_##NAME, ProductArguments, THREADS, 3, (multiply<TYPE, Rounded, true>(a)))

OF_TYPE(f16, __half)
OF_TYPE(bf16, __nv_bfloat16)
