// Attention on tensor cores: scores, softmax and weighted sum for 64 query rows of a head, over keys that pass by 64 at a time.
//
// References: T. Dao, "FlashAttention-2" (arXiv 2307.08691); M. Milakov and N. Gimelshein, "Online normalizer calculation for
// softmax" (arXiv 1805.02867). Letters as in `attention.rs`: B batch, H query heads, Q query rows, K key rows, d head width.
#include "attention_arguments.cuh"
#include "tensor_core.cuh"

namespace {

constexpr int WARPS = 4;
constexpr int ROWS = 16 * WARPS;
constexpr int KEYS = 64;
constexpr float LOG2_E = 1.442695041f;
// Below all scores, and so far from the smallest f32 that differences stay finite.
constexpr float HIDDEN = -1e30f;

// Begins to copy `KEYS` rows from `first` on, each with zeros up to `D` numbers.
template <class T, int D>
__device__ inline void copy_rows(T *shared, const T *rows, int64_t stride, int first, int count, int width) {
    constexpr int CHUNKS = D / 8;
    for (int chunk = threadIdx.x; chunk < KEYS * CHUNKS; chunk += 32 * WARPS) {
        const int row = chunk / CHUNKS, column = chunk % CHUNKS * 8;
        const bool present = first + row < count && column < width;
        const T *from = present ? rows + (first + row) * stride + column : rows;
        copy_begin(shared + row * (D + 8) + column, from, present);
    }
}

// `D` is the head width, rounded up to whole products; rows in shared memory are 16 bytes longer, so that eight of them lie in
// different banks.
template <class T, int D> __device__ inline void attend(const AttentionArguments &a) {
    constexpr int STRIDE = D + 8, STEPS = D / 16, TILE = KEYS * STRIDE;
    DYNAMIC_SHARED(shared);
    T *const key_tiles = reinterpret_cast<T *>(shared);
    T *const value_tiles = key_tiles + 2 * TILE;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
    // Those that see the most begin first, so that none is left alone in the end.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, batch = blockIdx.z, key_head = head / a.group;
    const T *const keys =
        static_cast<const T *>(a.keys) + batch * a.key_strides[0] + key_head * a.key_strides[1];
    const T *const values =
        static_cast<const T *>(a.values) + batch * a.value_strides[0] + key_head * a.value_strides[1];

    // This lane's two rows. Rows beyond the last one repeat it and are not written.
    int rows[2];
    uint32_t queries[STEPS][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        rows[half] = first + warp * 16 + group + 8 * half;
        const int row = min(rows[half], a.query_count - 1);
        const T *const from = static_cast<const T *>(a.queries) + batch * a.query_strides[0] +
                              head * a.query_strides[1] + row * a.query_strides[2];
        const T *const bias = static_cast<const T *>(a.query_bias) + head * a.width;
#pragma unroll
        for (int part = 0; part < 2 * STEPS; part++) {
            const int column = part * 8 + place * 2;
            uint32_t pair = 0;
            if (column < a.width) {
                pair = *reinterpret_cast<const uint32_t *>(from + column);
                if (a.query_bias != nullptr) {
                    union {
                        uint32_t bits;
                        T numbers[2];
                    } sum;
                    sum.bits = pair;
                    pair = packed(from_float<T>(to_float(sum.numbers[0]) + to_float(bias[column])),
                                  from_float<T>(to_float(sum.numbers[1]) + to_float(bias[column + 1])));
                }
            }
            queries[part / 2][part % 2 * 2 + half] = pair;
        }
    }

    const int before = a.key_count - a.query_count; // keys that every row sees, if rows see none behind their own
    const int seen = a.causal ? min(a.key_count, before + first + ROWS) : a.key_count;
    const int tiles = (seen + KEYS - 1) / KEYS;
    float sums[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};

    copy_rows<T, D>(key_tiles, keys, a.key_strides[2], 0, a.key_count, a.width);
    copy_rows<T, D>(value_tiles, values, a.value_strides[2], 0, a.key_count, a.width);
    copy_commit();
    for (int tile = 0; tile < tiles; tile++) {
        const T *const key_tile = key_tiles + tile % 2 * TILE;
        const T *const value_tile = value_tiles + tile % 2 * TILE;
        if (tile + 1 < tiles) {
            const int next = (tile + 1) % 2 * TILE;
            copy_rows<T, D>(key_tiles + next, keys, a.key_strides[2], (tile + 1) * KEYS, a.key_count, a.width);
            copy_rows<T, D>(value_tiles + next, values, a.value_strides[2], (tile + 1) * KEYS, a.key_count, a.width);
            copy_commit();
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();

        float scores[KEYS / 8][4] = {};
        const int matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int pair = 0; pair < KEYS / 16; pair++) {
                uint32_t parts[4];
                load_matrices(parts, key_tile + (pair * 16 + matrix / 2 * 8 + matrix_row) * STRIDE + step * 16 +
                                         matrix % 2 * 8);
                multiply_add<T>(scores[2 * pair], queries[step], parts[0], parts[1]);
                multiply_add<T>(scores[2 * pair + 1], queries[step], parts[2], parts[3]);
            }
        }

        // Scaled to powers of two, hidden where a row may not look, and turned into shares.
        float largest[2] = {most[0], most[1]};
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int index = 0; index < 4; index++) {
                const int key = tile * KEYS + part * 8 + place * 2 + index % 2, row = rows[index / 2];
                float score = scores[part][index] * a.scale;
                if (a.bias != nullptr && key < a.key_count)
                    score += a.bias[batch * a.bias_strides[0] + head * a.bias_strides[1] +
                                    min(row, a.query_count - 1) * a.bias_strides[2] + key * a.bias_strides[3]];
                score = fmaxf(score, HIDDEN) * LOG2_E;
                if (key >= a.key_count || (a.causal && key > before + row)) score = -INFINITY;
                scores[part][index] = score;
                largest[index / 2] = fmaxf(largest[index / 2], score);
            }
        }
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(ALL_LANES, largest[half], 1));
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(ALL_LANES, largest[half], 2));
            // Every row sees the first key, so this is finite from the first tile on.
            factor[half] = exp2f(most[half] - largest[half]);
            most[half] = largest[half];
            total[half] *= factor[half];
        }
