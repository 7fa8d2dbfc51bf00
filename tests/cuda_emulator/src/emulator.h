// A CUDA without a GPU: what the parts of the emulator share. Device memory is memory of this process; a stream is a queue of
// work that runs only when something waits for it, so that a missing wait shows. Types and prototypes are those of CUDA's own headers.
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
    std::shared_ptr<int> at_work = std::make_shared<int>();  // held by every launch that has not finished
};

struct Stream {
    int device = 0, number = 0;
    bool blocking = true;  // waits for the legacy default stream, and that one for it
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
    Stream *stream = nullptr;  // that it was last recorded on, when `position` items were pushed there
    long position = 0;
    bool captured = false;
    double seconds = 0;
};

enum class Place { HOST, PINNED, DEVICE };

// What cudaMalloc or cudaHostAlloc gave. Its pages end at one that cannot be touched; from `size` to there it is filled with PATTERN.
struct Block {
    char *base;
    size_t size, mapped;
    Place place;
    int device;
};

const unsigned char PATTERN = 0xff;  // NaN in float32 and float16

extern std::recursive_mutex mutex;
extern thread_local int current_device;
extern std::string message;  // what went wrong last, in words

// Settings that tests change; see configure() in __init__.py.
struct Settings {
    long devices = 2, memory = 8L << 30, driver_version = CUDART_VERSION, peer_access = 1, schedule = 0, verbose = 0;
};
extern Settings settings;
const char *const DEVICE_NAME = "CUDA emulator (no GPU)";
const long LATE = 0, EAGER = -1;  // schedule: when work runs. Above 0: the seed of a random order

void count(const std::string &what, long by = 1);
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Errors. `problem` says one in words and returns it. After a kernel's error everything fails (CUDA calls it sticky).
cudaError_t problem(cudaError_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fail_kernel(cudaError_t status, const std::string &what);
cudaError_t begin(const char *call);  // counts the call; returns the error that it is to answer, injected or sticky
cudaError_t sticky_error();

// Work
Stream *stream_of(cudaStream_t handle);              // nullptr if there is no such stream
Stream *stream_of(cudaStream_t handle, int device);  // whose default stream is meant by 0
cudaError_t push(Stream *stream, Work work);
void run(Stream *stream, long until);  // run its work until `until` items are done
void run_everything();
void run_device(int device);
void abandon_captures();
void seed_schedule(long seed);
void wait_for_device(Stream *stream, int device);   // what is pushed from now on comes after all work of the device
void make_device_wait(int device, Stream *stream);  // and all its work that is pushed from now on after what the stream has
Stream *capturing(int device);  // a stream of it that is being captured, or nullptr

// Memory
Block *block_of(const void *p);
Place place_of(const void *p);
// Return why `device` may not touch the `size` bytes at p, or an empty string. The second asks what an allocator above gave out
// as well, which is known when work runs.
std::string why_not_allocated(const void *p, size_t size, int device);
std::string why_not(const void *p, size_t size, int device);
bool peer_enabled(int from, int to);
void check_patterns();  // reports writes behind the end of a block

}  // namespace emulator

// The first line of every CUDA function.
#define ENTER(name)                                                  \
    std::lock_guard<std::recursive_mutex> lock_(emulator::mutex);    \
    if (cudaError_t status_ = emulator::begin(#name)) return status_
