// Attention of a few query rows over many keys: every key and value is read once for all rows of a block, in vectors of a lane each,
// and computed in f32. For decoding, where reading the cache is the work, and for what tensor cores do not take: f32, odd widths.
//
// The keys of a row are split among blocks; what each found is put together by `combine`. Letters as in `attention.cu`.
#include "attention_arguments.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int LANES = 16; // of a key: eight numbers each
constexpr int GROUPS = THREADS / LANES;
constexpr int WARPS = THREADS / 32;
constexpr float LOG2_E = 1.442695041f;
constexpr float HIDDEN = -1e30f;

// Eight numbers of a row that is stored as numbers.
template <class T> struct Numbers {
    typedef T Element;
    __device__ static inline void read(const T *row, int first, int width, bool whole, float values[8]) {
        read_eight(row, first, width, whole, values);
    }
};

// Eight numbers of a row in blocks of 32: a scale, then whole numbers (see `block_format.rs`). Blocks lie at multiples of 2 bytes.
struct EightBit {
    typedef unsigned char Element;
    __device__ static inline void read(const unsigned char *row, int first, int width, bool, float values[8]) {
        if (first >= width) {
            for (int place = 0; place < 8; place++) values[place] = 0.0f;
            return;
        }
        const unsigned char *const block = row + first / 32 * 34;
        const float scale = to_float(*reinterpret_cast<const __half *>(block));
        const uint16_t *const pairs = reinterpret_cast<const uint16_t *>(block + 2 + first % 32);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const int bits = pairs[pair];
            values[2 * pair] = scale * float(int8_t(bits & 255));
            values[2 * pair + 1] = scale * float(int8_t(bits >> 8));
        }
    }
};

struct FourBit {
    typedef unsigned char Element;
    __device__ static inline void read(const unsigned char *row, int first, int width, bool, float values[8]) {
        if (first >= width) {
            for (int place = 0; place < 8; place++) values[place] = 0.0f;
            return;
        }
        const unsigned char *const block = row + first / 32 * 18;
        const float scale = to_float(*reinterpret_cast<const __half *>(block));
        // The first half of a block is in the lower four bits of its bytes, the second in the upper.
        const uint16_t *const pairs = reinterpret_cast<const uint16_t *>(block + 2 + first % 16);
        const int shift = first % 32 < 16 ? 0 : 4;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const int bits = pairs[pair] >> shift;
            values[2 * pair] = scale * float((bits & 15) - 8);
            values[2 * pair + 1] = scale * float((bits >> 8 & 15) - 8);
        }
    }
};

