// Device and pinned memory, and copies.
#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

static std::map<char *, Block> blocks;  // by their first byte
static std::map<int, size_t> used;
static std::set<std::pair<int, int>> peers;

// A piece of a block that a pool such as CuPy's allocated. `live` changes in the order of its stream.
struct Suballocation {
    size_t size;
    bool live;
};
static std::map<char *, Suballocation> suballocations;

static size_t round_to_pages(size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static cudaError_t allocate(void **p, size_t size, MemoryKind kind) {
    const size_t ALIGN = 512, capacity = round_to_pages(std::max<size_t>(size, 1)), page = round_to_pages(1);
    *p = nullptr;
    if (kind == MemoryKind::DEVICE && used[current_device] + size > (size_t)settings.memory)
        return problem(cudaErrorMemoryAllocation, "%zu bytes asked for, %zu of %ld in use", size, used[current_device], settings.memory);
    char *map = (char *)mmap(nullptr, capacity + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return problem(cudaErrorMemoryAllocation, "mmap of %zu bytes", capacity);
    mprotect(map + capacity, page, PROT_NONE);
    char *base = map + (capacity - (size + ALIGN - 1) / ALIGN * ALIGN) % page;  // as close to the end as its alignment allows
    if (capacity <= 256 << 20) memset(map, PATTERN, capacity);
    blocks[base] = {base, size, capacity + page, kind, current_device};
    if (kind == MemoryKind::DEVICE) used[current_device] += size, count("allocated bytes", size);
    *p = base;
    return cudaSuccess;
}

static void check_pattern(const Block &block) {
    if (block.mapped > 256 << 20) return;
    char *begin = block.base + block.size, *end = (char *)round_to_pages((size_t)begin);
    if (std::all_of(begin, end, [](char c) { return (unsigned char)c == PATTERN; })) return;
    memset(begin, PATTERN, end - begin);  // report once
    fail_kernel(cudaErrorIllegalAddress, "a write past the end of " + std::to_string(block.size) + " bytes of memory");
}

void check_patterns() {
    for (auto &entry : blocks) check_pattern(entry.second);
}

static cudaError_t release(void *p) {
    if (!p) return cudaSuccess;
    auto entry = blocks.find((char *)p);
    if (entry == blocks.end()) return problem(cudaErrorInvalidValue, "free of %p, which was not allocated", p);
    run_everything();  // cudaFree waits for the device
    Block block = entry->second;
    check_pattern(block);
    if (block.kind == MemoryKind::DEVICE) used[block.device] -= block.size;
    suballocations.erase(suballocations.lower_bound(block.base), suballocations.lower_bound(block.base + block.size));
    blocks.erase(entry);
    munmap((char *)((size_t)block.base & ~(round_to_pages(1) - 1)), block.mapped);
    return cudaSuccess;
}

Block *block_of(const void *p) {
    auto next = blocks.upper_bound((char *)p);
    if (next == blocks.begin()) return nullptr;
    Block &block = std::prev(next)->second;
    return (char *)p < block.base + std::max<size_t>(block.size, 1) ? &block : nullptr;
}

MemoryKind kind_of(const void *p) {
    Block *block = block_of(p);
    return block ? block->kind : MemoryKind::HOST;
}

bool peer_enabled(int from, int to) { return from == to || peers.count({from, to}); }

std::string why_not_allocated(const void *p, size_t size, int device) {
    Block *block = block_of(p);
    if (!block) return "is host memory, or was freed";
    if (block->kind == MemoryKind::DEVICE && !peer_enabled(device, block->device))
        return "is memory of device " + std::to_string(block->device) + ", without access from device " + std::to_string(device);
    return (char *)p + size > block->base + block->size ? "extends past the end of its memory" : "";
}

std::string why_not(const void *p, size_t size, int device) {
    std::string why = why_not_allocated(p, size, device);
    Block *block = block_of(p);
    if (!block || !why.empty()) return why;
    auto next = suballocations.upper_bound((char *)p);
    if (next == suballocations.begin()) return "";
    auto &piece = *std::prev(next);
    if (piece.first < block->base) return "";  // of another block
    if ((char *)p >= piece.first + std::max<size_t>(piece.second.size, 1)) return (char *)p < piece.first + (piece.second.size + 511) / 512 * 512 ? "is past the end of an array" : "";
    if (!piece.second.live) return "was returned to the pool";
    if ((char *)p + size > piece.first + piece.second.size) return "extends past the end of an array";
    return "";
}

// A pool allocated or freed memory: its contents are undefined from then on, in the order of its stream.
static void set_suballocation(char *p, size_t size, bool live, Stream *stream) {
    Work work = [=] {
        Block *block = block_of(p);
        if (!block) return;
        size_t capacity = std::min<size_t>((size + 511) / 512 * 512, block->base + block->size - p);
        suballocations.erase(suballocations.lower_bound(p), suballocations.lower_bound(p + capacity));
        suballocations[p] = {size, live};
        memset(p, PATTERN, capacity);
    };
    if (!stream || stream->capture) work();  // a graph does not record what an allocator does
    else push(stream, work);
}

static cudaError_t check_copy(void *to, const void *from, size_t size, cudaMemcpyKind &kind) {
    bool to_device = kind_of(to) == MemoryKind::DEVICE, from_device = kind_of(from) == MemoryKind::DEVICE;
    cudaMemcpyKind real = to_device ? (from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                    : (from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
    if (kind == cudaMemcpyDefault) kind = real;
    if (kind != real) return problem(cudaErrorInvalidValue, "a copy of kind %d between memory of kind %d", kind, real);
    for (const void *p : {(const void *)to, from}) {
        Block *block = block_of(p);
        std::string why = block ? why_not_allocated(p, size, block->device) : "";
        if (!why.empty()) return problem(cudaErrorInvalidValue, "copy of %zu bytes: %p %s", size, p, why.c_str());
    }
    static const char *const names[] = {"host to host", "host to device", "device to host", "device to device"};
    count(std::string("bytes ") + names[kind], size), count(std::string("copies ") + names[kind]);
    return cudaSuccess;
}

// Pageable host memory is staged before the call returns; a copy into it returns when it is done.
static cudaError_t copy(void *to, const void *from, size_t size, cudaMemcpyKind kind, Stream *stream, bool wait) {
    if (!size) return cudaSuccess;
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "copy on a stream that does not exist");
    if (cudaError_t status = check_copy(to, from, size, kind)) return status;
    note("copy of %zu bytes, kind %d, stream %p", size, kind, (void *)stream);
    bool pageable = kind_of(from) == MemoryKind::HOST || kind_of(to) == MemoryKind::HOST;
    if (stream->capture && pageable) {
        stream->invalidated = true;
        return problem(cudaErrorStreamCaptureUnsupported, "copy of pageable memory during capture");
    }
    std::shared_ptr<std::vector<char>> staged;
    if (kind_of(from) == MemoryKind::HOST) staged = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + size);
    Work work = [=] {
        for (const void *p : {(const void *)to, from}) {
            Block *block = block_of(p);
            std::string why = block ? why_not(p, size, block->device) : "";
            if (!why.empty()) return fail_kernel(cudaErrorIllegalAddress, "copy of " + std::to_string(size) + " bytes: memory " + why);
        }
        memmove(to, staged ? staged->data() : from, size);
    };
    Block *a = block_of(to), *b = block_of(from);
    int other = kind != cudaMemcpyDeviceToDevice ? stream->device : a->device == stream->device ? b->device : a->device;
    bool between = stream->is_default && other != stream->device;  // then it is ordered with all work of both devices
    if (between) wait_for_device(stream, other);
    if (cudaError_t status = push(stream, work)) return status;
    if (between) make_device_wait(other, stream);
    if (wait || kind_of(to) == MemoryKind::HOST) {
        count("waits");
        run(stream, stream->pushed);
        return sticky_error();
    }
    return cudaSuccess;
}

}  // namespace emulator

using namespace emulator;

EXPORT cudaError_t cudaMalloc(void **p, size_t size) {
    ENTER(cudaMalloc);
    count("allocations");
    return allocate(p, size, MemoryKind::DEVICE);
}
EXPORT cudaError_t cudaFree(void *p) {
    ENTER(cudaFree);
    return release(p);
}
EXPORT cudaError_t cudaHostAlloc(void **p, size_t size, unsigned) {
    ENTER(cudaHostAlloc);
    count("pinned allocations");
    return allocate(p, size, MemoryKind::PINNED);
}
EXPORT cudaError_t cudaFreeHost(void *p) {
    ENTER(cudaFreeHost);
    return release(p);
}
EXPORT cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    ENTER(cudaMemGetInfo);
    *total = settings.memory, *free = settings.memory - std::min<size_t>(settings.memory, used[current_device]);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER(cudaMemcpyAsync);
    return copy(to, from, size, kind, stream_of(stream), false);
}
EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    ENTER(cudaMemcpy);
    return copy(to, from, size, kind, stream_of(nullptr), true);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size, cudaStream_t stream) {
    ENTER(cudaMemcpyPeerAsync);
    Block *a = block_of(to), *b = block_of(from);
    if (!a || !b || a->device != to_device || b->device != from_device)
        return problem(cudaErrorInvalidValue, "peer copy from device %d to %d of memory of other devices", from_device, to_device);
    return copy(to, from, size, cudaMemcpyDeviceToDevice, stream_of(stream), false);
}
EXPORT cudaError_t cudaMemcpyPeer(void *to, int to_device, const void *from, int from_device, size_t size) {
    return cudaMemcpyPeerAsync(to, to_device, from, from_device, size, nullptr);
}
EXPORT cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t handle) {
    ENTER(cudaMemsetAsync);
    Stream *stream = stream_of(handle);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "memset on a stream that does not exist");
    std::string why = size ? why_not_allocated(p, size, stream->device) : "";
    if (!why.empty()) return problem(cudaErrorInvalidValue, "memset: %p %s", p, why.c_str());
    count("memsets");
    int device = stream->device;
    return push(stream, [=] {
        std::string why = size ? why_not(p, size, device) : "";
        if (!why.empty()) return fail_kernel(cudaErrorIllegalAddress, "memset of " + std::to_string(size) + " bytes: memory " + why);
        memset(p, value, size);
    });
}
EXPORT cudaError_t cudaMemset(void *p, int value, size_t size) { return cudaMemsetAsync(p, value, size, nullptr); }
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
    ENTER(cudaPointerGetAttributes);
    Block *block = block_of(p);
    memset(a, 0, sizeof *a);
    a->type = !block ? cudaMemoryTypeUnregistered : block->kind == MemoryKind::DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    a->device = block ? block->device : -2;
    a->devicePointer = block ? (void *)p : nullptr;
    a->hostPointer = block && block->kind == MemoryKind::PINNED ? (void *)p : nullptr;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    ENTER(cudaDeviceCanAccessPeer);
    *can = settings.peer_access && device != peer;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
    ENTER(cudaDeviceEnablePeerAccess);
    if (!settings.peer_access) return problem(cudaErrorPeerAccessUnsupported, "these devices are not peers");
    return peers.insert({current_device, peer}).second ? cudaSuccess : problem(cudaErrorPeerAccessAlreadyEnabled, "twice");
}
EXPORT cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    ENTER(cudaDeviceDisablePeerAccess);
    return peers.erase({current_device, peer}) ? cudaSuccess : problem(cudaErrorPeerAccessNotEnabled, "not enabled");
}
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {  // CuPy calls this on import
    *pool = (cudaMemPool_t)1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }

EXPORT void emulator_suballocation(void *p, size_t size, int live, void *stream) {
    std::lock_guard<std::recursive_mutex> lock(emulator::mutex);
    if (Block *block = block_of(p)) set_suballocation((char *)p, size, live, stream_of((cudaStream_t)stream, block->device));
}
