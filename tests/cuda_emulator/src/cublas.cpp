// cuBLAS by the BLAS of NumPy: what the package's handle and CuPy's matmul call. The rest answers NOT_SUPPORTED (build.py writes it).
#include "emulator.h"

#include <cmath>
#include <cstdint>
#include <cstring>

using namespace emulator;

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
const int R_32F = 0, R_16F = 2, COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77;
const int TF32_TENSOR_OP = 3;  // a math mode

struct Handle {
    int device;
    cudaStream_t stream = nullptr;
    void *workspace = nullptr;
    size_t workspace_size = 0;
    int math_mode = 0, pointer_mode = 0;
};

std::set<Handle *> handles;

// cblas_sgemm with 64-bit integers, as NumPy's wheels have it, or nullptr.
void (*sgemm)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float, float *, int64_t);

float half_to_float(uint16_t h) {
    static const std::vector<float> table = [] {
        std::vector<float> values(1 << 16);
        for (int i = 0; i < 1 << 16; i++) {
            int e = i >> 10 & 31, m = i & 1023;
            float f = e == 0 ? ldexpf(m, -24) : e == 31 ? (m ? NAN : INFINITY) : ldexpf(1024 + m, e - 25);
            values[i] = i >> 15 ? -f : f;
        }
        return values;
    }();
    return table[h];
}

uint16_t float_to_half(float f) {  // as shim.h has it
    uint32_t bits, sign;
    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000, bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff;
    if (bits >= 0x47800000) return sign | 0x7c00;
    if (bits < 0x38800000) {
        float sum = fabsf(f) + 0.5f;
        memcpy(&bits, &sum, 4);
        return sign | (bits - 0x3f000000);
    }
    return sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

float to_tf32(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bits = (bits + 0x1000) & 0xffffe000;
    memcpy(&f, &bits, 4);
    return f;
}

// A matrix, column by column: rows x columns numbers of `type`, `ld` from one column to the next.
struct Matrix {
    char *p;
    int type;
    int64_t rows, columns, ld;

    int64_t itemsize() const { return type == R_16F ? 2 : 4; }
    size_t bytes() const { return rows && columns ? ((columns - 1) * ld + rows) * itemsize() : 0; }
    void load(std::vector<float> &to, bool tf32) const {
        to.resize(rows * columns);
        for (int64_t j = 0; j < columns; j++)
            for (int64_t i = 0; i < rows; i++) {
                float f = type == R_16F ? half_to_float(((uint16_t *)p)[j * ld + i]) : ((float *)p)[j * ld + i];
                to[j * rows + i] = tf32 ? to_tf32(f) : f;
            }
    }
};

void multiply(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    const int COLUMNS = 102, NO_TRANSPOSE = 111, TRANSPOSE = 112;
    if (sgemm) return sgemm(COLUMNS, ta ? TRANSPOSE : NO_TRANSPOSE, tb ? TRANSPOSE : NO_TRANSPOSE, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            float sum = 0;
            for (int64_t l = 0; l < k; l++) sum += a[ta ? i * lda + l : l * lda + i] * b[tb ? l * ldb + j : j * ldb + l];
            c[j * ldc + i] = alpha * sum + (beta ? beta * c[j * ldc + i] : 0);
        }
}

struct Product {
    bool ta, tb;
    int64_t m, n, k;
    float alpha, beta;
    Matrix a, b, c;
    bool tf32;

    void run(int device) const {
        for (const Matrix *x : {&a, &b, &c}) {
            std::string why = x->bytes() ? why_not(x->p, x->bytes(), device) : "";
            if (!why.empty()) return fail_kernel(cudaErrorIllegalAddress, "cuBLAS: a matrix of " + std::to_string(x->rows) + " x " + std::to_string(x->columns) + " " + why);
        }
        if (a.type == R_32F && b.type == R_32F && c.type == R_32F && !tf32)
            return multiply(ta, tb, m, n, k, alpha, (float *)a.p, a.ld, (float *)b.p, b.ld, beta, (float *)c.p, c.ld);
        std::vector<float> x, y, z(m * n);
        a.load(x, tf32), b.load(y, tf32);
        if (beta) c.load(z, false);
        multiply(ta, tb, m, n, k, alpha, x.data(), a.rows, y.data(), b.rows, beta, z.data(), m);
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++)
                if (c.type == R_16F) ((uint16_t *)c.p)[j * c.ld + i] = float_to_half(z[j * m + i]);
                else ((float *)c.p)[j * c.ld + i] = z[j * m + i];
    }
};

