// Rows of a transformer between its products: norms, activations, sums. What depends on a whole row is one block's, or one warp's where
// the row is short: a block would wait for its threads longer than it reads.
#include "numbers.cuh"

// Equals `NormArguments` of `arguments.rs`.
struct NormArguments {
    const void *x;
    const void *added;       // a second input of the same shape, or nothing
    const void *added_bias;  // (width), with a second input, or nothing
    const void *weight;      // (width)
    const void *bias;        // (width), or nothing
    void *result;
    void *sum;               // x + added + its bias, where there is a second input
    int64_t rows, width;
    int32_t vectors;         // whether rows lie at multiples of 16 bytes
    float eps;
};

// Equals `EachArguments` of `arguments.rs`. `count` numbers in rows of `width`.
struct EachArguments {
    const void *x;
    const void *other; // what is added or multiplied, or nothing
    const void *bias;  // (width), or nothing
    void *result;
    int64_t count, width;
    int32_t vectors; // whether `width` is a multiple of eight and all lie at multiples of 16 bytes
    int32_t unused;
};

// Equals `LargestArguments` of `arguments.rs`.
struct LargestArguments {
    const float *x;
    uint32_t *result; // the place of each row's largest number, the first of equal ones; `UNKNOWN` where one is not finite
    int64_t width;
};

namespace {

constexpr int THREADS = 256;
constexpr uint32_t UNKNOWN = 0xffffffffu;

// The sum over the threads that have a row together.
template <int OF_A_ROW> __device__ inline float sum_of_row(float value, float *scratch) {
    return OF_A_ROW == 32 ? sum_of_lanes<32>(value) : sum_of_block(value, scratch);
}

// Normalises a row: of layers where there is a mean to take off, of root mean squares elsewhere. `OF_A_ROW` threads have it, those of
// a warp or of the block.
template <class T, bool CENTRED, int OF_A_ROW> __device__ inline void normalise(const NormArguments &a) {
    __shared__ float scratch[THREADS / 32];
    const int64_t row = int64_t(blockIdx.x) * (THREADS / OF_A_ROW) + threadIdx.x / OF_A_ROW;
    if (row >= a.rows) return;
    const int64_t start = row * a.width;
    const int own = threadIdx.x % OF_A_ROW * 8;
    const int width = int(a.width);
    const T *x = static_cast<const T *>(a.x) + start;
    float values[8], sum = 0.0f;
    if (a.added != nullptr) {
        const T *const added = static_cast<const T *>(a.added) + start;
        T *const whole = static_cast<T *>(a.sum) + start;
        for (int first = own; first < width; first += OF_A_ROW * 8) {
            float more[8];
            read_eight(x, first, width, a.vectors, values);
            read_eight(added, first, width, a.vectors, more);
            for (int place = 0; place < 8; place++) values[place] += more[place];
            if (a.added_bias != nullptr) {
                read_eight(static_cast<const T *>(a.added_bias), first, width, a.vectors, more);
                for (int place = 0; place < 8; place++) values[place] += more[place];
            }
            write_eight(whole, first, width, a.vectors, values);
        }
        // Each thread reads again what it wrote itself.
        x = whole;
    }
    float mean = 0.0f;
    if (CENTRED) {
        for (int first = own; first < width; first += OF_A_ROW * 8) {
            read_eight(x, first, width, a.vectors, values);
            for (int place = 0; place < 8; place++) sum += values[place];
        }
        mean = sum_of_row<OF_A_ROW>(sum, scratch) / float(width);
    }
    sum = 0.0f;
    for (int first = own; first < width; first += OF_A_ROW * 8) {
        read_eight(x, first, width, a.vectors, values);
        for (int place = 0; place < 8; place++) {
            const float distance = first + place < width ? values[place] - mean : 0.0f;
            sum += distance * distance;
        }
    }
    const float scale = rsqrtf(sum_of_row<OF_A_ROW>(sum, scratch) / float(width) + a.eps);
    T *const result = static_cast<T *>(a.result) + start;
    for (int first = own; first < width; first += OF_A_ROW * 8) {
        float weights[8], biases[8] = {};
        read_eight(x, first, width, a.vectors, values);
        read_eight(static_cast<const T *>(a.weight), first, width, a.vectors, weights);
        if (a.bias != nullptr) read_eight(static_cast<const T *>(a.bias), first, width, a.vectors, biases);
        for (int place = 0; place < 8; place++) values[place] = (values[place] - mean) * scale * weights[place] + biases[place];
        write_eight(result, first, width, a.vectors, values);
    }
}

struct Gelu {
    __device__ static inline float of(float x, float) { return 0.5f * x * (1.0f + erff(x * 0.7071067812f)); }
};
struct QuickGelu {
    __device__ static inline float of(float x, float) { return x / (1.0f + expf(-1.702f * x)); }
};
// `x` is the gate.
struct SwiGlu {
    __device__ static inline float of(float x, float other) { return x / (1.0f + expf(-x)) * other; }
};
struct Sum {
    __device__ static inline float of(float x, float other) { return x + other; }
};

template <class T, class Function> __device__ inline void each(const EachArguments &a) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x * 8;
    for (int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8; first < a.count; first += step) {
        float values[8], others[8] = {};
        const int left = int(a.count - first < 8 ? a.count - first : 8);
        read_eight(static_cast<const T *>(a.x) + first, 0, left, a.vectors, values);
        if (a.other != nullptr) read_eight(static_cast<const T *>(a.other) + first, 0, left, a.vectors, others);
        if (a.bias != nullptr) {
            const T *const bias = static_cast<const T *>(a.bias);
            const int column = int(first % a.width);
            float more[8] = {};
            if (a.vectors) {
                read_eight(bias + column, 0, left, true, more);
            } else {
#pragma unroll
                for (int place = 0; place < 8; place++)
                    if (place < left) more[place] = to_float(bias[(column + place) % int(a.width)]);
            }
#pragma unroll
            for (int place = 0; place < 8; place++) values[place] += more[place];
        }
#pragma unroll
        for (int place = 0; place < 8; place++) values[place] = Function::of(values[place], others[place]);
        write_eight(static_cast<T *>(a.result) + first, 0, left, a.vectors, values);
    }
}

