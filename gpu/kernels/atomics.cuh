// Atomic updates of accumulators, in device memory (atomic_*) and in shared memory (shared_*).

// Key bits: -0.0 groups with 0.0, everything else by its bits.
__device__ __forceinline__ u64 key_bits(bool v) { return v; }
__device__ __forceinline__ u64 key_bits(u8 v) { return v; }
__device__ __forceinline__ u64 key_bits(u16 v) { return v; }
__device__ __forceinline__ u64 key_bits(u32 v) { return v; }
__device__ __forceinline__ u64 key_bits(u64 v) { return v; }
__device__ __forceinline__ u64 key_bits(i8 v) { return (u8)v; }
__device__ __forceinline__ u64 key_bits(i16 v) { return (u16)v; }
__device__ __forceinline__ u64 key_bits(i32 v) { return (u32)v; }
__device__ __forceinline__ u64 key_bits(i64 v) { return (u64)v; }
__device__ __forceinline__ u64 key_bits(f32 v) { return v == 0 ? 0 : __float_as_uint(v); }
__device__ __forceinline__ u64 key_bits(f64 v) { return v == 0 ? 0 : (u64)__double_as_longlong(v); }

__device__ __forceinline__ void atomic_AddU64(u64* at, u64 v) { if (v) atomicAdd(at, v); }
__device__ __forceinline__ void atomic_AddF64(u64* at, u64 v) { atomicAdd((f64*)at, as_f64(v)); }
__device__ __forceinline__ void atomic_MinU64(u64* at, u64 v) { if (v < *(volatile u64*)at) atomicMin(at, v); }
__device__ __forceinline__ void atomic_MaxU64(u64* at, u64 v) { if (v > *(volatile u64*)at) atomicMax(at, v); }
// 128 bits as two words: whoever makes the low one wrap carries into the high one. Every order gives the same sum.
__device__ __forceinline__ void add_wide(u64* at, u64 low, u64 high) {
    u64 before = low ? atomicAdd(at, low) : 0;
    u64 carry = low && before + low < before;
    if (high + carry) atomicAdd(at + 1, high + carry);
}

// Shared memory has native 32-bit atomics and emulates 64-bit sums by retrying: add the halves with a carry.
__device__ __forceinline__ void shared_AddU64(u64* at, u64 v) {
    u32 low = (u32)v, high = (u32)(v >> 32);
    u32* halves = (u32*)at;
    if (low) {
        u32 before = atomicAdd(halves, low);
        high += before + low < before;
    }
    if (high) atomicAdd(halves + 1, high);
}
__device__ __forceinline__ void shared_AddF64(u64* at, u64 v) { atomicAdd((f64*)at, as_f64(v)); }
__device__ __forceinline__ void shared_MinU64(u64* at, u64 v) { if (v < *(volatile u64*)at) atomicMin(at, v); }
__device__ __forceinline__ void shared_MaxU64(u64* at, u64 v) { if (v > *(volatile u64*)at) atomicMax(at, v); }

// The warp's result in every lane.
template <class Op> __device__ __forceinline__ u64 warp_reduce_all(u64 v) {
    for (int step = 16; step > 0; step >>= 1) v = Op::of(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}
__device__ __forceinline__ void reduce_wide(u64* state, bool mine) {
    i128 v = mine ? join_words(state[0], state[1]) : (i128)0;
    for (int step = 16; step > 0; step >>= 1) {
        u64 low = __shfl_xor_sync(ALL_LANES, (u64)v, step);
        u64 high = __shfl_xor_sync(ALL_LANES, (u64)((u128)v >> 64), step);
        v = AddI128::of(v, join_words(low, high));
    }
    state[0] = (u64)v;
    state[1] = (u64)((u128)v >> 64);
}