Status gemms(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, long long a_stride, const void *b,
             int b_type, int ldb, long long b_stride, const void *beta, void *c, int c_type, int ldc, long long c_stride, int batch, int compute) {
    auto *handle = (Handle *)h;
    if (!handles.count(handle)) return NOT_INITIALIZED;
    for (int type : {a_type, b_type, c_type})
        if (type != R_32F && type != R_16F) return NOT_SUPPORTED;
    if (compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32) return NOT_SUPPORTED;
    if (a_type != b_type || (c_type == R_16F && a_type != R_16F)) return NOT_SUPPORTED;
    Matrix A{(char *)a, a_type, ta ? k : m, ta ? m : k, lda}, B{(char *)b, b_type, tb ? n : k, tb ? k : n, ldb}, C{(char *)c, c_type, m, n, ldc};
    if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < std::max<int64_t>(1, A.rows) || ldb < std::max<int64_t>(1, B.rows) || ldc < std::max(1, m)) return INVALID_VALUE;
    if (handle->pointer_mode) return NOT_SUPPORTED;  // alpha and beta on the device
    Stream *stream = stream_of(handle->stream);
    if (!stream || stream->device != handle->device || current_device != handle->device) {
        problem(cudaErrorInvalidResourceHandle, "cuBLAS: a handle of device %d with a stream of device %d while device %d is current", handle->device, stream ? stream->device : -1, current_device);
        return EXECUTION_FAILED;
    }
    if (!m || !n || !batch) return SUCCESS;
    bool tf32 = a_type == R_32F && (compute == COMPUTE_32F_FAST_TF32 || handle->math_mode == TF32_TENSOR_OP);
    const char *kind = a_type == R_16F ? "fp16" : tf32 ? "tf32" : "fp32";
    count("gemms"), count(std::string("gemms ") + kind);
    if (stream->capture && !handle->workspace) count("captured gemms without a workspace");
    note("gemm %s %d x %d x %d, %d times, stream %p", kind, m, n, k, batch, (void *)stream);
    Product one{ta != 0, tb != 0, m, n, k, *(const float *)alpha, *(const float *)beta, A, B, C, tf32};
    int device = handle->device;
    void *workspace = handle->workspace;
    size_t workspace_size = handle->workspace_size;
    cudaError_t status = push(stream, [=]() mutable {
        for (int i = 0; i < batch; i++) {
            one.a.p = A.p + i * a_stride * A.itemsize(), one.b.p = B.p + i * b_stride * B.itemsize(), one.c.p = C.p + i * c_stride * C.itemsize();
            one.run(device);
        }
        if (workspace) {  // cuBLAS may write to all of it
            std::string why = why_not(workspace, workspace_size, device);
            if (!why.empty()) return fail_kernel(cudaErrorIllegalAddress, "cuBLAS: its workspace " + why);
            memset(workspace, PATTERN, std::min<size_t>(workspace_size, 4096));
        }
    });
    return status ? EXECUTION_FAILED : SUCCESS;
}

Status enter(const char *name) { return begin(name) ? EXECUTION_FAILED : SUCCESS; }

}  // namespace

