// Attention of a few query rows over many keys: every key and value is read once for all rows of a block, in vectors of a lane each,
// and computed in f32. For decoding, where reading the cache is the work, and for what tensor cores do not take: f32, odd widths.
//
// The keys of a row are split among blocks; what each found is put together by the last of them. Letters as in `attention.cu`.
#include "attention_arguments.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int LANES = 16; // of a key: eight numbers each
constexpr int GROUPS = THREADS / LANES;
constexpr int WARPS = THREADS / 32;
constexpr float LOG2_E = 1.442695041f;
constexpr float HIDDEN = -1e30f;

// How rows are stored: what a lane reads of one, and the eight numbers that it stands for. Reading waits for nothing, so that several
// keys and values are on their way together.
//
// Lanes beyond the width read what others do: their queries are zeros, and nobody asks for their sums.
template <class T> struct Numbers {
    typedef T Element;
    union Read {
        uint4 bits[sizeof(T) / 2];
        T numbers[8];
    };
    // `whole` rows lie in vectors.
    template <bool WHOLE> __device__ static inline void read(const T *row, int first, int width, Read &read) {
        if (WHOLE) {
            const uint4 *const from = reinterpret_cast<const uint4 *>(row + min(first, width - 8));
#pragma unroll
            for (int part = 0; part < int(sizeof(T)) / 2; part++) read.bits[part] = from[part];
        } else {
#pragma unroll
            for (int place = 0; place < 8; place++)
                read.numbers[place] = first + place < width ? row[first + place] : from_float<T>(0.0f);
        }
    }
    __device__ static inline void numbers(const Read &read, int, float values[8]) {
#pragma unroll
        for (int place = 0; place < 8; place++) values[place] = to_float(read.numbers[place]);
    }
};

// Eight numbers of a row in blocks of 32: a scale, then integers (see `formats/block_format.rs`). Blocks lie at multiples of 2 bytes.
struct EightBit {
    typedef unsigned char Element;
    struct Read {
        __half scale;
        uint16_t pairs[4];
    };
    template <bool WHOLE> __device__ static inline void read(const unsigned char *row, int first, int width, Read &read) {
        const int own = min(first, width - 8);
        const unsigned char *const block = row + own / 32 * 34;
        read.scale = *reinterpret_cast<const __half *>(block);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) read.pairs[pair] = reinterpret_cast<const uint16_t *>(block + 2 + own % 32)[pair];
    }
    __device__ static inline void numbers(const Read &read, int, float values[8]) {
        const float scale = to_float(read.scale);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const int bits = read.pairs[pair];
            values[2 * pair] = scale * float(int8_t(bits & 255));
            values[2 * pair + 1] = scale * float(int8_t(bits >> 8));
        }
    }
};

struct FourBit {
    typedef unsigned char Element;
    typedef EightBit::Read Read;
    template <bool WHOLE> __device__ static inline void read(const unsigned char *row, int first, int width, Read &read) {
        const int own = min(first, width - 8);
        const unsigned char *const block = row + own / 32 * 18;
        read.scale = *reinterpret_cast<const __half *>(block);
        // The first half of a block is in the lower four bits of its bytes, the second in the upper.
#pragma unroll
        for (int pair = 0; pair < 4; pair++) read.pairs[pair] = reinterpret_cast<const uint16_t *>(block + 2 + own % 16)[pair];
    }
    __device__ static inline void numbers(const Read &read, int first, float values[8]) {
        const float scale = to_float(read.scale);
        const int shift = first % 32 < 16 ? 0 : 4;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const int bits = read.pairs[pair] >> shift;
            values[2 * pair] = scale * float((bits & 15) - 8);
            values[2 * pair + 1] = scale * float((bits >> 8 & 15) - 8);
        }
    }
};

// Blocks of the same rows that have written what they found. Splits are made only where there are fewer rows than this.
constexpr int MOST_COUNTERS = 1024;
DEVICE_MEMORY unsigned arrived[MOST_COUNTERS];

// A thread's number of the result.
template <class T> __device__ inline void write(const AttentionArguments &a, int batch, int head, int query, float value) {
    const int own = threadIdx.x;
    if (own >= a.width) return;
    if (a.value_bias != nullptr) value += to_float(static_cast<const T *>(a.value_bias)[head * a.width + own]);
    static_cast<T *>(a.result)[((int64_t(batch) * a.query_count + query) * a.heads + head) * a.width + own] = from_float<T>(value);
}

