// Similarity search. src/ops/top_k/gpu.rs defines before it: ITEM (0: f32, 1: f16, 2: bf16), ITEM_BYTES, L2 (0 or 1),
// QUERIES (1, 2, 4 or 8, for score_few), WHOLE (1: a row is a whole number of 16-byte pieces).
//
// Scores are larger for more similar rows (L2: minus the squared distance); NaN means "never a result".
struct __align__(16) Piece { u32 word[4]; };
#define PER_PIECE (16 / ITEM_BYTES)

__device__ __forceinline__ f32 half_to_f32(u16 v) {
#ifdef GPU_EMULATED
    u32 sign = (u32)(v & 0x8000u) << 16, exponent = (v >> 10) & 31, fraction = v & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint((f32)fraction * 5.9604644775390625e-8f));
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
#else
    f32 result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(v));
    return result;
#endif
}
#if ITEM == 0
typedef f32 Item;
__device__ __forceinline__ f32 as_f32(Item v) { return v; }
__device__ __forceinline__ f32 item_of(const Piece& p, int i) { return __uint_as_float(p.word[i]); }
#elif ITEM == 1
typedef u16 Item;
__device__ __forceinline__ f32 as_f32(Item v) { return half_to_f32(v); }
__device__ __forceinline__ f32 item_of(const Piece& p, int i) { return half_to_f32((u16)(p.word[i >> 1] >> ((i & 1) * 16))); }
#else
typedef u16 Item;
__device__ __forceinline__ f32 as_f32(Item v) { return __uint_as_float((u32)v << 16); }
__device__ __forceinline__ f32 item_of(const Piece& p, int i) { return __uint_as_float((i & 1) ? p.word[i >> 1] & 0xffff0000u : p.word[i >> 1] << 16); }
#endif

// One term of a score.
__device__ __forceinline__ f32 term(f32 sum, f32 q, f32 c) {
#if L2
    f32 d = q - c;
    return sum - d * d;
#else
    return sum + q * c;
#endif
}

// What a row's scores are multiplied with: 1 / |c| for cosine (mode 1), else 1; NaN for null rows. For L2 (mode 2) also
// what is added to a product: -|c|^2 / 2. Sums of squares in double precision: those of f32 would overflow for rows whose
// scores do not. Sets `infinite` where any item is. A warp per row.
extern "C" __global__ void __launch_bounds__(256)
corpus_factor(const Item* corpus, const u32* validity, u64 rows, u64 dims, u64 mode, f32* factor, f32* bias, u32* infinite) {
    u64 warps = (u64)gridDim.x * 8;
    bool any = false;
    for (u64 row = (u64)blockIdx.x * 8 + WARP; row < rows; row += warps) {
        f64 sum = 0;
        for (u64 dim = LANE; dim < dims; dim += 32) {
            f32 v = as_f32(corpus[row * dims + dim]);
            any |= v - v != 0 && v == v;
            sum += (f64)v * (f64)v;
        }
        for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (LANE == 0) {
            const bool valid = valid_at(validity, row);
            factor[row] = !valid ? __uint_as_float(0x7fc00000u) : mode == 1 ? (f32)(1.0 / sqrt(sum)) : 1.0f;
            if (mode == 2) bias[row] = (f32)(-0.5 * sum);
        }
    }
    if (any) atomicOr(infinite, 1u);
}

