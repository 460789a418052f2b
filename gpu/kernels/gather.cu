// Copies rows by their numbers, column by column: the last step of sorts and joins.

// out[at] = values[rows[at]]; a row number of ALL_LANES reads nothing (an outer join's missing side).
template <class T> __device__ __forceinline__ void gather(const T* values, const u32* rows, T* out, u64 count) {
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < count; at += (u64)gridDim.x * 256)
        out[at] = rows[at] == ALL_LANES ? (T)0 : values[rows[at]];
}
extern "C" __global__ void __launch_bounds__(256) gather_1(const u8* values, const u32* rows, u8* out, u64 count) { gather(values, rows, out, count); }
extern "C" __global__ void __launch_bounds__(256) gather_2(const u16* values, const u32* rows, u16* out, u64 count) { gather(values, rows, out, count); }
extern "C" __global__ void __launch_bounds__(256) gather_4(const u32* values, const u32* rows, u32* out, u64 count) { gather(values, rows, out, count); }
extern "C" __global__ void __launch_bounds__(256) gather_8(const u64* values, const u32* rows, u64* out, u64 count) { gather(values, rows, out, count); }
extern "C" __global__ void __launch_bounds__(256) gather_16(const u128* values, const u32* rows, u128* out, u64 count) { gather(values, rows, out, count); }
// The same for bits; where there is no row the bit is not set. `bits` may be null: all set.
extern "C" __global__ void __launch_bounds__(256) gather_bits(const u32* bits, const u32* rows, u32* out, u64 count) {
    for (u64 first = (u64)blockIdx.x * 256; first < count; first += (u64)gridDim.x * 256) {
        const u64 at = first + threadIdx.x;
        bool set = at < count && rows[at] != ALL_LANES && valid_at(bits, rows[at]);
        u32 word = __ballot_sync(ALL_LANES, set);
        if (LANE == 0 && at < count) out[at >> 5] = word;
    }
}
