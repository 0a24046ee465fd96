// What both kernels for attention are given. Letters as in `attention.rs`: B batch, H query heads, Q query rows, d head width.
#pragma once
#include "numbers.cuh"

// Equals `AttentionArguments` of `arguments.rs`. Strides are in numbers, those of keys and values in bytes where they are in blocks, and
// those of the bias 0 where it is repeated.
struct AttentionArguments {
    const void *queries, *keys, *values;
    void *result;
    // What is added to queries and values, (H * d) each, or nothing. One added to keys would change no probability.
    const void *query_bias, *value_bias;
    // Added to the scaled scores, or nothing.
    const float *bias;
    // For splits of the keys (B, H, Q, splits, d + 2): sums, the largest score and the sum of probabilities.
    float *parts;
    int64_t query_strides[3], key_strides[3], value_strides[3]; // of batch, head and row
    int64_t bias_strides[4];                                    // of batch, head, query and key
    int32_t heads, group, query_count, key_count, width, causal;
    int32_t splits;  // 1 on tensor cores
    int32_t vectors; // whether rows of queries, keys, values and the result lie at multiples of 16 bytes
    float scale;
    int32_t unused;
};