// What the splits of a row found becomes its result.
template <class T> __device__ inline void combine(const AttentionArguments &a, int batch, int head, int query, const float *parts) {
    constexpr int AT_ONCE = 8;
    const int own = threadIdx.x, length = a.width + 2;
    float most = -INFINITY, sum = 0.0f, weight = 0.0f;
    for (int from = 0; from < a.splits; from += AT_ONCE) {
        float numbers[AT_ONCE], levels[AT_ONCE], weights[AT_ONCE];
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const float *const part = parts + min(from + next, a.splits - 1) * length;
            numbers[next] = load_written(part + own);
            levels[next] = load_written(part + a.width);
            weights[next] = load_written(part + a.width + 1);
        }
        float largest = most;
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) largest = fmaxf(largest, levels[next]);
        const float level = largest == -INFINITY ? 0.0f : largest, before = exp2f(most - level);
        most = largest;
        sum *= before;
        weight *= before;
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const float factor = from + next < a.splits ? exp2f(levels[next] - level) : 0.0f;
            sum += numbers[next] * factor;
            weight += weights[next] * factor;
        }
    }
    write<T>(a, batch, head, query, sum / weight);
}

// `ROWS` query rows, those of all query heads of a key head first, in one block; `AT_ONCE` keys of a group of lanes are on their way
// together, while the ones before are computed with.
template <class T, class Stored, int ROWS, int AT_ONCE, bool WHOLE>
__device__ inline void attend_reading(const AttentionArguments &a, float found[WARPS][ROWS][LANES * 8 + 2]) {
    typedef typename Stored::Element Element;
    const int lane = threadIdx.x % LANES, member = threadIdx.x / LANES, warp = threadIdx.x / 32;
    const int batch = blockIdx.z / a.splits, split = blockIdx.z % a.splits, key_head = blockIdx.y;
    const int column = lane * 8, all_rows = a.query_count * a.group;
    const bool vectors = WHOLE && column + 8 <= a.width;
    const Element *const keys =
        static_cast<const Element *>(a.keys) + batch * a.key_strides[0] + key_head * a.key_strides[1];
    const Element *const values =
        static_cast<const Element *>(a.values) + batch * a.value_strides[0] + key_head * a.value_strides[1];

    let_next_begin();
    wait_for_earlier();
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
    // Splits are whole keys of each of the block's groups.
    const int turn = GROUPS * AT_ONCE;
    const int share = (a.key_count + GROUPS * a.splits - 1) / (GROUPS * a.splits) * GROUPS;
    const int begin = split * share, end = min(begin + share, seen);

    float sums[ROWS][8] = {}, most[ROWS], total[ROWS] = {};
#pragma unroll
    for (int index = 0; index < ROWS; index++) most[index] = -INFINITY;
    typename Stored::Read key_reads[AT_ONCE], value_reads[AT_ONCE];
    const auto read_turn = [&](int from) {
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const int key = min(from + next * GROUPS + member, end - 1);
            Stored::template read<WHOLE>(keys + key * a.key_strides[2], column, a.width, key_reads[next]);
            Stored::template read<WHOLE>(values + key * a.value_strides[2], column, a.width, value_reads[next]);
        }
    };
    if (begin < end) read_turn(begin);
    for (int from = begin; from < end; from += turn) {
        typename Stored::Read own_keys[AT_ONCE], own_values[AT_ONCE];
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            own_keys[next] = key_reads[next];
            own_values[next] = value_reads[next];
        }
        if (from + turn < end) read_turn(from + turn);
