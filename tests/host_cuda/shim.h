// Runs CUDA kernels on a CPU: this text is prepended to a kernel file, and g++ compiles both.
//
// Blocks run one after another, and so do the threads of a block: each runs until it returns or waits at a barrier.
// A thread that waits keeps its stack (a fiber), and another fiber runs the next thread; when all have arrived,
// all are resumed. A warp goes on until it waits for others. A kernel without barriers therefore costs one function call per thread.
//
// Reported with file and line: a barrier or shuffle that some of its threads skip, a shuffle from an inactive lane.
// Reported with the thread: access outside the arrays (the caller puts them between unreadable pages), division by zero.
// Shared memory is filled with NaN before each block; dynamic shared memory ends at an unreadable page. Threads and blocks can
// run in reverse order, with the same results. mma.h adds what kernels/mma.cuh declares.

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define HOST_CUDA 1
#define __global__
#define __device__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifdef SANITIZE  // -fsanitize=address does not guard variables in a section of their own
#define __shared__ static
#else
#define __shared__ static __attribute__((section("shared")))
#endif
extern char __start_shared[] __attribute__((weak)), __stop_shared[] __attribute__((weak));  // from the linker

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim{1, 1, 1}, gridDim{1, 1, 1};
static const int warpSize = 32;

#define HOST_INLINE __attribute__((always_inline)) inline  // -O1 would call it

namespace host {

// A place in a kernel's text. As a default argument it is the place of the call.
struct Where {
    const char *file;
    int line;

    Where(const char *file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
    HOST_INLINE bool operator==(const Where &other) const {
        return line == other.line && (file == other.file || !strcmp(file, other.file));
    }
};

enum State { RUNNING, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
    jmp_buf left;  // where it resumes
    bool begun;
};

struct Thread {
    State state;
    Fiber *fiber;       // on whose stack it waits
    const char *what;   // for which barrier,
    Where where;
    unsigned mask;                // of a warp: for which lanes,
    void (*finish)(int first);    // and what is called once all of them have arrived, before any resumes
};

const int MAX_BLOCK = 1024, WARP = 32;
const size_t STACK = 256 << 10, GUARD = 4096, MOST_SHARED = 228 << 10;
static Thread threads[MAX_BLOCK];
static Fiber fibers[MAX_BLOCK], *idle[MAX_BLOCK], *current;
static int n_idle, started, block;
static bool backwards;
static uint64_t offered[MAX_BLOCK];  // what each thread gives to the shuffle it is in
static char *shared_end;    // dynamic shared memory ends here, before an unreadable page
static size_t shared_size;  // in bytes
static void (*call)(void *);
static void *kernel;
static jmp_buf scheduler;  // where the scheduler resumes
static sigjmp_buf failure;
static char message[512];
static void *fault;

[[noreturn]] static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    siglongjmp(failure, 1);
}

static void on_signal(int number, siginfo_t *info, void *) {
    if (number == SIGFPE) fail("thread %u of block %u divides by zero", threadIdx.x, blockIdx.x);
    fault = info->si_addr;
    if (char *p = (char *)fault; p >= shared_end && p < shared_end + GUARD) {
        long offset = p - shared_end + shared_size;
        fault = nullptr;
        fail("thread %u of block %u touches byte %ld of %zu bytes of dynamic shared memory", threadIdx.x, blockIdx.x, offset,
             shared_size);
    }
    fail("thread %u of block %u touches ", threadIdx.x, blockIdx.x);
}

static HOST_INLINE int nth(int k, int count) { return backwards ? count - 1 - k : k; }

// From a fiber to the scheduler, until it resumes the fiber.
static void leave(Fiber *self) {
    if (!_setjmp(self->left)) _longjmp(scheduler, 1);
}

// What a fiber does: start threads while there are any. Where one waits, its fiber waits with it.
static void work() {
    Fiber *self = current;
    for (;;) {
        while (started < block) {
            int t = nth(started++, block);
            threadIdx.x = t;
            threads[t].state = RUNNING;
            call(kernel);
            threads[t].state = DONE;
        }
        idle[n_idle++] = self;
        leave(self);
    }
}

// From the scheduler to a fiber. _longjmp, because swapcontext asks the kernel about signals each time.
static void resume(Fiber *fiber) {
    static char *stacks = (char *)mmap(nullptr, MAX_BLOCK * STACK, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    current = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->begun) _longjmp(fiber->left, 1);
    fiber->begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + (fiber - fibers) * STACK;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, work, 0);
    setcontext(&context);
}

static void wait(State state, unsigned mask, const char *what, Where where, void (*finish)(int) = nullptr) {
    int t = threadIdx.x;
    threads[t] = {state, current, what, where, mask, finish};
    leave(current);
    threadIdx.x = t;
    threads[t].state = RUNNING;
}

// The threads that the barrier of `me` needs: a whole block, or the lanes of a warp that its mask names.
struct Group {
    int first, last;
    unsigned mask;