// Few queries: reading the corpus once is all the work. A warp takes four rows at a time, so that a query's numbers,
// read from shared memory, serve four rows. scores[query * count + row - first].
#define ROWS_PER_WARP 4
#define SUMS (ROWS_PER_WARP * QUERIES)
extern "C" __global__ void __launch_bounds__(256, 2)
score_few(const Item* corpus, const f32* queries, const f32* factor, u64 first, u64 count, u64 dims, u64 asked, f32* scores) {
    DYNAMIC_SHARED(f32, shared);
    for (u64 at = threadIdx.x; at < dims * QUERIES; at += blockDim.x) shared[at] = queries[at];
    __syncthreads();
    u64 warps = (u64)gridDim.x * 8;
    for (u64 group = (u64)blockIdx.x * 8 + WARP; group * ROWS_PER_WARP < count; group += warps) {
        const u64 start = group * ROWS_PER_WARP;
        const Item* rows[ROWS_PER_WARP];
        // Rows behind the end are read as the last one and not written.
        for (int r = 0; r < ROWS_PER_WARP; r++) rows[r] = corpus + (first + (start + r < count ? start + r : count - 1)) * dims;
        f32 sums[SUMS];
        for (int i = 0; i < SUMS; i++) sums[i] = 0;
#if WHOLE
        // Unrolled, the loads of several rounds would not fit the registers.
        #pragma unroll 1
        for (u64 piece = LANE; piece < dims / PER_PIECE; piece += 32) {
            Piece pieces[ROWS_PER_WARP];
            for (int r = 0; r < ROWS_PER_WARP; r++) pieces[r] = reinterpret_cast<const Piece*>(rows[r])[piece];
            for (int q = 0; q < QUERIES; q++)
                for (int i = 0; i < PER_PIECE; i++) {
                    f32 query = shared[q * dims + piece * PER_PIECE + i];
                    for (int r = 0; r < ROWS_PER_WARP; r++)
                        sums[r * QUERIES + q] = term(sums[r * QUERIES + q], query, item_of(pieces[r], i));
                }
        }
#else
        #pragma unroll 1
        for (u64 dim = LANE; dim < dims; dim += 32)
            for (int r = 0; r < ROWS_PER_WARP; r++) {
                f32 value = as_f32(rows[r][dim]);
                for (int q = 0; q < QUERIES; q++)
                    sums[r * QUERIES + q] = term(sums[r * QUERIES + q], shared[q * dims + dim], value);
            }
#endif
        // Each step halves the sums a lane holds and doubles the lanes each stands for; then lane L * (32 / SUMS) holds
        // sum L. 31 shuffles for 32 sums instead of 160.
        int step = 16;
        for (int n = SUMS / 2; n > 0; n /= 2) {
            bool upper = LANE & step;
            for (int i = 0; i < n; i++) {
                f32 send = upper ? sums[i] : sums[i + n];
                f32 keep = upper ? sums[i + n] : sums[i];
                sums[i] = keep + __shfl_xor_sync(ALL_LANES, send, step);
            }
            step >>= 1;
        }
        f32 sum = sums[0];
        for (; step > 0; step >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        const u32 index = LANE / (32 / SUMS);
        const u64 row = start + index / QUERIES;
        const u32 query = index % QUERIES;
        if (LANE % (32 / SUMS) == 0 && row < count && query < asked) scores[query * count + row] = sum * factor[first + row];
    }
}

// Many queries: a product of matrices, 64 rows by 64 queries per block, 4 by 4 per thread.
#define TILE 64
#define DEPTH 16
extern "C" __global__ void __launch_bounds__(256)
score_many(const Item* corpus, const f32* queries, const f32* factor, u64 first, u64 count, u64 dims, u64 asked, f32* scores) {
    __shared__ f32 rows_tile[DEPTH][TILE + 4];
    __shared__ f32 queries_tile[DEPTH][TILE + 4];
    const u64 query_tiles = (asked + TILE - 1) / TILE;
    const u64 row_start = blockIdx.x / query_tiles * TILE;
    const u64 query_start = blockIdx.x % query_tiles * TILE;
    const u32 tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    f32 sums[4][4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = 0;
    for (u64 depth = 0; depth < dims; depth += DEPTH) {
        for (u32 at = threadIdx.x; at < TILE * DEPTH; at += 256) {
            u32 line = at / DEPTH, column = at % DEPTH;
            u64 dim = depth + column;
            bool row_there = row_start + line < count && dim < dims;
            bool query_there = query_start + line < asked && dim < dims;
            rows_tile[column][line] = row_there ? as_f32(corpus[(first + row_start + line) * dims + dim]) : 0.0f;
            queries_tile[column][line] = query_there ? queries[(query_start + line) * dims + dim] : 0.0f;
        }
        __syncthreads();
        #pragma unroll 4
        for (int k = 0; k < DEPTH; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++)
                    sums[i][j] = term(sums[i][j], queries_tile[k][ty * 4 + j], rows_tile[k][tx * 4 + i]);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            u64 row = row_start + tx * 4 + i, query = query_start + ty * 4 + j;
            if (row < count && query < asked) scores[query * count + row] = sums[i][j] * factor[first + row];
        }
}

// A score and its row as one number; src/ops/top_k/mod.rs has the same.
__device__ __forceinline__ u64 rank_of(f32 score, u32 row) {
    return ordered(score) << 32 | (u32)~row;
}

// Sorts the block's buffer, largest first (bitonic; `capacity` is a power of two).
__device__ __forceinline__ void sort_buffer(u64* buffer, u32 capacity) {
    for (u32 size = 2; size <= capacity; size <<= 1)
        for (u32 stride = size >> 1; stride > 0; stride >>= 1) {
            __syncthreads();
            for (u32 at = threadIdx.x; at < capacity / 2; at += blockDim.x) {
                u32 low = 2 * stride * (at / stride) + at % stride, high = low + stride;
                bool descending = (low & size) == 0;
                u64 a = buffer[low], b = buffer[high];
                if ((a < b) == descending) { buffer[low] = b; buffer[high] = a; }
            }
        }
    __syncthreads();
}

// Keeps the best `k` of a query over one segment of the rows: best[(query * segments + segment) * k]. What was kept
// from earlier rows is read first. A score is stored only when it beats the worst of the best so far. Scores that a product
// of matrices left are finished here: `factor` and `bias` are null where that was done before.
#define ITEMS 4
extern "C" __global__ void __launch_bounds__(256)
select_top(const f32* scores, const f32* factor, const f32* bias, u64 first, u64 count, u64 segments, u64 k, u64 capacity, u64* best) {
    DYNAMIC_SHARED(u64, buffer);
    __shared__ u32 held;
    __shared__ u64 threshold;
    const u64 query = blockIdx.x / segments, segment = blockIdx.x % segments;
    u64* kept = best + (query * segments + segment) * k;
    const u64 length = (count + segments - 1) / segments;
    const u64 begin = segment * length;
    const u64 end = begin + length < count ? begin + length : count;
    for (u64 at = threadIdx.x; at < capacity; at += blockDim.x) buffer[at] = at < k ? kept[at] : 0;
    if (threadIdx.x == 0) { held = (u32)k; threshold = kept[k - 1]; }
    __syncthreads();
    for (u64 base = begin; base < end; base += 256 * ITEMS) {
        const u64 limit = threshold;
        for (int item = 0; item < ITEMS; item++) {
            u64 at = base + item * 256 + threadIdx.x;
            if (at >= end) continue;
            f32 score = scores[query * count + at];
            if (factor) score *= factor[first + at];
            if (bias) score += bias[first + at];
            if (score != score) continue;
            u64 rank = rank_of(score, (u32)(first + at));
            if (rank > limit) buffer[atomicAdd(&held, 1u)] = rank;
        }
        __syncthreads();
        const bool full = held > capacity - 256 * ITEMS;
        __syncthreads();
        if (full) {
            for (u64 at = held + threadIdx.x; at < capacity; at += blockDim.x) buffer[at] = 0;
            sort_buffer(buffer, (u32)capacity);
            if (threadIdx.x == 0) { held = (u32)k; threshold = buffer[k - 1]; }
            __syncthreads();
        }
    }
    for (u64 at = held + threadIdx.x; at < capacity; at += blockDim.x) buffer[at] = 0;
    sort_buffer(buffer, (u32)capacity);
    for (u64 at = threadIdx.x; at < k; at += blockDim.x) kept[at] = buffer[at];
}
