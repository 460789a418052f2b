// A hash join over key words: heads[hash] is the last build row with that hash, next[row] the one before it (0: none;
// rows are stored plus one). Probing counts first, so that the output has its exact size, then writes.
//
// Keys: words[word * rows + row]; usable[row] is 0 for rows whose key holds a null, which match nothing.
__device__ __forceinline__ u64 hash_words(const u64* words, u64 rows, u64 row, u64 width) {
    u64 hash = mix(words[row]);
    for (u64 word = 1; word < width; word++) hash = mix(hash ^ words[word * rows + row]);
    return hash;
}

extern "C" __global__ void __launch_bounds__(256)
build_table(const u64* words, const u8* usable, u64 rows, u64 width, u32* heads, u64 mask, u32* next) {
    for (u64 row = (u64)blockIdx.x * 256 + threadIdx.x; row < rows; row += (u64)gridDim.x * 256) {
        if (!usable[row]) continue;
        next[row] = atomicExch(&heads[hash_words(words, rows, row, width) & mask], (u32)row + 1);
    }
}

__device__ __forceinline__ bool keys_equal(const u64* a, u64 a_rows, u64 a_row, const u64* b, u64 b_rows, u64 b_row, u64 width) {
    for (u64 word = 0; word < width; word++)
        if (a[word * a_rows + a_row] != b[word * b_rows + b_row]) return false;
    return true;
}

// What is written per probe row: 0 inner (each match), 1 left (each match, or once without), 2 semi (once with a
// match), 3 anti (once without).
__device__ __forceinline__ u32 written(u32 matches, u64 kind) {
    if (kind == 0) return matches;
    if (kind == 1) return matches ? matches : 1;
    return kind == 2 ? matches != 0 : matches == 0;
}

extern "C" __global__ void __launch_bounds__(256)
count_matches(const u64* probe, const u8* usable, u64 probe_rows, const u64* build, u64 build_rows, u64 width,
              const u32* heads, u64 mask, const u32* next, u64 kind, u32* counts, u64* total) {
    u64 mine = 0;
    for (u64 row = (u64)blockIdx.x * 256 + threadIdx.x; row < probe_rows; row += (u64)gridDim.x * 256) {
        u32 matches = 0;
        if (usable[row])
            for (u32 at = heads[hash_words(probe, probe_rows, row, width) & mask]; at; at = next[at - 1]) {
                if (!keys_equal(probe, probe_rows, row, build, build_rows, at - 1, width)) continue;
                matches++;
                if (kind >= 2) break;
            }
        counts[row] = written(matches, kind);
        mine += counts[row];
    }
    __shared__ u64 scratch[32];
    mine = block_reduce<AddU64>(mine, scratch);
    if (threadIdx.x == 0 && mine) atomicAdd(total, mine);
}

// Writes row numbers of both sides; ALL_LANES for a missing build row. `starts` are the exclusive sums of the counts.
extern "C" __global__ void __launch_bounds__(256)
write_matches(const u64* probe, const u8* usable, u64 probe_rows, const u64* build, u64 build_rows, u64 width,
              const u32* heads, u64 mask, const u32* next, u64 kind, const u32* starts, u64 total, u32* probe_out, u32* build_out) {
    for (u64 row = (u64)blockIdx.x * 256 + threadIdx.x; row < probe_rows; row += (u64)gridDim.x * 256) {
        u64 place = starts[row];
        const u64 end = row + 1 < probe_rows ? starts[row + 1] : total;
        if (place == end) continue;
        if (kind >= 2) {
            probe_out[place] = (u32)row;
            continue;
        }
        if (usable[row])
            for (u32 at = heads[hash_words(probe, probe_rows, row, width) & mask]; at; at = next[at - 1]) {
                if (!keys_equal(probe, probe_rows, row, build, build_rows, at - 1, width)) continue;
                probe_out[place] = (u32)row;
                build_out[place] = at - 1;
                place++;
            }
        if (place < end) {
            probe_out[place] = (u32)row;
            build_out[place] = ALL_LANES;
        }
    }
}