// One block a row.
__device__ inline void find_largest(const LargestArguments &a) {
    __shared__ float values[THREADS];
    __shared__ uint32_t places[THREADS];
    const float *const row = a.x + blockIdx.x * a.width;
    float most = -INFINITY;
    uint32_t best = UNKNOWN;
    bool finite = true;
    for (int64_t place = threadIdx.x; place < a.width; place += THREADS) {
        const float value = row[place];
        finite = finite && value >= -LARGEST && value <= LARGEST;
        if (value > most) {
            most = value;
            best = uint32_t(place);
        }
    }
    // A number that is not finite is larger than all others, and so is what comes of it.
    values[threadIdx.x] = finite ? most : INFINITY;
    places[threadIdx.x] = finite ? best : UNKNOWN;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const float other = values[threadIdx.x + half];
            const uint32_t place = places[threadIdx.x + half];
            if (other > values[threadIdx.x] || (other == values[threadIdx.x] && place < places[threadIdx.x])) {
                values[threadIdx.x] = other;
                places[threadIdx.x] = place;
            }
        }
    }
    if (threadIdx.x == 0) a.result[blockIdx.x] = places[0];
}

} // namespace

#define OF_TYPE(NAME, TYPE)                                                                   \
    KERNEL(layer_norm_##NAME, NormArguments, THREADS, (normalise<TYPE, true, THREADS>(a)))   \
    KERNEL(short_layer_norm_##NAME, NormArguments, THREADS, (normalise<TYPE, true, 32>(a)))  \
    KERNEL(rms_norm_##NAME, NormArguments, THREADS, (normalise<TYPE, false, THREADS>(a)))    \
    KERNEL(short_rms_norm_##NAME, NormArguments, THREADS, (normalise<TYPE, false, 32>(a)))   \
    KERNEL(gelu_##NAME, EachArguments, THREADS, (each<TYPE, Gelu>(a)))                       \
    KERNEL(quick_gelu_##NAME, EachArguments, THREADS, (each<TYPE, QuickGelu>(a)))            \
    KERNEL(swiglu_##NAME, EachArguments, THREADS, (each<TYPE, SwiGlu>(a)))                   \
    KERNEL(sum_##NAME, EachArguments, THREADS, (each<TYPE, Sum>(a)))

OF_TYPE(f32, float)
OF_TYPE(f16, __half)
OF_TYPE(bf16, __nv_bfloat16)

KERNEL(largest, LargestArguments, THREADS, (find_largest(a)))
