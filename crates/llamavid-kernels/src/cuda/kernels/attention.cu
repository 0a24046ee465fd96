// Attention on tensor cores: scores, softmax and weighted sums for the query rows of a block, 32 a warp, over keys that pass by, some
// at a time.
//
// What limits such a kernel is what comes beside its products: each part of the keys and values that is read from shared memory serves
// two products of 16 rows, and scores that no mask touches cost a multiplication, a comparison and a power of two.
//
// References: T. Dao, "FlashAttention-2" (arXiv 2307.08691); M. Milakov and N. Gimelshein, "Online normalizer calculation for
// softmax" (arXiv 1805.02867). Letters as in `attention.rs`: B batch, H query heads, Q query rows, K key rows, d head width.
#include "attention_arguments.cuh"
#include "tensor_core.cuh"

namespace {

// Rows of a product, and of a warp.
constexpr int SIDE = 16, PRODUCTS = 2, WARP_ROWS = PRODUCTS * SIDE;
constexpr float LOG2_E = 1.442695041f;
// Below all scores, and so far from the smallest f32 that differences stay finite.
constexpr float HIDDEN = -1e30f;

// Rows of `D` numbers in shared memory. Eight rows one below the other lie in different banks: their vectors of 16 bytes change places
// with each other, or, where that would leave the row, the next row begins 16 bytes later.
template <int D> struct Rows {
    static constexpr int CHUNKS = D / 8;
    static constexpr bool TURNED = CHUNKS % 8 == 0;
    static constexpr int STRIDE = TURNED ? D : D + 8;
    // Where eight numbers of a row are.
    __device__ static inline int place(int row, int chunk) {
        return row * STRIDE + (TURNED ? chunk ^ row % 8 : chunk) * 8;
    }
};

// A thread's share of copying rows: the same eight columns of every `STEP`th row. Columns from the head's width on are 0.
template <class T, int D, int THREADS> struct Share {
    static constexpr int STEP = THREADS / Rows<D>::CHUNKS;
    static_assert(THREADS % Rows<D>::CHUNKS == 0, "every thread has a share");
    int row, chunk;
    bool wanted;
    __device__ Share(int width)
        : row(threadIdx.x / Rows<D>::CHUNKS), chunk(threadIdx.x % Rows<D>::CHUNKS), wanted(chunk * 8 < width) {}

    // Begins to copy `COUNT` rows from `first` on, of `count`; zeros for those beyond.
    template <int COUNT>
    __device__ inline void begin(T *shared, const T *rows, int64_t stride, int first, int count) const {
        static_assert(COUNT % STEP == 0, "as many rows for every thread");
        const T *from = rows + (first + row) * stride + chunk * 8;
#pragma unroll
        for (int next = 0; next < COUNT; next += STEP) {
            const bool present = wanted && first + row + next < count;
            copy_begin(shared + Rows<D>::place(row + next, chunk), present ? from : rows, present);
            from += STEP * stride;
        }
    }
};

// Turns scores, as exponents of two, into probabilities (online softmax); gives what those of before are to be multiplied with.
template <int COLUMNS>
__device__ inline void exponentiate(float scores[COLUMNS][4], float most[2], float total[2], float factor[2]) {
    float largest[2] = {most[0], most[1]};
#pragma unroll
    for (int part = 0; part < COLUMNS; part++) {
#pragma unroll
        for (int index = 0; index < 4; index++) largest[index / 2] = fmaxf(largest[index / 2], scores[part][index]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(ALL_LANES, largest[half], 1));
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(ALL_LANES, largest[half], 2));
        // Every row sees the first key, so this is finite from the first tile on.
        factor[half] = power_of_two(most[half] - largest[half]);
        most[half] = largest[half];
        total[half] *= factor[half];
    }
#pragma unroll
    for (int part = 0; part < COLUMNS; part++) {
#pragma unroll
        for (int index = 0; index < 4; index++) {
            scores[part][index] = power_of_two(scores[part][index] - most[index / 2]);
            total[index / 2] += scores[part][index];
        }
    }
}