#pragma unroll
        for (int part = 0; part < D / 8; part++) {
#pragma unroll
            for (int index = 0; index < 4; index++) sums[part][index] *= factor[index / 2];
        }
#pragma unroll
        for (int part = 0; part < KEYS / 8; part++) {
#pragma unroll
            for (int index = 0; index < 4; index++) {
                scores[part][index] = exp2f(scores[part][index] - most[index / 2]);
                total[index / 2] += scores[part][index];
            }
        }

        // The scores of two products lie in the lanes as the left side of the next one wants them.
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t shares[4];
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float *const pair = scores[2 * step + part / 2] + part % 2 * 2;
                shares[part] = packed(from_float<T>(pair[0]), from_float<T>(pair[1]));
            }
#pragma unroll
            for (int pair = 0; pair < D / 16; pair++) {
                uint32_t parts[4];
                load_transposed(parts, value_tile + (step * 16 + matrix % 2 * 8 + matrix_row) * STRIDE + pair * 16 +
                                           matrix / 2 * 8);
                multiply_add<T>(sums[2 * pair], shares, parts[0], parts[1]);
                multiply_add<T>(sums[2 * pair + 1], shares, parts[2], parts[3]);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] = sum_of_lanes<4>(total[half]);
        if (rows[half] >= a.query_count) continue;
        T *const result = static_cast<T *>(a.result) +
                          ((int64_t(batch) * a.query_count + rows[half]) * a.heads + head) * a.width;
        const T *const bias = static_cast<const T *>(a.value_bias) + head * a.width;
        const float scale = 1.0f / total[half];
#pragma unroll
        for (int part = 0; part < D / 8; part++) {
            const int column = part * 8 + place * 2;
            if (column >= a.width) continue;
            float pair[2] = {sums[part][2 * half] * scale, sums[part][2 * half + 1] * scale};
            if (a.value_bias != nullptr) {
                // The shares add up to 1.
                pair[0] += to_float(bias[column]);
                pair[1] += to_float(bias[column + 1]);
            }
            *reinterpret_cast<uint32_t *>(result + column) = packed(from_float<T>(pair[0]), from_float<T>(pair[1]));
        }
    }
}

} // namespace

KERNEL(attention_f16_64, AttentionArguments, 32 * WARPS, (attend<__half, 64>(a)))
KERNEL(attention_f16_96, AttentionArguments, 32 * WARPS, (attend<__half, 96>(a)))
KERNEL(attention_f16_128, AttentionArguments, 32 * WARPS, (attend<__half, 128>(a)))
KERNEL(attention_bf16_64, AttentionArguments, 32 * WARPS, (attend<__nv_bfloat16, 64>(a)))
KERNEL(attention_bf16_96, AttentionArguments, 32 * WARPS, (attend<__nv_bfloat16, 96>(a)))
KERNEL(attention_bf16_128, AttentionArguments, 32 * WARPS, (attend<__nv_bfloat16, 128>(a)))