// `ROWS` query rows, those of all query heads of a key head first, in one block; `AT_ONCE` keys of a group of lanes are on their way
// together.
template <class T, class Stored, int ROWS, int AT_ONCE> __device__ inline void attend(const AttentionArguments &a) {
    typedef typename Stored::Element Element;
    __shared__ float found[WARPS][ROWS][LANES * 8 + 2];
    const int lane = threadIdx.x % LANES, member = threadIdx.x / LANES, warp = threadIdx.x / 32;
    const int batch = blockIdx.z / a.splits, split = blockIdx.z % a.splits, key_head = blockIdx.y;
    const int column = lane * 8, all_rows = a.query_count * a.group;
    const bool vectors = a.vectors && column + 8 <= a.width;
    const Element *const keys =
        static_cast<const Element *>(a.keys) + batch * a.key_strides[0] + key_head * a.key_strides[1];
    const Element *const values =
        static_cast<const Element *>(a.values) + batch * a.value_strides[0] + key_head * a.value_strides[1];

    float queries[ROWS][8];
    int heads[ROWS], rows[ROWS];
#pragma unroll
    for (int index = 0; index < ROWS; index++) {
        // Rows beyond the last one repeat it and are not written.
        const int row = min(int(blockIdx.x) * ROWS + index, all_rows - 1);
        heads[index] = key_head * a.group + row % a.group;
        rows[index] = row / a.group;
        const T *const from = static_cast<const T *>(a.queries) + batch * a.query_strides[0] +
                              heads[index] * a.query_strides[1] + rows[index] * a.query_strides[2];
        read_eight(from, column, a.width, vectors, queries[index]);
#pragma unroll
        for (int place = 0; place < 8; place++) {
            if (a.query_bias != nullptr && column + place < a.width) {
                const T *const bias = static_cast<const T *>(a.query_bias) + heads[index] * a.width;
                queries[index][place] += to_float(bias[column + place]);
            }
            queries[index][place] *= a.scale;
        }
    }

    const int before = a.key_count - a.query_count;
    const int last = min((int(blockIdx.x) + 1) * ROWS, all_rows) - 1;
    const int seen = a.causal ? before + last / a.group + 1 : a.key_count;
    // Splits are whole turns of the block's groups.
    const int turn = GROUPS * AT_ONCE;
    const int share = (a.key_count + turn * a.splits - 1) / (turn * a.splits) * turn;
    const int begin = split * share, end = min(begin + share, seen);

    float sums[ROWS][8] = {}, most[ROWS], total[ROWS] = {};
#pragma unroll
    for (int index = 0; index < ROWS; index++) most[index] = -INFINITY;
    for (int from = begin; from < end; from += turn) {
        float key_numbers[AT_ONCE][8], value_numbers[AT_ONCE][8];
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const int key = min(from + next * GROUPS + member, end - 1);
            Stored::read(keys + key * a.key_strides[2], column, a.width, vectors, key_numbers[next]);
            Stored::read(values + key * a.value_strides[2], column, a.width, vectors, value_numbers[next]);
        }
#pragma unroll
        for (int index = 0; index < ROWS; index++) {
            float scores[AT_ONCE], largest = most[index];
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                float product = 0.0f;
#pragma unroll
                for (int place = 0; place < 8; place++) product += queries[index][place] * key_numbers[next][place];
                float score = sum_of_lanes<LANES>(product);
                const int key = from + next * GROUPS + member;
                if (a.bias != nullptr && key < end)
                    score += a.bias[batch * a.bias_strides[0] + heads[index] * a.bias_strides[1] +
                                    rows[index] * a.bias_strides[2] + key * a.bias_strides[3]];
                score = fmaxf(score, HIDDEN) * LOG2_E;
                if (key >= end || (a.causal && key > before + rows[index])) score = -INFINITY;
                scores[next] = score;
                largest = fmaxf(largest, score);
            }
            // A group that has seen nothing yet has no difference to speak of.
            const float level = largest == -INFINITY ? 0.0f : largest;
            const float factor = exp2f(most[index] - level);
            most[index] = largest;
            total[index] *= factor;
#pragma unroll
            for (int place = 0; place < 8; place++) sums[index][place] *= factor;
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                const float part = exp2f(scores[next] - level);
                total[index] += part;
#pragma unroll
                for (int place = 0; place < 8; place++) sums[index][place] += part * value_numbers[next][place];
            }
        }
    }

    // What the two groups of a warp found, then what the warps did.
