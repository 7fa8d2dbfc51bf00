// The host versions of kernels/mma.cuh, after shim.h.
//
// ldmatrix and mma are barriers of a warp: when all lanes have arrived, one call does the work of all. A copy by cp_async makes
// its 16 bytes NaN at once, and writes them only in the cp_async_wait that covers it; so a read before the wait, and by another
// thread before a barrier that follows the wait, gets NaN in one of the two orders of threads.
//
// Reported with file and line: misaligned addresses, addresses that are not in shared memory, incomplete warps.
//
// Counted, per launch: warps' instructions, conflicts of shared memory's banks (passes beyond the first), and the sectors of 32 bytes
// of global memory that an instruction touches. The lanes' n-th accesses of a kind are taken for one instruction.

namespace host {

// What a lane gives to the ldmatrix or mma that it is in.
union Operands {
    struct { unsigned *r; const uint32_t *row; } load;
    struct { float *d; const unsigned *a, *b; } product;
};
static Operands operands[MAX_BLOCK];

enum Count {
    MMA, LDMATRIX, LDMATRIX_CONFLICTS, CP_ASYNC, CP_ASYNC_SECTORS, CP_ASYNC_CONFLICTS, LOADS, LOAD_SECTORS, STORES, STORE_SECTORS
};
static const char *const COUNTS[] = {
    "mma", "ldmatrix", "ldmatrix bank conflicts", "cp.async", "cp.async sectors", "cp.async bank conflicts",
    "loads", "load sectors", "stores", "store sectors", nullptr
};
static long counts[sizeof COUNTS / sizeof *COUNTS];

static bool in_static_shared(const char *p) {
#ifdef SANITIZE
    return true;  // it is not known where these variables are
#endif
    return p >= __start_shared && p < __stop_shared;
}
static char *dynamic_shared_memory() { return shared_end - (shared_size + 15) / 16 * 16; }
static bool in_dynamic_shared(const char *p) { return p >= shared_end - MOST_SHARED && p < shared_end; }

// Passes beyond the first in which the banks deliver 8 rows of 16 bytes: as many as one group of 4 banks has rows of its own.
static int conflicts(const char *const (&rows)[8]) {
    int most = 1, in_group[8] = {};
    for (int i = 0; i < 8; i++) {
        if (!rows[i]) continue;
        bool again = false;  // lanes that read the same row share it
        for (int j = 0; j < i; j++) again |= rows[j] == rows[i];
        // a device's dynamic shared memory begins at a multiple of 128
        uintptr_t base = in_dynamic_shared(rows[i]) ? (uintptr_t)dynamic_shared_memory() : 0;
        int &count = in_group[((uintptr_t)rows[i] - base) / 16 % 8];
        if (!again && ++count > most) most = count;
    }
    return most - 1;
}

// The accesses to global memory of one kind, by instructions of warps. FIRST: its counter of instructions; then come those of
// sectors and, for cp_async, of conflicts.
template <Count FIRST> struct Accesses {
    static const int MOST = 64;  // of a thread, unfinished
    struct Access {
        long number;  // of this thread's accesses
        const char *global, *shared;  // nullptr: does not touch it
        int bytes;
    };
    Access ring[MAX_BLOCK][MOST];
    long numbers[MAX_BLOCK];
    int arrived[MAX_BLOCK / WARP][MOST];  // lanes whose access is in a place of the ring
    bool used;                            // in this block

    void add(const void *global, int bytes, const void *shared) {
        int t = threadIdx.x, warp = t / WARP;
        long number = ++numbers[t], place = number % MOST;
        if (arrived[warp][place] && newest(warp, place) != number) finish(warp, place);  // some lanes will not arrive
        ring[t][place] = {number, bytes ? (const char *)global : nullptr, (const char *)shared, bytes};
        used = true;
        int lanes = block - warp * WARP < WARP ? block - warp * WARP : WARP;
        if (++arrived[warp][place] == lanes) finish(warp, place);
    }
    long newest(int warp, int place) const {
        long number = 0;
        for (int lane = 0; lane < WARP; lane++)
            if (ring[warp * WARP + lane][place].number > number) number = ring[warp * WARP + lane][place].number;
        return number;
    }
    void finish(int warp, int place) {  // one instruction of a warp
        uintptr_t sectors[2 * WARP];
        long number = newest(warp, place), count = 0;
        arrived[warp][place] = 0;
        for (int phase = 0; phase < 4; phase++) {
            const char *rows[8] = {};
            for (int i = 0; i < 8; i++) {
                const Access &access = ring[warp * WARP + phase * 8 + i][place];
                if (access.number != number) continue;
                rows[i] = access.shared;
                if (!access.global) continue;
                for (uintptr_t s = (uintptr_t)access.global / 32; s <= ((uintptr_t)access.global + access.bytes - 1) / 32; s++) {
                    long k = count;
                    while (k > 0 && sectors[k - 1] != s) k--;
                    if (!k) sectors[count++] = s;
                }
            }
            if (FIRST == CP_ASYNC) counts[CP_ASYNC_CONFLICTS] += conflicts(rows);
        }
        counts[FIRST]++, counts[FIRST + 1] += count;
    }
    void end_block() {  // what only some lanes of a warp have done; then all begin at the same number
        if (!used) return;
        used = false;
        long last = 0;
        for (int t = 0; t < block; t++) last = numbers[t] > last ? numbers[t] : last;
        for (int warp = 0; warp * WARP < block; warp++)
            for (int place = 0; place < MOST; place++)
                if (arrived[warp][place]) finish(warp, place);
        for (long &number : numbers) number = last;
    }
};
static Accesses<CP_ASYNC> copied;
static Accesses<LOADS> loaded;
static Accesses<STORES> stored;

// Count an access by nhwc.cuh's load or store, or one that goes past L1.
template <class Kind> static void count_access(Kind &kind, const void *p, int bytes) {
    const char *c = (const char *)p;
    if (!in_dynamic_shared(c) && !(c >= __start_shared && c < __stop_shared)) kind.add(p, bytes, nullptr);
}

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

static void begin_block() {
    for (int t = 0; t < block; t++) copies[t].first = copies[t].last = copies[t].group = 0;
}
static void end_block() {
    copied.end_block(), loaded.end_block(), stored.end_block();
}
static void begin_launch() { memset(counts, 0, sizeof counts); }

static void check_address(const void *p, bool shared, const char *what, Where where) {
    const char *c = (const char *)p;
    if ((uintptr_t)p % 16) fail("%s:%d: %s %p, no multiple of 16", where.file, where.line, what, p);
    bool is_dynamic = c >= shared_end - shared_size && c + 16 <= shared_end;
    if (shared && !is_dynamic && !in_static_shared(c))
        fail("%s:%d: %s %p, byte %ld of %zu bytes of dynamic shared memory", where.file, where.line, what, p,
             (long)(c - (shared_end - shared_size)), shared_size);
}

static void meet(const char *what, Where where, void (*finish)(int)) {
    if ((int)threadIdx.x / WARP * WARP + WARP > block)
        fail("%s:%d: %s in a warp of %d threads", where.file, where.line, what, block % WARP);
    wait(AT_WARP_BARRIER, ~0u, what, where, finish);
}

static void count_ldmatrix(int first) {
    counts[LDMATRIX]++;
    for (int i = 0; i < 4; i++) {
        const char *rows[8];
        for (int row = 0; row < 8; row++) rows[row] = (const char *)operands[first + 8 * i + row].load.row;
        counts[LDMATRIX_CONFLICTS] += conflicts(rows);
    }
}

static void finish_ldmatrix(int first) {
    count_ldmatrix(first);
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++)
            operands[first + lane].load.r[i] = operands[first + 8 * i + lane / 4].load.row[lane % 4];
}

