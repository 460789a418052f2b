// A stable least-significant-digit radix sort of row numbers by 64-bit keys, eight bits a pass.
//
//   count_digits: per block, how many of its keys have each digit        counts[digit * blocks + block]
//   (exclusive sum over counts, by scan_counts)                          where each block's keys of each digit begin
//   scatter: every key to its place, in order                            rank within the block by votes of warps
//
// A block always takes the same BLOCK_KEYS consecutive keys, so the sort is stable and repeatable.
#define DIGITS 256
#define BLOCK_THREADS 256
#define ROUNDS 16
#define BLOCK_KEYS (BLOCK_THREADS * ROUNDS)

extern "C" __global__ void __launch_bounds__(256) first_order(u32* rows, u64 count) {
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < count; at += (u64)gridDim.x * 256) rows[at] = (u32)at;
}

// The keys of a pass in the order the earlier passes left: keys[at] = source[rows[at]].
extern "C" __global__ void __launch_bounds__(256) gather_keys(const u64* source, const u32* rows, u64* keys, u64 count) {
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < count; at += (u64)gridDim.x * 256) keys[at] = source[rows[at]];
}

extern "C" __global__ void __launch_bounds__(256)
count_digits(const u64* keys, u64 count, u32 shift, u32* counts) {
    __shared__ u32 local[DIGITS];
    local[threadIdx.x] = 0;
    __syncthreads();
    const u64 start = (u64)blockIdx.x * BLOCK_KEYS;
    for (u32 at = threadIdx.x; at < BLOCK_KEYS; at += BLOCK_THREADS)
        if (start + at < count) atomicAdd(&local[(keys[start + at] >> shift) & (DIGITS - 1)], 1u);
    __syncthreads();
    counts[(u64)threadIdx.x * gridDim.x + blockIdx.x] = local[threadIdx.x];
}

// The exclusive sum of a block's value over its threads, and their total. `scratch` holds 32 words.
__device__ __forceinline__ u32 block_scan(u32 value, u32* scratch, u32& total) {
    u32 sum = value;
    for (int step = 1; step < 32; step <<= 1) {
        u32 other = __shfl_up_sync(ALL_LANES, sum, step);
        if (LANE >= step) sum += other;
    }
    __syncthreads();
    if (LANE == 31) scratch[WARP] = sum;
    __syncthreads();
    u32 before = 0;
    total = 0;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) {
        if (warp < WARP) before += scratch[warp];
        total += scratch[warp];
    }
    return before + sum - value;
}

// Sums of runs of BLOCK_KEYS counts, one block each.
extern "C" __global__ void __launch_bounds__(256) sum_runs(const u32* counts, u64 length, u32* sums) {
    __shared__ u32 scratch[32];
    u32 mine = 0;
    const u64 start = (u64)blockIdx.x * BLOCK_KEYS;
    for (u32 at = threadIdx.x; at < BLOCK_KEYS; at += BLOCK_THREADS) mine += start + at < length ? counts[start + at] : 0;
    u32 total;
    block_scan(mine, scratch, total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block: the exclusive sum of `length` numbers in place.
extern "C" __global__ void __launch_bounds__(256) scan_one(u32* values, u64 length) {
    __shared__ u32 scratch[32];
    u32 carry = 0;
    for (u64 base = 0; base < length; base += 256) {
        const u64 at = base + threadIdx.x;
        u32 value = at < length ? values[at] : 0, total;
        u32 before = block_scan(value, scratch, total);
        if (at < length) values[at] = carry + before;
        carry += total;
        __syncthreads();
    }
}

// The exclusive sum of each run, from where the runs before it end.
extern "C" __global__ void __launch_bounds__(256) scan_runs(u32* counts, u64 length, const u32* sums) {
    __shared__ u32 scratch[32];
    u32 carry = sums[blockIdx.x];
    const u64 start = (u64)blockIdx.x * BLOCK_KEYS;
    for (u32 base = 0; base < BLOCK_KEYS; base += BLOCK_THREADS) {
        const u64 at = start + base + threadIdx.x;
        u32 value = at < length ? counts[at] : 0, total;
        u32 before = block_scan(value, scratch, total);
        if (at < length) counts[at] = carry + before;
        carry += total;
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256)
scatter(const u64* keys, const u32* rows, u64 count, u32 shift, const u32* counts, u64* keys_out, u32* rows_out) {
    __shared__ u32 next[DIGITS];
    __shared__ u32 warp_counts[BLOCK_THREADS / 32][DIGITS];
    next[threadIdx.x] = counts[(u64)threadIdx.x * gridDim.x + blockIdx.x];
    const u64 start = (u64)blockIdx.x * BLOCK_KEYS;
    for (u32 round = 0; round < ROUNDS; round++) {
        for (u32 warp = 0; warp < BLOCK_THREADS / 32; warp++) warp_counts[warp][threadIdx.x] = 0;
        __syncthreads();
        const u64 at = start + round * BLOCK_THREADS + threadIdx.x;
        const bool inside = at < count;
        const u64 key = inside ? keys[at] : 0;
        const u32 digit = (key >> shift) & (DIGITS - 1);
        // The lanes of this warp with the same digit, by one vote per bit.
        u32 peers = __ballot_sync(ALL_LANES, inside);
        for (u32 bit = 0; bit < 8; bit++) {
            u32 votes = __ballot_sync(ALL_LANES, (digit >> bit) & 1u);
            peers &= ((digit >> bit) & 1u) ? votes : ~votes;
        }
        const u32 before = __popc(peers & ((1u << LANE) - 1));
        if (inside && before == 0) warp_counts[WARP][digit] = __popc(peers);
        __syncthreads();
        if (inside) {
            u32 place = next[digit] + before;
            for (u32 warp = 0; warp < WARP; warp++) place += warp_counts[warp][digit];
            keys_out[place] = key;
            rows_out[place] = rows[at];
        }
        __syncthreads();
        for (u32 warp = 0; warp < BLOCK_THREADS / 32; warp++) next[threadIdx.x] += warp_counts[warp][threadIdx.x];
        __syncthreads();
    }
}

