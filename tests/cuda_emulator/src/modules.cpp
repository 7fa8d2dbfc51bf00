// The driver: modules and kernel launches. A "cubin" is a shared library that nvrtc.cpp built from a kernel's source.
#include "emulator.h"

#include <cuda.h>

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <unistd.h>

using namespace emulator;

namespace {

struct Function {
    std::string name;
    int (*run)(unsigned blocks, unsigned threads, unsigned shared, void **arguments);
    const char *(*message)();
    void *(*fault)();
    long (*counter)(int i, const char **name);
    std::vector<int> sizes;    // of the arguments, in bytes
    std::vector<char> points;  // whether an argument is an address, or begins with one like CuPy's CArray
    int device;
    long most_shared = DEFAULT_SHARED;  // bytes of dynamic shared memory with which it may be launched
    bool loaded = false;  // CUDA loads a kernel on its first launch, which is not allowed during capture
};

struct Module {
    void *library;
    int device;
};

CUresult driver_status(cudaError_t status) { return (CUresult)status; }  // the values used here are the same

std::string bad_argument(const Function &function, const std::vector<std::vector<char>> &arguments, int device) {
    for (size_t i = 0; i < arguments.size(); i++) {
        if (!function.points[i]) continue;
        void *p;
        memcpy(&p, arguments[i].data(), sizeof p);
        std::string why = p ? why_not(p, 0, device) : "";
        if (!why.empty()) return function.name + ": argument " + std::to_string(i) + " " + why;
    }
    return "";
}

}  // namespace