static void finish_ldmatrix_trans(int first) {
    count_ldmatrix(first);
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++) {
            unsigned word = 0;
            for (int j = 0; j < 2; j++) {
                const uint32_t *row = operands[first + 8 * i + lane % 4 * 2 + j].load.row;
                word |= (row[lane / 8] >> lane / 4 % 2 * 16 & 0xffff) << 16 * j;
            }
            operands[first + lane].load.r[i] = word;
        }
}

typedef float Row __attribute__((vector_size(32)));

// d += a b. K words of 32 bits in a row of A; value(word, j) is the j-th value of a word, of which there are PER_WORD.
template <int PER_WORD, class Value> static HOST_INLINE void finish_product(int first, Value value) {
    const int K = 8 * PER_WORD;
    counts[MMA]++;
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

static char *dynamic_shared() { return host::dynamic_shared_memory(); }

typedef char *SharedAddress;
static SharedAddress shared_address(char *p) { return p; }

static void ldmatrix(unsigned (&r)[4], const void *row, host::Where where = {}) {
    host::check_address(row, true, "ldmatrix of", where);
    host::operands[threadIdx.x].load = {r, (const uint32_t *)row};
    host::meet("ldmatrix", where, host::finish_ldmatrix);
}

static void ldmatrix_trans(unsigned (&r)[4], const void *row, host::Where where = {}) {
    host::check_address(row, true, "ldmatrix of", where);
    host::operands[threadIdx.x].load = {r, (const uint32_t *)row};
    host::meet("ldmatrix", where, host::finish_ldmatrix_trans);
}

static unsigned load_shared(const char *p) { return *(const unsigned *)p; }

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
    host::copied.add(global, bytes, shared);
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

static float4 load_cg(const float4 *p) { return host::count_access(host::loaded, p, sizeof *p), *p; }
static void store_cg(float4 *p, float4 v) { host::count_access(host::stored, p, sizeof *p), *p = v; }

// Counter i of the last launch; *name is nullptr beyond the last.
extern "C" long host_counter(int i, const char **name) { return *name = host::COUNTS[i], host::counts[i]; }