#pragma unroll
        for (int index = 0; index < ROWS; index++) {
            float scores[AT_ONCE], largest = most[index];
#pragma unroll
            for (int next = 0; next < AT_ONCE; next++) {
                float product = 0.0f, numbers[8];
                Stored::numbers(own_keys[next], column, numbers);
#pragma unroll
                for (int place = 0; place < 8; place++) product += queries[index][place] * numbers[place];
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
                float numbers[8];
                Stored::numbers(own_values[next], column, numbers);
                total[index] += part;
#pragma unroll
                for (int place = 0; place < 8; place++) sums[index][place] += part * numbers[place];
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

    const int own = threadIdx.x; // `THREADS` are as many as a row has numbers
    for (int index = 0; index < ROWS; index++) {
        const int row = int(blockIdx.x) * ROWS + index;
        if (row >= all_rows) break;
        const int head = key_head * a.group + row % a.group;
        float largest = -INFINITY;
        for (int from = 0; from < WARPS; from++) largest = fmaxf(largest, found[from][index][LANES * 8]);
        const float level = largest == -INFINITY ? 0.0f : largest;
        float sum = 0.0f, weight = 0.0f;
        for (int from = 0; from < WARPS; from++) {
            const float factor = exp2f(found[from][index][LANES * 8] - level);
            sum += found[from][index][own] * factor;
            weight += found[from][index][LANES * 8 + 1] * factor;
        }
        if (a.splits == 1) {
            write<T>(a, batch, head, row / a.group, sum / weight);
            continue;
        }
        const int64_t place = (int64_t(batch) * a.heads + head) * a.query_count + row / a.group;
        float *const part = a.parts + (place * a.splits + split) * (a.width + 2);
        if (own < a.width) part[own] = sum;
        if (own == 0) {
            part[a.width] = largest;
            part[a.width + 1] = weight;
        }
    }
    if (a.splits == 1) return;

    // The last block of some rows finds what all have written.
    __shared__ bool last_of_all;
    __threadfence();
    __syncthreads();
    if (own == 0) {
        unsigned *const counter = &arrived[(batch * gridDim.y + key_head) * gridDim.x + blockIdx.x];
        last_of_all = atomicAdd(counter, 1u) == unsigned(a.splits) - 1;
        // For the next launch.
        if (last_of_all) *counter = 0;
    }
    __syncthreads();
    if (!last_of_all || own >= a.width) return;
    __threadfence();
    for (int index = 0; index < ROWS; index++) {
        const int row = int(blockIdx.x) * ROWS + index;
        if (row >= all_rows) break;
        const int head = key_head * a.group + row % a.group;
        const int64_t place = (int64_t(batch) * a.heads + head) * a.query_count + row / a.group;
        combine<T>(a, batch, head, row / a.group, a.parts + place * a.splits * (a.width + 2));
    }
}

template <class T, class Stored, int ROWS, int AT_ONCE> __device__ inline void attend(const AttentionArguments &a) {
    __shared__ float found[WARPS][ROWS][LANES * 8 + 2];
    if (a.vectors) attend_reading<T, Stored, ROWS, AT_ONCE, true>(a, found);
    else attend_reading<T, Stored, ROWS, AT_ONCE, false>(a, found);
}

} // namespace

// Keys of 32 bits are half as many at once: so many bytes on their way fill the registers.
#define ROWS_KERNELS(NAME, TYPE, STORED, AT_ONCE)                                                                 \
    LOADING_KERNEL(attention_rows_##NAME##_1, AttentionArguments, THREADS, 4, (attend<TYPE, STORED, 1, AT_ONCE>(a)))  \
    KERNEL(attention_rows_##NAME##_4, AttentionArguments, THREADS, (attend<TYPE, STORED, 4, 2>(a)))

ROWS_KERNELS(f32_f32, float, Numbers<float>, 2)
ROWS_KERNELS(f32_f16, float, Numbers<__half>, 4)
ROWS_KERNELS(f32_q8_0, float, EightBit, 4)
ROWS_KERNELS(f32_q4_0, float, FourBit, 4)
ROWS_KERNELS(f16_f16, __half, Numbers<__half>, 4)
ROWS_KERNELS(f16_q8_0, __half, EightBit, 4)
ROWS_KERNELS(f16_q4_0, __half, FourBit, 4)
ROWS_KERNELS(bf16_bf16, __nv_bfloat16, Numbers<__nv_bfloat16>, 4)
ROWS_KERNELS(bf16_f16, __nv_bfloat16, Numbers<__half>, 4)
ROWS_KERNELS(bf16_q8_0, __nv_bfloat16, EightBit, 4)
ROWS_KERNELS(bf16_q4_0, __nv_bfloat16, FourBit, 4)
