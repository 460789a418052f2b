// Shared by every kernel: types, Arrow bitmaps, total order, checked arithmetic, reductions. Read together with
// src/expr/cuda.rs, which writes calls of these functions. No #include anywhere: NVRTC gets one text.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;
typedef __int128 i128;
typedef unsigned __int128 u128;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(16) u8 dynamic_shared_bytes[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_bytes)
#endif

#define ALL_LANES 0xffffffffu
#define LANE (threadIdx.x & 31u)
#define WARP (threadIdx.x >> 5)

// What a row did wrong; the host turns the lowest bit into an error (src/error.rs, DataFault).
#define FAULT_DIVIDE_BY_ZERO 1u
#define FAULT_OVERFLOW 2u
#define FAULT_CAST 4u
#define FAULT_TABLE_FULL 8u
#define FAULT_UNORDERED 16u

// ---------------------------------------------------------------- Arrow bitmaps: bit i of byte i / 8
__device__ __forceinline__ bool bit_at(const u32* bits, u64 row) { return (bits[row >> 5] >> (row & 31)) & 1u; }
// A column without nulls has no bitmap.
__device__ __forceinline__ bool valid_at(const u32* bits, u64 row) { return bits == nullptr || bit_at(bits, row); }

// ---------------------------------------------------------------- total order (Arrow sorts floats by it)
__device__ __forceinline__ u64 ordered(u64 v) { return v; }
__device__ __forceinline__ u64 ordered(u32 v) { return v; }
__device__ __forceinline__ u64 ordered(u16 v) { return v; }
__device__ __forceinline__ u64 ordered(u8 v) { return v; }
__device__ __forceinline__ u64 ordered(bool v) { return v; }
__device__ __forceinline__ u64 ordered(i64 v) { return (u64)v ^ 0x8000000000000000ull; }
__device__ __forceinline__ u64 ordered(i32 v) { return ordered((i64)v); }
__device__ __forceinline__ u64 ordered(i16 v) { return ordered((i64)v); }
__device__ __forceinline__ u64 ordered(i8 v) { return ordered((i64)v); }
// IEEE totalOrder: flip all bits of negatives, the sign bit of the rest.
__device__ __forceinline__ u64 ordered(f64 v) {
    u64 b = (u64)__double_as_longlong(v);
    return b ^ ((b >> 63) ? ~0ull : 0x8000000000000000ull);
}
__device__ __forceinline__ u64 ordered(f32 v) {
    u32 b = __float_as_uint(v);
    return b ^ ((b >> 31) ? ~0u : 0x80000000u);
}
// A decimal of at most 18 digits fits its low word.
__device__ __forceinline__ u64 ordered(i128 v) { return ordered((i64)v); }

template <class T> __device__ __forceinline__ bool less(T a, T b) { return a < b; }
template <class T> __device__ __forceinline__ bool same(T a, T b) { return a == b; }
// SQL's comparisons: as total order, but that -0.0 equals 0.0. So numbers compare as IEEE has it, and NaN by its bits.
__device__ __forceinline__ bool less(f64 a, f64 b) { return a < b || ((a != a || b != b) && ordered(a) < ordered(b)); }
__device__ __forceinline__ bool less(f32 a, f32 b) { return a < b || ((a != a || b != b) && ordered(a) < ordered(b)); }
__device__ __forceinline__ bool same(f64 a, f64 b) { return a == b || __double_as_longlong(a) == __double_as_longlong(b); }
__device__ __forceinline__ bool same(f32 a, f32 b) { return a == b || __float_as_uint(a) == __float_as_uint(b); }
// Values for which min and max of a group hang on the order of the rows: NaN, and one zero beside the other.
__device__ __forceinline__ u32 unordered(f64 v) {
    return v != v || (v == 0 && (u64)__double_as_longlong(v) >> 63) ? FAULT_UNORDERED : 0;
}
__device__ __forceinline__ u32 unordered(f32 v) { return v != v || (v == 0 && __float_as_uint(v) >> 31) ? FAULT_UNORDERED : 0; }

// ---------------------------------------------------------------- constants: two words each
template <class T> struct Constant { static __device__ __forceinline__ T get(u64 low, u64) { return (T)low; } };
template <> struct Constant<i128> {
    static __device__ __forceinline__ i128 get(u64 low, u64 high) { return (i128)(((u128)high << 64) | low); }
};
template <> struct Constant<f64> {
    static __device__ __forceinline__ f64 get(u64 low, u64) { return __longlong_as_double((i64)low); }
};
template <> struct Constant<f32> {
    static __device__ __forceinline__ f32 get(u64 low, u64) { return __uint_as_float((u32)low); }
};