#define ENTER_DRIVER(name)                                           \
    std::lock_guard<std::recursive_mutex> lock_(emulator::mutex);    \
    emulator::Timer timer_;                                          \
    if (cudaError_t status_ = emulator::begin(#name)) return driver_status(status_)

EXPORT CUresult cuModuleLoadData(CUmodule *made, const void *image) {
    ENTER_DRIVER(cuModuleLoadData);
    if (Stream *stream = capturing(current_device); stream && stream->capturer == std::this_thread::get_id())
        return driver_status(problem(cudaErrorStreamCaptureUnsupported, "a module is loaded during capture"));
    size_t size;
    memcpy(&size, (const char *)image + 8, sizeof size);
    if (memcmp(image, "EMULATED", 8)) return driver_status(problem(cudaErrorInvalidKernelImage, "this cubin was not made by the emulator"));
    std::string path = std::string(getenv("CUDA_EMULATOR_BUILD")) + "/cubin-XXXXXX";  // dlopen needs a unique name
    int file = mkstemp(path.data());
    bool written = file >= 0 && write(file, (const char *)image + 16, size) == (ssize_t)size;
    if (file >= 0) close(file);
    void *library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path.c_str());
    if (!written) return driver_status(problem(cudaErrorUnknown, "cannot write to %s", path.c_str()));
    if (!library) return driver_status(problem(cudaErrorInvalidKernelImage, "%s", dlerror()));
    *made = (CUmodule) new Module{library, current_device};
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
EXPORT CUresult cuModuleGetFunction(CUfunction *made, CUmodule handle, const char *name) {
    ENTER_DRIVER(cuModuleGetFunction);
    auto *module = (Module *)handle;
    auto symbol = [&](const std::string &prefix) { return dlsym(module->library, (prefix + name).c_str()); };
    auto *function = new Function{name, (int (*)(unsigned, unsigned, unsigned, void **))symbol("emulated_run_")};
    if (!function->run) return driver_status(problem(cudaErrorSymbolNotFound, "there is no kernel %s in this module", name));
    function->message = (const char *(*)())dlsym(module->library, "host_message");
    function->fault = (void *(*)())dlsym(module->library, "host_fault");
    function->counter = (long (*)(int, const char **))dlsym(module->library, "host_counter");
    int sizes[128];
    char points[128];
    int n = ((int (*)(int *, char *))symbol("emulated_arguments_"))(sizes, points);
    function->sizes.assign(sizes, sizes + n), function->points.assign(points, points + n);
    function->device = module->device;
    *made = (CUfunction)function;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                               unsigned shared, CUstream s, void **arguments, void **) {
    ENTER_DRIVER(cuLaunchKernel);
    auto *function = (Function *)handle;
    Stream *stream = stream_of((cudaStream_t)s);
    const char *name = function->name.c_str();
    if (!stream) return driver_status(problem(cudaErrorInvalidResourceHandle, "%s is launched on a stream that does not exist", name));
    if (stream->device != current_device || function->device != current_device)
        return driver_status(problem(cudaErrorInvalidResourceHandle, "%s of device %d is launched on a stream of device %d while device %d is current",
                                     name, function->device, stream->device, current_device));
    if (gy != 1 || gz != 1 || by != 1 || bz != 1) return driver_status(problem(cudaErrorNotSupported, "%s: the emulator runs grids of one dimension", name));
    if (shared > function->most_shared)
        return driver_status(problem(cudaErrorInvalidValue, "%s: %u bytes of dynamic shared memory, of which its attribute allows %ld", name, shared, function->most_shared));
    if (bx < 1 || bx > 1024 || gx < 1) return driver_status(problem(cudaErrorInvalidValue, "%s: %u blocks of %u threads", name, gx, bx));
    if (stream->capture && !function->loaded) {
        stream->invalidated = true;
        return driver_status(problem(cudaErrorStreamCaptureUnsupported, "%s is first launched during capture", name));
    }
    function->loaded = true;
    std::vector<std::vector<char>> values;
    for (size_t i = 0; i < function->sizes.size(); i++) values.emplace_back((char *)arguments[i], (char *)arguments[i] + function->sizes[i]);
    count("launches"), count(std::string("launches of ") + name);
    note("%s<<<%u, %u>>> on stream %p", name, gx, bx, (void *)stream);
    int device = stream->device;
    return driver_status(push(stream, [=]() mutable {
        if (!settings.compute) return;
        std::string wrong = bad_argument(*function, values, device);
        if (!wrong.empty()) return fail_kernel(cudaErrorIllegalAddress, wrong);
        std::vector<void *> pointers;
        for (auto &value : values) pointers.push_back(value.data());
        if (function->run(gx, bx, shared, pointers.data())) {
            char address[64] = "";
            if (function->fault && function->fault()) snprintf(address, sizeof address, "%p", function->fault());
            fail_kernel(cudaErrorIllegalAddress, function->name + ": " + function->message() + address);
        }
        const char *what = "";
        for (int i = 0; what; i++)
            if (long number = function->counter(i, &what)) count(what, number), count(what + (" of " + function->name), number);
    }));
}
EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? ((Function *)function)->most_shared : 1024;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    ENTER_DRIVER(cuFuncSetAttribute);
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    auto *function = (Function *)handle;
    if (value < 0 || value > settings.shared)
        return driver_status(problem(cudaErrorInvalidValue, "%s: %d bytes of dynamic shared memory, of which a block can have %ld", function->name.c_str(), value, settings.shared));
    function->most_shared = value;
    return CUDA_SUCCESS;
}

// ---- device queries

EXPORT CUresult cuInit(unsigned) { return settings.driver_version ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
EXPORT CUresult cuDeviceGetCount(int *n) {
    *n = settings.devices;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice *device, int number) {
    *device = number;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetName(char *name, int size, CUdevice) {
    snprintf(name, size, "%s", DEVICE_NAME);
    return CUDA_SUCCESS;
}

// ---- contexts: CuPy checks for one

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = (CUcontext)1;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    *device = current_device;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamGetCtx(CUstream, CUcontext *context) { return cuCtxGetCurrent(context); }
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
EXPORT CUresult cuDriverGetVersion(int *version) {
    *version = settings.driver_version;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorName(CUresult status, const char **name) {
    *name = cudaGetErrorName((cudaError_t)status);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorString(CUresult, const char **text) {
    *text = message.c_str();
    return CUDA_SUCCESS;
}