    HOST_INLINE explicit Group(int t) : first(0), last(block), mask(~0u) {
        if (threads[t].state == AT_BLOCK_BARRIER) return;
        first = t - t % WARP;
        last = first + WARP < block ? first + WARP : block;
        mask = threads[t].mask;
    }
    HOST_INLINE bool has(int t) const { return mask >> (t - first) % WARP & 1; }
};

static HOST_INLINE bool together(const Thread &a, const Thread &b) {
    return a.state == b.state && a.where == b.where && a.mask == b.mask;
}

// The first thread of the group that does not wait where thread t waits, or -1.
static int missing(int t, const Group &group) {
    for (int i = group.first; i < group.last; i++)
        if (group.has(i) && !together(threads[i], threads[t])) return i;
    return -1;
}

[[noreturn]] static void fail_at_barrier(int t) {
    Group group(t);
    int size = 0, count = 0, other = missing(t, group);
    for (int i = group.first; i < group.last; i++)
        if (group.has(i)) size++, count += together(threads[i], threads[t]);
    bool done = threads[other].state == DONE;
    char place[256] = "has returned";
    if (!done) snprintf(place, sizeof place, "waits at %s:%d", threads[other].where.file, threads[other].where.line);
    fail("%s:%d: %s is reached by %d of %d threads; thread %d %s", threads[t].where.file, threads[t].where.line,
         threads[t].what, count, size, other, place);
}

static void begin_launch(), begin_block(), end_block();  // in mma.h

static void run_block() {
    started = 0;
    if (__start_shared) memset(__start_shared, 0xff, __stop_shared - __start_shared);
    memset(shared_end - (shared_size + 15) / 16 * 16, 0xff, (shared_size + 15) / 16 * 16);
    begin_block();
    while (started < block) resume(idle[--n_idle]);
    for (bool all_done = false; !all_done;) {  // from here on every thread waits or is done
        all_done = true;
        bool moved = false;
        int waiting = -1;
        for (int k = 0; k < block; k++)
            for (int t = nth(k, block); threads[t].state != DONE;) {  // as far as its warp can go: others may be far behind
                all_done = false;
                Group group(t);
                if (missing(t, group) >= 0) {
                    if (waiting < 0) waiting = t;
                    break;
                }
                moved = true;
                if (threads[t].finish) threads[t].finish(group.first);
                for (int i = 0; i < group.last - group.first; i++) {
                    int member = group.first + nth(i, group.last - group.first);
                    if (group.has(member)) resume(threads[member].fiber);
                }
            }
        if (!all_done && !moved) fail_at_barrier(waiting);
    }
    end_block();
}

// Return dynamic shared memory's end, where unreadable pages begin.
static char *map_shared() {
    char *p = (char *)mmap(nullptr, MOST_SHARED + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(p + MOST_SHARED, GUARD, PROT_NONE);
    return p + MOST_SHARED;
}

// Run a kernel with `shared` bytes of dynamic shared memory; 0 if all went well, else `message` and perhaps `fault` say what
// did not.
template <class Kernel> static int launch(int blocks, int size, int shared, bool reverse, Kernel k) {
    static struct sigaction ours, theirs[3];
    static const int signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
    if (n_idle < MAX_BLOCK) {  // at first, and after a failure
        n_idle = 0;
        for (Fiber &fiber : fibers) fiber.begun = false, idle[n_idle++] = &fiber;
    }
    kernel = &k, call = [](void *p) { (*(Kernel *)p)(); };
    block = size, backwards = reverse, fault = nullptr, message[0] = 0;
    if (!shared_end) shared_end = map_shared();
    shared_size = shared;
    begin_launch();
    blockDim.x = size, gridDim.x = blocks;
    ours.sa_sigaction = on_signal, ours.sa_flags = SA_SIGINFO;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &ours, &theirs[i]);
    if (!sigsetjmp(failure, 1))
        for (int k = 0; k < blocks; k++) {
            blockIdx.x = nth(k, blocks);
            run_block();
        }
    for (int i = 0; i < 3; i++) sigaction(signals[i], &theirs[i], nullptr);
    return message[0] != 0;
}

template <class V> static V shuffle(unsigned mask, V v, int source, const char *what, Where where) {
    int t = threadIdx.x, lane = t % WARP;
    if (!(mask >> lane & 1)) fail("%s:%d: %s by lane %d, which its mask lacks", where.file, where.line, what, lane);
    if (!(mask >> source & 1) || t - lane + source >= block)
        fail("%s:%d: %s reads lane %d, which is not active", where.file, where.line, what, source);
    memcpy(&offered[t], &v, sizeof v);
    wait(AT_WARP_BARRIER, mask, what, where);  // all have offered
    memcpy(&v, &offered[t - lane + source], sizeof v);
    wait(AT_WARP_BARRIER, mask, what, where);  // all have read
    return v;
}

