// The host versions of kernels/mma.cuh, after shim.h.
//
// ldmatrix and mma are barriers of a warp: when all lanes have arrived, one call does the work of all. A copy by cp_async makes
// its 16 bytes NaN at once, and writes them only in the cp_async_wait that covers it; so a read before the wait, and by another
// thread before a barrier that follows the wait, gets NaN in one of the two orders of threads.
//
// Reported with file and line: misaligned addresses, addresses that are not in shared memory, incomplete warps.

namespace host {

// What a lane gives to the ldmatrix or mma that it is in.
union Operands {
    struct { unsigned *r; const uint32_t *row; } load;
    struct { float *d; const unsigned *a, *b; } product;
};
static Operands operands[MAX_BLOCK];

struct Copy {
    char *to;
    long group;
    char bytes[16];
};
struct Copies {
    static const int MOST = 256;
    Copy pending[MOST];  // a ring: from first to last, not including it
    long first, last;
    long group;  // the number of groups that were committed
};
static Copies copies[MAX_BLOCK];

static void reset_copies() {
    for (int t = 0; t < block; t++) copies[t].first = copies[t].last = copies[t].group = 0;
}

static void check_address(const void *p, bool shared, const char *what, Where where) {
    const char *c = (const char *)p;
    if ((uintptr_t)p % 16) fail("%s:%d: %s %p, no multiple of 16", where.file, where.line, what, p);
    bool is_dynamic = c >= shared_end - shared_size && c + 16 <= shared_end, is_static = c >= __start_shared && c < __stop_shared;
    if (shared && !is_dynamic && !is_static)
        fail("%s:%d: %s %p, byte %ld of %zu bytes of dynamic shared memory", where.file, where.line, what, p,
             (long)(c - (shared_end - shared_size)), shared_size);
}

static void meet(const char *what, Where where, void (*finish)(int)) {
    if ((int)threadIdx.x / WARP * WARP + WARP > block)
        fail("%s:%d: %s in a warp of %d threads", where.file, where.line, what, block % WARP);
    wait(AT_WARP_BARRIER, ~0u, what, where, finish);
}

static void finish_ldmatrix(int first) {
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++)
            operands[first + lane].load.r[i] = operands[first + 8 * i + lane / 4].load.row[lane % 4];
}

typedef float Row __attribute__((vector_size(32)));

// d += a b. K words of 32 bits in a row of A; value(word, j) is the j-th value of a word, of which there are PER_WORD.
template <int PER_WORD, class Value> static void finish_product(int first, Value value) {
    const int K = 8 * PER_WORD;
    float A[16][K];
    Row B[K], D[16];
    auto lanes = [&](auto each) {
        for (int lane = 0; lane < WARP; lane++) each(operands[first + lane].product, lane / 4, lane % 4);
    };
    lanes([&](auto &mine, int row, int word) {
        for (int j = 0; j < PER_WORD; j++) {
            for (int i = 0; i < 4; i++) A[row + i % 2 * 8][(word + i / 2 * 4) * PER_WORD + j] = value(mine.a[i], j);
            for (int i = 0; i < 2; i++) B[(word + i * 4) * PER_WORD + j][row] = value(mine.b[i], j);
        }
        for (int i = 0; i < 4; i++) D[row + i / 2 * 8][2 * word + i % 2] = mine.d[i];
    });
    for (int m = 0; m < 16; m++) {
        Row sum = D[m];
        for (int k = 0; k < K; k++) sum += A[m][k] * B[k];  // products of 11 bits are exact in a float
        D[m] = sum;
    }
    lanes([&](auto &mine, int row, int word) {
        for (int i = 0; i < 4; i++) mine.d[i] = D[row + i / 2 * 8][2 * word + i % 2];
    });
}

}  // namespace host

static float half_to_float(unsigned short);

static char *dynamic_shared() { return host::shared_end - (host::shared_size + 15) / 16 * 16; }

static void ldmatrix(unsigned (&r)[4], const void *row, host::Where where = {}) {
    host::check_address(row, true, "ldmatrix of", where);
    host::operands[threadIdx.x].load = {r, (const uint32_t *)row};
    host::meet("ldmatrix", where, host::finish_ldmatrix);
}

// SIZE: sizeof(T), by which kernels choose half_t or tf32.
template <int SIZE> static void host_mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], host::Where where = {}) {
    host::operands[threadIdx.x].product = {d, a, b};
    host::meet("mma", where, [](int first) {
        if (SIZE == 2)
            host::finish_product<2>(first, [](unsigned word, int j) { return half_to_float(word >> 16 * j); });
        else
            host::finish_product<1>(first, [](unsigned word, int) { return __uint_as_float(word & 0xffffe000); });
    });
}
#define mma(...) host_mma<sizeof(T)>(__VA_ARGS__)

static unsigned to_tf32(unsigned bits) {
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : (bits + 0x1000) & 0xffffe000;
}

static void cp_async(void *shared, const void *global, int bytes, host::Where where = {}) {
    host::check_address(shared, true, "cp_async to", where);
    host::check_address(global, false, "cp_async from", where);
    if (bytes < 0 || bytes > 16) host::fail("%s:%d: cp_async of %d bytes", where.file, where.line, bytes);
    host::Copies &mine = host::copies[threadIdx.x];
    if (mine.last - mine.first == mine.MOST) host::fail("%s:%d: %d copies in flight", where.file, where.line, mine.MOST);
    host::Copy &copy = mine.pending[mine.last++ % mine.MOST];
    copy.to = (char *)shared, copy.group = mine.group;
    memset(copy.bytes, 0, 16);
    memcpy(copy.bytes, global, bytes);
    memset(shared, 0xff, 16);
}

static void cp_async_commit() { host::copies[threadIdx.x].group++; }

template <int N> static void cp_async_wait() {
    host::Copies &mine = host::copies[threadIdx.x];
    for (; mine.first < mine.last; mine.first++) {
        host::Copy &copy = mine.pending[mine.first % mine.MOST];
        if (copy.group >= mine.group - N) break;
        memcpy(copy.to, copy.bytes, 16);
    }
}

static float4 load_cg(const float4 *p) { return *p; }
static void store_cg(float4 *p, float4 v) { *p = v; }
