// As much of libcublas.so as this project calls: products of matrices in device memory, which is the CPU's own here.
//
// Settings for the tests (environment):
//   GPU_EMU_BLAS=missing      cublasCreate fails, as where the library does not know the device
//   GPU_EMU_BLAS=refusing     every product fails
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

using Status = int;
using Handle = void *;
enum : Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13 };
enum : int { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, OP_N = 0, OP_T = 1 };

namespace {
bool setting(const char *value) {
    const char *text = getenv("GPU_EMU_BLAS");
    return text && !strcmp(text, value);
}
float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
float half(uint16_t v) {
    uint32_t sign = uint32_t(v & 0x8000u) << 16, exponent = (v >> 10) & 31, fraction = v & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    float size = exponent ? from_bits((exponent + 112) << 23 | fraction << 13) : float(fraction) * 5.9604644775390625e-8f;
    return sign ? -size : size;
}
float item(const void *from, int type, size_t at) {
    if (type == R_32F) return static_cast<const float *>(from)[at];
    uint16_t bits = static_cast<const uint16_t *>(from)[at];
    return type == R_16F ? half(bits) : from_bits(uint32_t(bits) << 16);
}
int handle_object;
}  // namespace

extern "C" {
Status cublasCreate_v2(Handle *handle) {
    if (setting("missing")) return NOT_INITIALIZED;
    *handle = &handle_object;
    return SUCCESS;
}
Status cublasDestroy_v2(Handle) { return SUCCESS; }
Status cublasSetStream_v2(Handle, void *) { return SUCCESS; }
const char *cublasGetStatusName(Status) { return "emulated cuBLAS error"; }

// C (m x n) = alpha * op(A) * op(B) + beta * C, everything by columns.
Status cublasGemmEx(Handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda,
                    const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc, int compute, int) {
    if (setting("refusing")) return EXECUTION_FAILED;
    bool known = (a_type == R_32F || a_type == R_16F || a_type == R_16BF) && a_type == b_type && c_type == R_32F && compute == COMPUTE_32F;
    bool fits = lda >= (op_a == OP_T ? k : m) && ldb >= (op_b == OP_T ? n : k) && ldc >= m && m >= 0 && n >= 0 && k >= 0;
    if (!known || !fits) return INVALID_VALUE;
    float one = *static_cast<const float *>(alpha), before = *static_cast<const float *>(beta);
    auto out = static_cast<float *>(c);
    for (size_t j = 0; j < size_t(n); j++)
        for (size_t i = 0; i < size_t(m); i++) {
            float sum = 0;
            for (size_t l = 0; l < size_t(k); l++)
                sum += item(a, a_type, op_a == OP_T ? i * lda + l : l * lda + i) *
                       item(b, b_type, op_b == OP_T ? l * ldb + j : j * ldb + l);
            float &place = out[j * ldc + i];
            // As cuBLAS has it: with beta zero the old value is not read.
            place = one * sum + (before == 0 ? 0 : before * place);
        }
    return SUCCESS;
}
}