// ---------------------------------------------------------------- arithmetic as Arrow's kernels do it
// Integers wrap; through unsigned, because signed overflow is undefined in C++.
template <class T> struct Unsigned;
template <> struct Unsigned<i8> { typedef u8 type; };
template <> struct Unsigned<i16> { typedef u16 type; };
template <> struct Unsigned<i32> { typedef u32 type; };
template <> struct Unsigned<i64> { typedef u64 type; };
template <> struct Unsigned<u8> { typedef u8 type; };
template <> struct Unsigned<u16> { typedef u16 type; };
template <> struct Unsigned<u32> { typedef u32 type; };
template <> struct Unsigned<u64> { typedef u64 type; };
template <class T> __device__ __forceinline__ T add_wrapping(T a, T b) { typedef typename Unsigned<T>::type U; return (T)(U)((U)a + (U)b); }
template <class T> __device__ __forceinline__ T sub_wrapping(T a, T b) { typedef typename Unsigned<T>::type U; return (T)(U)((U)a - (U)b); }
// Widened to 64 bits first: u16 * u16 would be promoted to a signed int.
template <class T> __device__ __forceinline__ T mul_wrapping(T a, T b) { return (T)((u64)a * (u64)b); }
template <class T> __device__ __forceinline__ T div_checked(T a, T b, bool valid, u32& fault) {
    if (!valid) return a;
    if (b == 0) { fault |= FAULT_DIVIDE_BY_ZERO; return a; }
    if ((T)-1 < (T)0 && b == (T)-1) {
        if (a != 0 && a == (T)(0 - (u64)a)) fault |= FAULT_OVERFLOW;  // MIN / -1
        return (T)(0 - (u64)a);
    }
    return (T)(a / b);
}
template <class T> __device__ __forceinline__ T rem_checked(T a, T b, bool valid, u32& fault) {
    if (!valid) return a;
    if (b == 0) { fault |= FAULT_DIVIDE_BY_ZERO; return a; }
    if ((T)-1 < (T)0 && b == (T)-1) return 0;
    return (T)(a % b);
}

// A NaN that an operation makes of numbers is negative on x86 and positive on NVIDIA's devices, and totalOrder puts the
// two at opposite ends. The kernels give it x86's sign; a NaN that comes in goes on, as on the CPU.
__device__ __forceinline__ f64 settle(f64 r, f64 a, f64 b) {
    if (r == r) return r;
    return a != a ? a : b != b ? b : __longlong_as_double((i64)0xfff8000000000000ull);
}
__device__ __forceinline__ f32 settle(f32 r, f32 a, f32 b) {
    if (r == r) return r;
    return a != a ? a : b != b ? b : __uint_as_float(0xffc00000u);
}

// Decimals: 128 bits, checked.
__device__ __forceinline__ i128 decimal_add(i128 a, i128 b, bool valid, u32& fault) {
    i128 sum = (i128)((u128)a + (u128)b);
    if (valid && ((a < 0) == (b < 0)) && ((sum < 0) != (a < 0))) fault |= FAULT_OVERFLOW;
    return sum;
}
__device__ __forceinline__ i128 decimal_sub(i128 a, i128 b, bool valid, u32& fault) {
    i128 difference = (i128)((u128)a - (u128)b);
    if (valid && ((a < 0) != (b < 0)) && ((difference < 0) != (a < 0))) fault |= FAULT_OVERFLOW;
    return difference;
}
__device__ __forceinline__ i128 decimal_mul(i128 a, i128 b, bool valid, u32& fault) {
    bool negative = (a < 0) != (b < 0);
    u128 x = a < 0 ? (u128)0 - (u128)a : (u128)a;
    u128 y = b < 0 ? (u128)0 - (u128)b : (u128)b;
    u64 x0 = (u64)x, x1 = (u64)(x >> 64), y0 = (u64)y, y1 = (u64)(y >> 64);
    bool over = x1 != 0 && y1 != 0;
    u64 cross_high = x1 ? __umul64hi(x1, y0) : __umul64hi(x0, y1);
    u64 cross = x1 ? x1 * y0 : x0 * y1;
    u64 high = __umul64hi(x0, y0) + cross;
    over |= cross_high != 0 || high < cross;
    u128 product = ((u128)high << 64) | (u64)(x0 * y0);
    u128 limit = ((u128)1 << 127) - (negative ? 0 : 1);
    if (valid && (over || product > limit)) fault |= FAULT_OVERFLOW;
    return (i128)(negative ? (u128)0 - product : product);
}
__device__ __noinline__ i128 decimal_div(i128 a, i128 b, bool valid, u32& fault) {
    if (!valid) return a;
    if (b == 0) { fault |= FAULT_DIVIDE_BY_ZERO; return a; }
    if (b == -1) return decimal_sub(0, a, true, fault);
    return a / b;
}
__device__ __noinline__ i128 decimal_rem(i128 a, i128 b, bool valid, u32& fault) {
    if (!valid) return a;
    if (b == 0) { fault |= FAULT_DIVIDE_BY_ZERO; return a; }
    if (b == -1) return 0;
    return a % b;
}