#pragma unroll
    for (int index = 0; index < ROWS; index++) {
        const float largest = fmaxf(most[index], __shfl_xor_sync(ALL_LANES, most[index], 16));
        const float factor = exp2f(most[index] - (largest == -INFINITY ? 0.0f : largest));
        total[index] = total[index] * factor;
        total[index] += __shfl_xor_sync(ALL_LANES, total[index], 16);
#pragma unroll
        for (int place = 0; place < 8; place++) {
            float sum = sums[index][place] * factor;
            sum += __shfl_xor_sync(ALL_LANES, sum, 16);
            if (threadIdx.x % 32 < LANES) found[warp][index][column + place] = sum;
        }
        if (threadIdx.x % 32 == 0) {
            found[warp][index][LANES * 8] = largest;
            found[warp][index][LANES * 8 + 1] = total[index];
        }
    }
    __syncthreads();

    for (int index = 0; index < ROWS; index++) {
        const int row = int(blockIdx.x) * ROWS + index;
        if (row >= all_rows) break;
        const int head = key_head * a.group + row % a.group;
        float largest = -INFINITY;
        for (int from = 0; from < WARPS; from++) largest = fmaxf(largest, found[from][index][LANES * 8]);
        const float level = largest == -INFINITY ? 0.0f : largest;
        float sum = 0.0f, weight = 0.0f;
        const int own = threadIdx.x; // `THREADS` are as many as a row has numbers
        for (int from = 0; from < WARPS; from++) {
            const float factor = exp2f(found[from][index][LANES * 8] - level);
            sum += found[from][index][own] * factor;
            weight += found[from][index][LANES * 8 + 1] * factor;
        }
        const int64_t place = (int64_t(batch) * a.heads + head) * a.query_count + row / a.group;
        if (a.splits > 1) {
            float *const part = a.parts + (place * a.splits + split) * (a.width + 2);
            if (own < a.width) part[own] = sum;
            if (own == 0) {
                part[a.width] = largest;
                part[a.width + 1] = weight;
            }
        } else if (own < a.width) {
            float value = sum / weight;
            if (a.value_bias != nullptr)
                value += to_float(static_cast<const T *>(a.value_bias)[head * a.width + own]);
            static_cast<T *>(a.result)[((int64_t(batch) * a.query_count + row / a.group) * a.heads + head) * a.width + own] =
                from_float<T>(value);
        }
    }
}

// One block a row: what its splits found becomes its result.
template <class T> __device__ inline void combine(const AttentionArguments &a) {
    const int64_t place = blockIdx.x;
    const int query = place % a.query_count, head = place / a.query_count % a.heads;
    const int64_t batch = place / a.query_count / a.heads;
    const float *const parts = a.parts + place * a.splits * (a.width + 2);
    const int own = threadIdx.x;
    if (own >= a.width) return;
    float largest = -INFINITY;
    for (int split = 0; split < a.splits; split++) largest = fmaxf(largest, parts[split * (a.width + 2) + a.width]);
    float sum = 0.0f, weight = 0.0f;
    for (int split = 0; split < a.splits; split++) {
        const float *const part = parts + split * (a.width + 2);
        const float factor = exp2f(part[a.width] - largest);
        sum += part[own] * factor;
        weight += part[a.width + 1] * factor;
    }
    float value = sum / weight;
    if (a.value_bias != nullptr) value += to_float(static_cast<const T *>(a.value_bias)[head * a.width + own]);
    static_cast<T *>(a.result)[((batch * a.query_count + query) * a.heads + head) * a.width + own] = from_float<T>(value);
}

} // namespace

#define ROWS_KERNELS(NAME, TYPE, STORED)                                                                  \
    KERNEL(attention_rows_##NAME##_1, AttentionArguments, THREADS, (attend<TYPE, STORED, 1, 4>(a)))           \
    KERNEL(attention_rows_##NAME##_4, AttentionArguments, THREADS, (attend<TYPE, STORED, 4, 2>(a)))

ROWS_KERNELS(f32_f32, float, Numbers<float>)
ROWS_KERNELS(f32_f16, float, Numbers<__half>)
ROWS_KERNELS(f32_q8_0, float, EightBit)
ROWS_KERNELS(f32_q4_0, float, FourBit)
ROWS_KERNELS(f16_f16, __half, Numbers<__half>)
ROWS_KERNELS(f16_q8_0, __half, EightBit)
ROWS_KERNELS(f16_q4_0, __half, FourBit)
ROWS_KERNELS(bf16_bf16, __nv_bfloat16, Numbers<__nv_bfloat16>)
ROWS_KERNELS(bf16_f16, __nv_bfloat16, Numbers<__half>)
ROWS_KERNELS(bf16_q8_0, __nv_bfloat16, EightBit)
ROWS_KERNELS(bf16_q4_0, __nv_bfloat16, FourBit)
KERNEL(combine_f32, AttentionArguments, THREADS, (combine<float>(a)))
KERNEL(combine_f16, AttentionArguments, THREADS, (combine<__half>(a)))
KERNEL(combine_bf16, AttentionArguments, THREADS, (combine<__nv_bfloat16>(a)))