// `D` is the head width, rounded up to whole products; `KEYS` of the keys are in shared memory, and as many are on their way.
template <class T, int D, int WARPS, int KEYS> __device__ inline void attend(const AttentionArguments &a) {
    constexpr int ROWS = WARPS * WARP_ROWS, STEPS = D / SIDE, PARTS = KEYS / 8;
    constexpr int TILE = KEYS * Rows<D>::STRIDE;
    DYNAMIC_SHARED(shared);
    T *const queries = reinterpret_cast<T *>(shared);
    T *const key_tiles = queries + ROWS * Rows<D>::STRIDE;
    T *const value_tiles = key_tiles + 2 * TILE;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
    // What a lane tells of a matrix that is loaded: which of four, and which row.
    const int matrix = lane / 8, matrix_row = lane % 8;
    // Those that see the most begin first, so that none is left alone in the end.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, batch = blockIdx.z, key_head = head / a.group;
    const T *const of_queries =
        static_cast<const T *>(a.queries) + batch * a.query_strides[0] + head * a.query_strides[1];
    const T *const keys =
        static_cast<const T *>(a.keys) + batch * a.key_strides[0] + key_head * a.key_strides[1];
    const T *const values =
        static_cast<const T *>(a.values) + batch * a.value_strides[0] + key_head * a.value_strides[1];

    const int before = a.key_count - a.query_count; // keys that every row sees, if rows see none behind their own
    const int seen = a.causal ? min(a.key_count, before + first + ROWS) : a.key_count;
    const int tiles = (seen + KEYS - 1) / KEYS;

    const Share<T, D, 32 * WARPS> copies(a.width);
    copies.template begin<ROWS>(queries, of_queries, a.query_strides[2], first, a.query_count);
    copies.template begin<KEYS>(key_tiles, keys, a.key_strides[2], 0, a.key_count);
    copies.template begin<KEYS>(value_tiles, values, a.value_strides[2], 0, a.key_count);
    copy_commit();
    if (a.query_bias != nullptr) {
        copy_wait<0>();
        // Each thread has copied these itself.
        const T *const bias = static_cast<const T *>(a.query_bias) + head * a.width + copies.chunk * 8;
        for (int row = copies.row; row < ROWS && copies.wanted; row += copies.STEP) {
            T *const numbers = queries + Rows<D>::place(row, copies.chunk);
#pragma unroll
            for (int number = 0; number < 8; number++)
                numbers[number] = from_float<T>(to_float(numbers[number]) + to_float(bias[number]));
        }
    }

    const int warp_first = first + warp * WARP_ROWS;
    const float scale = a.scale * LOG2_E;
    float sums[PRODUCTS][D / 8][4] = {};
    // Of the two rows of each product that a lane has numbers of.
    float most[PRODUCTS][2], total[PRODUCTS][2] = {};
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++) most[product][0] = most[product][1] = -INFINITY;
    for (int tile = 0; tile < tiles; tile++) {
        const T *const key_tile = key_tiles + tile % 2 * TILE;
        const T *const value_tile = value_tiles + tile % 2 * TILE;
        if (tile + 1 < tiles) {
            const int next = (tile + 1) % 2 * TILE;
            copies.template begin<KEYS>(key_tiles + next, keys, a.key_strides[2], (tile + 1) * KEYS, a.key_count);
            copies.template begin<KEYS>(value_tiles + next, values, a.value_strides[2], (tile + 1) * KEYS, a.key_count);
            copy_commit();
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();

        // Rows that see none of these keys, and those beyond the last one, have nothing to do.
        const int left = a.key_count - tile * KEYS;
        const bool unseen = warp_first >= a.query_count ||
                            (a.causal && tile * KEYS > before + warp_first + WARP_ROWS - 1);
        if (!unseen) {
            float scores[PRODUCTS][PARTS][4] = {};
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                uint32_t rows[PRODUCTS][4];
#pragma unroll
                for (int product = 0; product < PRODUCTS; product++)
                    load_matrices(rows[product],
                                  queries + Rows<D>::place(warp * WARP_ROWS + product * SIDE + matrix % 2 * 8 + matrix_row,
                                                           step * 2 + matrix / 2));
#pragma unroll
                for (int pair = 0; pair < KEYS / 16; pair++) {
                    uint32_t parts[4];
                    load_matrices(parts, key_tile + Rows<D>::place(pair * 16 + matrix / 2 * 8 + matrix_row,
                                                                   step * 2 + matrix % 2));
#pragma unroll
                    for (int product = 0; product < PRODUCTS; product++) {
                        multiply_add<T>(scores[product][2 * pair], rows[product], parts[0], parts[1]);
                        multiply_add<T>(scores[product][2 * pair + 1], rows[product], parts[2], parts[3]);
                    }
                }
            }

            // Whether all of these keys are seen by all of these rows, as they are.
            const bool plain = a.bias == nullptr && left >= KEYS &&
                               (!a.causal || (tile + 1) * KEYS - 1 <= before + warp_first);
#pragma unroll
            for (int product = 0; product < PRODUCTS; product++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
#pragma unroll
                    for (int index = 0; index < 4; index++) scores[product][part][index] *= scale;
                }
                if (!plain) {
#pragma unroll
                    for (int part = 0; part < PARTS; part++) {
#pragma unroll
                        for (int index = 0; index < 4; index++) {
                            const int key = tile * KEYS + part * 8 + place * 2 + index % 2;
                            // Rows beyond the last one are not written.
                            const int row =
                                min(warp_first + product * SIDE + group + index / 2 * 8, a.query_count - 1);
                            float score = scores[product][part][index];
                            if (a.bias != nullptr && key < a.key_count)
                                score += LOG2_E * a.bias[batch * a.bias_strides[0] + head * a.bias_strides[1] +
                                                         row * a.bias_strides[2] + key * a.bias_strides[3]];
                            score = fmaxf(score, HIDDEN);
                            if (key >= a.key_count || (a.causal && key > before + row)) score = -INFINITY;
                            scores[product][part][index] = score;
                        }
                    }
                }
                float factor[2];
                exponentiate<PARTS>(scores[product], most[product], total[product], factor);
#pragma unroll
                for (int part = 0; part < D / 8; part++) {
#pragma unroll
                    for (int index = 0; index < 4; index++) sums[product][part][index] *= factor[index / 2];
                }
            }

            // The scores of two products lie in the lanes as the left side of the next one wants them.
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) {
                uint32_t probabilities[PRODUCTS][4];
#pragma unroll
                for (int product = 0; product < PRODUCTS; product++) {
#pragma unroll
                    for (int part = 0; part < 4; part++) {
                        const float *const pair = scores[product][2 * step + part / 2] + part % 2 * 2;
                        probabilities[product][part] = packed_pair<T>(pair[0], pair[1]);
                    }
                }
#pragma unroll
                for (int pair = 0; pair < D / 16; pair++) {
                    uint32_t parts[4];
                    load_transposed(parts, value_tile + Rows<D>::place(step * 16 + matrix % 2 * 8 + matrix_row,
                                                                       pair * 2 + matrix / 2));
#pragma unroll
                    for (int product = 0; product < PRODUCTS; product++) {
                        multiply_add<T>(sums[product][2 * pair], probabilities[product], parts[0], parts[1]);
                        multiply_add<T>(sums[product][2 * pair + 1], probabilities[product], parts[2], parts[3]);
                    }
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int product = 0; product < PRODUCTS; product++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp_first + product * SIDE + group + 8 * half;
            const float all = sum_of_lanes<4>(total[product][half]);
            if (row >= a.query_count) continue;
            T *const result = static_cast<T *>(a.result) +
                              ((int64_t(batch) * a.query_count + row) * a.heads + head) * a.width;
            const T *const bias = static_cast<const T *>(a.value_bias) + head * a.width;
            const float whole = 1.0f / all;
#pragma unroll
            for (int part = 0; part < D / 8; part++) {
                const int column = part * 8 + place * 2;
                if (column >= a.width) continue;
                float pair[2] = {sums[product][part][2 * half] * whole, sums[product][part][2 * half + 1] * whole};
                if (a.value_bias != nullptr) {
                    // The probabilities add up to 1.
                    pair[0] += to_float(bias[column]);
                    pair[1] += to_float(bias[column + 1]);
                }
                *reinterpret_cast<uint32_t *>(result + column) = packed_pair<T>(pair[0], pair[1]);
            }
        }
    }
}

} // namespace

// Warps, keys, and blocks of a multiprocessor: `arguments.rs` has the same. The 257 rows of a visual encoder's heads of 88 numbers are
// three blocks of 96, with few rows left over, and few of 32 keys. Measured on an H100: wide heads gain more from more keys at a time
// than from more warps beside each other, narrow ones the other way round.
#define TILES_KERNELS(NAME, TYPE)                                                                                             \
    LOADING_KERNEL(attention_##NAME##_64, AttentionArguments, 32 * 4, 3, (attend<TYPE, 64, 4, 32>(a)))                         \
    LOADING_KERNEL(attention_##NAME##_96, AttentionArguments, 32 * 3, 4, (attend<TYPE, 96, 3, 32>(a)))                         \
    LOADING_KERNEL(attention_##NAME##_128, AttentionArguments, 32 * 4, 2, (attend<TYPE, 128, 4, 64>(a)))

TILES_KERNELS(f16, __half)
TILES_KERNELS(bf16, __nv_bfloat16)