#define ENTER_CUBLAS(name)                                                                \
    std::lock_guard<std::recursive_mutex> lock_(emulator::mutex);                         \
    if (int status_ = enter(#name)) return status_

EXPORT void emulator_sgemm(void *function) { sgemm = (decltype(sgemm))function; }

EXPORT int cublasCreate_v2(void **h) {
    ENTER_CUBLAS(cublasCreate_v2);
    auto *handle = new Handle{current_device};
    handles.insert(handle);
    *h = handle;
    return SUCCESS;
}
EXPORT int cublasDestroy_v2(void *h) {
    ENTER_CUBLAS(cublasDestroy_v2);
    run_everything();  // it waits for the device
    return handles.erase((Handle *)h) ? SUCCESS : NOT_INITIALIZED;
}
EXPORT int cublasSetStream_v2(void *h, cudaStream_t stream) {
    ENTER_CUBLAS(cublasSetStream_v2);
    auto *handle = (Handle *)h;
    handle->stream = stream, handle->workspace = nullptr, handle->workspace_size = 0;  // back to cuBLAS's own
    return SUCCESS;
}
EXPORT int cublasGetStream_v2(void *h, cudaStream_t *stream) {
    *stream = ((Handle *)h)->stream;
    return SUCCESS;
}
EXPORT int cublasSetWorkspace_v2(void *h, void *p, size_t size) {
    ENTER_CUBLAS(cublasSetWorkspace_v2);
    auto *handle = (Handle *)h;
    if ((size_t)p % 256 || !why_not_allocated(p, size, handle->device).empty()) return INVALID_VALUE;
    handle->workspace = p, handle->workspace_size = size;
    return SUCCESS;
}
EXPORT int cublasSetMathMode(void *h, int mode) {
    ((Handle *)h)->math_mode = mode;
    return SUCCESS;
}
EXPORT int cublasGetMathMode(void *h, int *mode) {
    *mode = ((Handle *)h)->math_mode;
    return SUCCESS;
}
EXPORT int cublasSetPointerMode_v2(void *h, int mode) {
    ((Handle *)h)->pointer_mode = mode;
    return SUCCESS;
}
EXPORT int cublasGetPointerMode_v2(void *h, int *mode) {
    *mode = ((Handle *)h)->pointer_mode;
    return SUCCESS;
}
EXPORT int cublasGetVersion_v2(void *, int *version) {
    *version = CUDART_VERSION / 1000 * 10000 + CUDART_VERSION % 1000 / 10 * 100;
    return SUCCESS;
}
EXPORT int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, long long a_stride,
                                      const void *b, int b_type, int ldb, long long b_stride, const void *beta, void *c, int c_type, int ldc, long long c_stride,
                                      int batch, int compute, int) {
    ENTER_CUBLAS(cublasGemmStridedBatchedEx);
    return gemms(h, ta, tb, m, n, k, alpha, a, a_type, lda, a_stride, b, b_type, ldb, b_stride, beta, c, c_type, ldc, c_stride, batch, compute);
}
EXPORT int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                        const void *beta, void *c, int c_type, int ldc, int compute, int) {
    ENTER_CUBLAS(cublasGemmEx);
    return gemms(h, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute);
}
EXPORT int cublasSgemmEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                         const float *beta, void *c, int c_type, int ldc) {
    ENTER_CUBLAS(cublasSgemmEx);
    return gemms(h, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, COMPUTE_32F);
}
EXPORT int cublasSgemm_v2(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta, float *c, int ldc) {
    ENTER_CUBLAS(cublasSgemm_v2);
    return gemms(h, ta, tb, m, n, k, alpha, a, R_32F, lda, 0, b, R_32F, ldb, 0, beta, c, R_32F, ldc, 0, 1, COMPUTE_32F);
}
EXPORT int cublasSgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda, long long a_stride, const float *b, int ldb,
                                     long long b_stride, const float *beta, float *c, int ldc, long long c_stride, int batch) {
    ENTER_CUBLAS(cublasSgemmStridedBatched);
    return gemms(h, ta, tb, m, n, k, alpha, a, R_32F, lda, a_stride, b, R_32F, ldb, b_stride, beta, c, R_32F, ldc, c_stride, batch, COMPUTE_32F);
}
// The addresses of the matrices lie on the device, so they are read when the work runs.
EXPORT int cublasSgemmBatched(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *const *a, int lda, const float *const *b, int ldb,
                              const float *beta, float *const *c, int ldc, int batch) {
    ENTER_CUBLAS(cublasSgemmBatched);
    auto *handle = (Handle *)h;
    Stream *stream = stream_of(handle->stream);
    if (!stream || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m)) return INVALID_VALUE;
    count("gemms"), count("gemms by pointers");
    Product one{ta != 0, tb != 0, m, n, k, *alpha, *beta, {nullptr, R_32F, ta ? k : m, ta ? m : k, lda}, {nullptr, R_32F, tb ? n : k, tb ? k : n, ldb}, {nullptr, R_32F, m, n, ldc}, false};
    int device = handle->device;
    return push(stream, [=]() mutable {
        for (int i = 0; i < batch; i++) one.a.p = (char *)a[i], one.b.p = (char *)b[i], one.c.p = (char *)c[i], one.run(device);
    }) ? EXECUTION_FAILED : SUCCESS;
}
EXPORT int cublasSgemv_v2(void *h, int t, int m, int n, const float *alpha, const float *a, int lda, const float *x, int incx, const float *beta, float *y, int incy) {
    ENTER_CUBLAS(cublasSgemv_v2);
    if (incx < 1 || incy < 1) return NOT_SUPPORTED;
    // y' = x' op(A)': x and y are matrices of one row, whose ld is the increment
    return gemms(h, 0, t ? 0 : 1, 1, t ? n : m, t ? m : n, alpha, x, R_32F, incx, 0, a, R_32F, lda, 0, beta, y, R_32F, incy, 0, 1, COMPUTE_32F);
}
EXPORT int cublasSdot_v2(void *h, int n, const float *x, int incx, const float *y, int incy, float *result) {
    ENTER_CUBLAS(cublasSdot_v2);
    auto *handle = (Handle *)h;
    auto dot = [=] {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)x[i * incx] * y[i * incy];
        *result = sum;
    };
    Stream *stream = stream_of(handle->stream);
    if (cudaError_t status = push(stream, dot)) return status ? EXECUTION_FAILED : SUCCESS;
    if (!handle->pointer_mode) count("waits"), run(stream, stream->pushed);  // the result is on the host
    return SUCCESS;
}
