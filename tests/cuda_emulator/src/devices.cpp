// Errors, counters, devices, and the tests' interface.
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <ctime>

namespace emulator {

std::recursive_mutex mutex;
thread_local int current_device = 0;
std::string message;
Settings settings;

static std::map<std::string, long> counters;
static cudaError_t sticky = cudaSuccess;
static thread_local cudaError_t last = cudaSuccess;

struct Injection {
    long calls_left;
    cudaError_t status;
};
static std::map<std::string, Injection> injections;

void count(const std::string &what, long by) { counters[what] += by; }

static long clock_ns() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
static thread_local int depth = 0;  // CUDA functions may call others
static thread_local long entered;

Timer::Timer() {
    if (!depth++) entered = clock_ns();
}
Timer::~Timer() {
    if (!--depth) count("nanoseconds", clock_ns() - entered);
}

static std::string formatted(const char *format, va_list args) {
    char text[512];
    vsnprintf(text, sizeof text, format, args);
    return text;
}

void note(const char *format, ...) {
    if (!settings.verbose) return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "[CUDA emulator] %s\n", formatted(format, args).c_str());
    va_end(args);
}

cudaError_t problem(cudaError_t status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    message = formatted(format, args);
    va_end(args);
    note("error %d: %s", status, message.c_str());
    return last = status;
}

void fail_kernel(cudaError_t status, const std::string &what) {
    if (sticky) return;
    message = what, sticky = status;
    fprintf(stderr, "[CUDA emulator] %s\n", what.c_str());
}

cudaError_t sticky_error() { return sticky; }

cudaError_t begin(const char *call) {
    count(call);
    auto injection = injections.find(call);
    if (injection != injections.end() && --injection->second.calls_left == 0) {
        cudaError_t status = injection->second.status;
        injections.erase(injection);
        std::string what = std::string(call) + ": injected error";
        if (status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure) fail_kernel(status, what);
        return problem(status, "%s", what.c_str());
    }
    return sticky ? last = sticky : cudaSuccess;
}

static const char *error_name(int status) {
    switch (status) {
#define NAME(error) case error: return #error;
        NAME(cudaSuccess) NAME(cudaErrorInvalidValue) NAME(cudaErrorMemoryAllocation) NAME(cudaErrorInitializationError)
        NAME(cudaErrorInsufficientDriver) NAME(cudaErrorNoDevice) NAME(cudaErrorInvalidDevice) NAME(cudaErrorInvalidResourceHandle)
        NAME(cudaErrorNotReady) NAME(cudaErrorIllegalAddress) NAME(cudaErrorLaunchFailure) NAME(cudaErrorNotSupported)
        NAME(cudaErrorPeerAccessUnsupported) NAME(cudaErrorPeerAccessAlreadyEnabled) NAME(cudaErrorPeerAccessNotEnabled)
        NAME(cudaErrorStreamCaptureUnsupported) NAME(cudaErrorStreamCaptureInvalidated) NAME(cudaErrorStreamCaptureUnmatched)
        NAME(cudaErrorStreamCaptureUnjoined) NAME(cudaErrorStreamCaptureIsolation) NAME(cudaErrorStreamCaptureImplicit)
        NAME(cudaErrorSymbolNotFound) NAME(cudaErrorInvalidConfiguration) NAME(cudaErrorInvalidKernelImage) NAME(cudaErrorUnknown)
#undef NAME
    }
    return "cudaErrorUnknown";
}

}  // namespace emulator

using namespace emulator;

// ---- devices