static unsigned ballot(unsigned mask, bool vote, const char *what, Where where) {
    unsigned votes = 0;
    for (int lane = 0, first = threadIdx.x - threadIdx.x % WARP; lane < WARP && first + lane < block; lane++)
        if (mask >> lane & 1) votes |= (unsigned)shuffle(mask, vote, lane, what, where) << lane;
    return votes;
}

static int lane() { return threadIdx.x % WARP; }

// Subnormal numbers are 0 to PTX instructions with .ftz.
static float flush(float a) { return fabsf(a) < 0x1p-126f ? copysignf(0, a) : a; }

static float approximate(double exact, int error) { return flush(exact * (1 + error * 0x1p-23)); }

}  // namespace host

extern "C" const char *host_message() { return host::message; }
extern "C" void *host_fault() { return host::fault; }

static void __syncthreads(host::Where where = {}) { host::wait(host::AT_BLOCK_BARRIER, 0, "__syncthreads", where); }
static void __syncwarp(unsigned mask = ~0u, host::Where where = {}) {
    host::wait(host::AT_WARP_BARRIER, mask, "__syncwarp", where);
}
template <class V> static V __shfl_sync(unsigned mask, V v, int source, host::Where where = {}) {
    return host::shuffle(mask, v, source % 32, "__shfl_sync", where);
}
template <class V> static V __shfl_xor_sync(unsigned mask, V v, int bits, host::Where where = {}) {
    return host::shuffle(mask, v, host::lane() ^ bits, "__shfl_xor_sync", where);
}
template <class V> static V __shfl_down_sync(unsigned mask, V v, int by, host::Where where = {}) {
    int source = host::lane() + by;
    return host::shuffle(mask, v, source < 32 ? source : host::lane(), "__shfl_down_sync", where);
}
template <class V> static V __shfl_up_sync(unsigned mask, V v, int by, host::Where where = {}) {
    int source = host::lane() - by;
    return host::shuffle(mask, v, source >= 0 ? source : host::lane(), "__shfl_up_sync", where);
}
static unsigned __ballot_sync(unsigned mask, bool vote, host::Where where = {}) {
    return host::ballot(mask, vote, "__ballot_sync", where);
}
static bool __any_sync(unsigned mask, bool vote, host::Where where = {}) { return __ballot_sync(mask, vote, where) != 0; }
static bool __all_sync(unsigned mask, bool vote, host::Where where = {}) { return __ballot_sync(mask, vote, where) == mask; }
static void __threadfence() {}
static void __threadfence_block() {}

template <class V> static V host_exchange(V *p, V v) {
    V old = *p;
    *p = v;
    return old;
}
template <class V> static V atomicAdd(V *p, V v) { return host_exchange(p, V(*p + v)); }
template <class V> static V atomicMax(V *p, V v) { return host_exchange(p, *p > v ? *p : v); }
template <class V> static V atomicMin(V *p, V v) { return host_exchange(p, *p < v ? *p : v); }
template <class V> static V atomicExch(V *p, V v) { return host_exchange(p, v); }
template <class V> static V atomicCAS(V *p, V was, V v) { return host_exchange(p, *p == was ? v : *p); }

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float rsqrtf(float a) { return 1 / sqrtf(a); }

// The relative errors of the approximate functions, in units of 2^-23 (1 to 2 ulp). A test defines others in front of a
// kernel file.
#define EX2_ERROR 0
#define RCP_ERROR 0
#define ex2_approx(x) host::approximate(exp2((double)host::flush(x)), EX2_ERROR)
#define rcp_approx(x) host::approximate(1 / (double)host::flush(x), RCP_ERROR)

#define __expf expf  // glibc has a function of that name
#define __logf logf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline int __float_as_int(float a) { int i; return memcpy(&i, &a, 4), i; }
static inline unsigned __float_as_uint(float a) { return __float_as_int(a); }
static inline float __int_as_float(int a) { float f; return memcpy(&f, &a, 4), f; }
static inline float __uint_as_float(unsigned a) { return __int_as_float(a); }
template <class V> static V __ldg(const V *p) { return *p; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static HOST_INLINE float half_to_float(unsigned short h) {
    uint32_t bits = (h & 0x7fff) << 13, sign = (h & 0x8000u) << 16;
    float f;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;  // the exponents' biases differ by 112; this makes subnormal numbers normal
    memcpy(&bits, &f, 4);
    if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinity and NaN
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

static unsigned short float_to_half(float f) {
    uint32_t bits, sign;
    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff;           // NaN, as the GPU writes it
    if (bits >= 0x47800000) return sign | 0x7c00;   // 65536 and more
    if (bits < 0x38800000) {                        // below the normal numbers: adding 0.5 rounds to multiples of 2^-24
        float sum = fabsf(f) + 0.5f;
        memcpy(&bits, &sum, 4);
        return sign | (bits - 0x3f000000);
    }
    return sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);  // nearest, ties to even
}
