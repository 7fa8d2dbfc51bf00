// A CUDA without a GPU: declarations that the emulator's files share. Device memory is memory of this process; a stream is a queue of
// work that runs only when something waits for it, so that a missing wait shows. Types and prototypes are those of CUDA's headers.
#pragma once
#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace emulator {

using Work = std::function<void()>;

struct Graph {
    std::vector<Work> nodes;
    std::shared_ptr<int> in_flight = std::make_shared<int>();  // held by every unfinished launch
};

struct Stream {
    int device = 0, number = 0;
    bool blocking = true;  // synchronizes with the legacy default stream
    bool is_default = false;
    std::deque<Work> queue;
    long pushed = 0, done = 0;
    std::unique_ptr<Graph> capture;
    bool invalidated = false;  // the capture
    std::thread::id capturer;  // the thread that captures
};

struct Event {
    int device = 0;
    bool timing = true;
    Stream *stream = nullptr;  // that it was last recorded on, at `position`
    long position = 0;
    bool captured = false;
    double seconds = 0;
};

enum class MemoryKind { HOST, PINNED, DEVICE };

// An allocation by cudaMalloc or cudaHostAlloc. A guard page follows its pages; from `size` to there it is filled with PATTERN.
struct Block {
    char *base;
    size_t size, mapped;
    MemoryKind kind;
    int device;
};

const unsigned char PATTERN = 0xff;  // NaN in float32 and float16

extern std::recursive_mutex mutex;
extern thread_local int current_device;
extern std::string message;  // the last error's message

// Settings that tests change; see configure() in __init__.py.
struct Settings {
    long devices = 2, memory = 8L << 30, driver_version = CUDART_VERSION, peer_access = 1, schedule = 0, verbose = 0, shared = 227 << 10, compute = 1;
};
extern Settings settings;
const long DEFAULT_SHARED = 48 << 10;  // bytes of dynamic shared memory of a kernel without cuFuncSetAttribute
const char *const DEVICE_NAME = "CUDA emulator (no GPU)";
const long LATE = 0, EAGER = -1;  // schedule: when work runs. Above 0: the seed of a random order

void count(const std::string &what, long by = 1);
// Counts "nanoseconds" of CPU time of this thread in a CUDA function, so that a measurement can leave the emulator out.
struct Timer {
    Timer(), ~Timer();
};
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Errors. `problem` sets the message and returns the status. After a kernel's error every call fails (a sticky error).
cudaError_t problem(cudaError_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fail_kernel(cudaError_t status, const std::string &what);
cudaError_t begin(const char *call);  // counts the call; returns an injected or sticky error to return
cudaError_t sticky_error();

// Work
Stream *stream_of(cudaStream_t handle);              // nullptr if there is no such stream
Stream *stream_of(cudaStream_t handle, int device);  // 0 means that device's default stream
cudaError_t push(Stream *stream, Work work);
void run(Stream *stream, long until);  // run its work up to item `until`
void run_everything();
void run_device(int device);
void abandon_captures();
void seed_schedule(long seed);
void wait_for_device(Stream *stream, int device);   // order work pushed from now on after all work of the device
void make_device_wait(int device, Stream *stream);  // order the device's work pushed from now on after the stream's current work
Stream *capturing(int device);  // one of its streams that is being captured, or nullptr

// Memory
Block *block_of(const void *p);
MemoryKind kind_of(const void *p);
// Return why `device` may not access `size` bytes at p, or an empty string. The second also checks what a pool allocated, which is
// known when work runs.
std::string why_not_allocated(const void *p, size_t size, int device);
std::string why_not(const void *p, size_t size, int device);
bool peer_enabled(int from, int to);
void check_patterns();  // reports writes past the end of a block

}  // namespace emulator

// The first line of every CUDA function.
#define ENTER(name)                                                  \
    std::lock_guard<std::recursive_mutex> lock_(emulator::mutex);    \
    emulator::Timer timer_;                                          \
    if (cudaError_t status_ = emulator::begin(#name)) return status_