static cudaError_t driver() {
    if (settings.driver_version < CUDART_VERSION / 1000 * 1000) return problem(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version");
    return settings.devices ? cudaSuccess : problem(cudaErrorNoDevice, "no CUDA-capable device is detected");
}

EXPORT cudaError_t cudaGetDeviceCount(int *n) {
    ENTER(cudaGetDeviceCount);
    *n = 0;
    if (cudaError_t status = driver()) return status;
    *n = settings.devices;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return driver();
}
EXPORT cudaError_t cudaSetDevice(int device) {
    ENTER(cudaSetDevice);
    if (device < 0 || device >= settings.devices) return problem(cudaErrorInvalidDevice, "device %d of %ld", device, settings.devices);
    current_device = device;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
    ENTER(cudaDeviceSynchronize);
    count("waits");
    if (Stream *stream = capturing(current_device)) {
        stream->invalidated = true;
        return problem(cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize during capture");
    }
    run_device(current_device);
    check_patterns();
    return sticky;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = DEFAULT_SHARED; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = settings.shared; break;
        case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
        case cudaDevAttrClockRate: *value = 0; break;
        default: *value = 1;
    }
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {  // a macro for its version 2 in CUDA 12
    ENTER(cudaGetDeviceProperties);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", DEVICE_NAME);
    p->totalGlobalMem = settings.memory, p->sharedMemPerBlock = DEFAULT_SHARED, p->sharedMemPerBlockOptin = settings.shared, p->regsPerBlock = 1 << 16, p->warpSize = 32;
    p->maxThreadsPerBlock = 1024, p->maxThreadsDim[0] = 1024, p->maxGridSize[0] = 2147483647, p->major = 9;
    p->multiProcessorCount = 132, p->sharedMemPerMultiprocessor = 228 << 10, p->maxThreadsPerMultiProcessor = 2048;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = settings.driver_version;
    return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetLastError() {
    cudaError_t status = last;
    last = sticky;
    return status;
}
EXPORT const char *cudaGetErrorName(cudaError_t status) { return error_name(status); }
EXPORT const char *cudaGetErrorString(cudaError_t) { return message.c_str(); }
EXPORT cudaError_t cudaProfilerStart() { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop() { return cudaSuccess; }

// ---- the tests' interface, used by __init__.py

static long *setting(const std::string &name) {  // nullptr if unknown
    static const std::map<std::string, long *> known = {{"devices", &settings.devices}, {"memory", &settings.memory},
        {"driver_version", &settings.driver_version}, {"peer_access", &settings.peer_access}, {"schedule", &settings.schedule}, {"verbose", &settings.verbose}, {"shared", &settings.shared}, {"compute", &settings.compute}};
    auto entry = known.find(name);
    return entry == known.end() ? nullptr : entry->second;
}

EXPORT int emulator_set(const char *name, long value) {
    std::lock_guard<std::recursive_mutex> lock(emulator::mutex);
    long *field = setting(name);
    if (!field) return 0;
    *field = value;
    if (field == &settings.schedule && value > 0) seed_schedule(value);
    return 1;
}
EXPORT long emulator_get(const char *name) {
    std::lock_guard<std::recursive_mutex> lock(emulator::mutex);
    return *setting(name);
}
// One line for each counter: "name\tvalue\n".
EXPORT const char *emulator_counters() {
    std::lock_guard<std::recursive_mutex> lock(emulator::mutex);
    static std::string text;
    text.clear();
    for (auto &counter : counters) text += counter.first + "\t" + std::to_string(counter.second) + "\n";
    return text.c_str();
}
EXPORT void emulator_fail(const char *call, long nth, int status) {
    std::lock_guard<std::recursive_mutex> lock(emulator::mutex);
    if (nth > 0) injections[call] = {nth, (cudaError_t)status};
    else injections.erase(call);
}
// Return the sticky error, and clear it and the work queued after it.
EXPORT int emulator_reset() {
    std::lock_guard<std::recursive_mutex> lock(emulator::mutex);
    run_everything();  // after a sticky error this runs nothing
    check_patterns();
    int status = sticky;
    sticky = last = cudaSuccess;
    abandon_captures();
    injections.clear();
    return status;
}
EXPORT const char *emulator_message() { return message.c_str(); }