// ---------------------------------------------------------------- casts that can fail
template <class To, class From> __device__ __forceinline__ To cast_integer(From v, bool valid, u32& fault) {
    To r = (To)v;
    if (valid && ((From)r != v || ((r < (To)0) != (v < (From)0)))) fault |= FAULT_CAST;
    return r;
}
// `low` and `high` are the exclusive bounds of the target as doubles; NaN fails both comparisons.
template <class To> __device__ __forceinline__ To cast_float(f64 v, f64 low, f64 high, bool valid, u32& fault) {
    if (v > low && v < high) return (To)v;
    if (valid) fault |= FAULT_CAST;
    return 0;
}
// |v| < 10^precision, or the cast fails.
__device__ __forceinline__ i128 fit_decimal(i128 v, i128 bound, bool valid, u32& fault) {
    if (valid && (v >= bound || v <= -bound)) fault |= FAULT_CAST;
    return v;
}

// ---------------------------------------------------------------- reductions over a warp and a block
__device__ __forceinline__ f64 as_f64(u64 v) { return __longlong_as_double((i64)v); }
__device__ __forceinline__ u64 as_u64(f64 v) { return (u64)__double_as_longlong(v); }

struct AddU64 { static __device__ __forceinline__ u64 identity() { return 0; } static __device__ __forceinline__ u64 of(u64 a, u64 b) { return a + b; } };
struct AddF64 { static __device__ __forceinline__ u64 identity() { return 0; } static __device__ __forceinline__ u64 of(u64 a, u64 b) { return as_u64(as_f64(a) + as_f64(b)); } };
struct MinU64 { static __device__ __forceinline__ u64 identity() { return ~0ull; } static __device__ __forceinline__ u64 of(u64 a, u64 b) { return b < a ? b : a; } };
struct MaxU64 { static __device__ __forceinline__ u64 identity() { return 0; } static __device__ __forceinline__ u64 of(u64 a, u64 b) { return b > a ? b : a; } };

template <class Op> __device__ __forceinline__ u64 warp_reduce(u64 v) {
    for (int step = 16; step > 0; step >>= 1) v = Op::of(v, __shfl_down_sync(ALL_LANES, v, step));
    return v;  // right in lane 0
}
// The block's result in thread 0. `scratch` holds 32 words of shared memory.
template <class Op> __device__ __forceinline__ u64 block_reduce(u64 v, u64* scratch) {
    v = warp_reduce<Op>(v);
    __syncthreads();
    if (LANE == 0) scratch[WARP] = v;
    __syncthreads();
    u32 warps = (blockDim.x + 31) >> 5;
    if (WARP == 0) {
        v = LANE < warps ? scratch[LANE] : Op::identity();
        v = warp_reduce<Op>(v);
    }
    return v;
}
struct AddI128 { static __device__ __forceinline__ i128 of(i128 a, i128 b) { return (i128)((u128)a + (u128)b); } };
struct MinI128 { static __device__ __forceinline__ i128 of(i128 a, i128 b) { return b < a ? b : a; } };
struct MaxI128 { static __device__ __forceinline__ i128 of(i128 a, i128 b) { return b > a ? b : a; } };
__device__ __forceinline__ i128 join_words(u64 low, u64 high) { return (i128)(((u128)high << 64) | low); }
template <class Op> __device__ __forceinline__ i128 warp_reduce_wide(i128 v) {
    for (int step = 16; step > 0; step >>= 1) {
        u64 low = __shfl_down_sync(ALL_LANES, (u64)v, step);
        u64 high = __shfl_down_sync(ALL_LANES, (u64)((u128)v >> 64), step);
        v = Op::of(v, join_words(low, high));
    }
    return v;
}
template <class Op> __device__ __forceinline__ i128 block_reduce_wide(i128 v, u64* scratch) {
    v = warp_reduce_wide<Op>(v);
    __syncthreads();
    if (LANE == 0) { scratch[2 * WARP] = (u64)v; scratch[2 * WARP + 1] = (u64)((u128)v >> 64); }
    __syncthreads();
    if (threadIdx.x == 0)
        for (u32 w = 1; w < (blockDim.x + 31) >> 5; w++) v = Op::of(v, join_words(scratch[2 * w], scratch[2 * w + 1]));
    return v;
}

// ---------------------------------------------------------------- hashing
// Finalizer of MurmurHash3 (Appleby, public domain): every bit of the input reaches every bit of the result.
__device__ __forceinline__ u64 mix(u64 x) {
    x ^= x >> 33; x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}
