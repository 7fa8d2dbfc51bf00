// Streams, events, graphs, and the order in which work runs.
#include "emulator.h"

#include <chrono>
#include <random>

namespace emulator {

static std::set<Stream *> streams;
static std::map<int, Stream *> defaults;  // the legacy default stream of each device
static std::minstd_rand dice;

static int next_number = 0;

static Stream *new_stream(int device) {
    Stream *stream = new Stream;
    stream->device = device, stream->number = next_number++;
    streams.insert(stream);
    return stream;
}

Stream *stream_of(cudaStream_t handle, int device) {
    if ((size_t)handle > 2) return streams.count((Stream *)handle) ? (Stream *)handle : nullptr;
    Stream *&stream = defaults[device];  // 0: the default, 1: the legacy default, 2: per-thread, treated as the same
    if (!stream) stream = new_stream(device), stream->is_default = true, stream->number = -1 - device;
    return stream;
}

Stream *stream_of(cudaStream_t handle) { return stream_of(handle, current_device); }

void run(Stream *stream, long until) {
    while (stream->done < until && !stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        if (!sticky_error()) work();
    }
}

void run_everything() {
    for (Stream *stream : streams) run(stream, stream->pushed);
}

// Depending on the seed, some streams run at once, some as late as possible, and some now and then.
static void run_at_random() {
    for (Stream *stream : streams) {
        int pace = std::minstd_rand(settings.schedule * 7919 + stream->number)() / 16807 % 3;
        if (pace == 0) run(stream, stream->pushed);
        if (pace == 1 && !stream->queue.empty()) run(stream, stream->done + dice() % 3);
    }
}

static void enqueue(Stream *stream, Work work) { stream->queue.push_back(std::move(work)), stream->pushed++; }

static void wait_for(Stream *stream, Stream *other) {
    long position = other->pushed;
    if (other->done < position) enqueue(stream, [=] { run(other, position); });
}

void wait_for_device(Stream *stream, int device) {
    for (Stream *other : streams)
        if (other->device == device) wait_for(stream, other);
}

void make_device_wait(int device, Stream *stream) {
    for (Stream *other : streams)
        if (other->device == device && !other->capture) wait_for(other, stream);
}

// The legacy default stream and all blocking streams of its device wait for each other.
static cudaError_t wait_for_implied(Stream *stream) {
    if (!stream->blocking) return cudaSuccess;
    for (Stream *other : streams) {
        if (other == stream || !other->blocking || other->device != stream->device) continue;
        if (!stream->is_default && !other->is_default) continue;
        if (other->capture) {
            other->invalidated = true;
            return problem(cudaErrorStreamCaptureImplicit, "work on the default stream while a blocking stream is captured");
        }
        wait_for(stream, other);
    }
    return cudaSuccess;
}

cudaError_t push(Stream *stream, Work work) {
    if (cudaError_t status = sticky_error()) return status;
    if (stream->capture) {
        if (stream->invalidated) return problem(cudaErrorStreamCaptureInvalidated, "the capture is already invalid");
        stream->capture->nodes.push_back(std::move(work));
        return cudaSuccess;
    }
    if (cudaError_t status = wait_for_implied(stream)) return status;
    enqueue(stream, std::move(work));
    if (settings.schedule == EAGER || stream->queue.size() > 20000) run(stream, stream->pushed);
    if (settings.schedule > 0) run_at_random();
    return cudaSuccess;
}

void run_device(int device) {
    for (Stream *stream : streams)
        if (stream->device == device) run(stream, stream->pushed);
}

void abandon_captures() {
    for (Stream *stream : streams) stream->capture.reset(), stream->invalidated = false;
}

static std::map<cudaEvent_t, std::shared_ptr<Event>> events;  // by handle; queued work also holds them

static std::shared_ptr<Event> event_of(cudaEvent_t handle) {  // nullptr if there is no such event
    auto entry = events.find(handle);
    return entry == events.end() ? nullptr : entry->second;
}

#define EVENT(event, handle)                       \
    std::shared_ptr<Event> event = event_of(handle); \
    if (!event) return problem(cudaErrorInvalidResourceHandle, "an event that does not exist, or was destroyed")

// From here on, the schedule depends on the seed alone: stream numbers, which determine the pace, restart.
void seed_schedule(long seed) { dice.seed(seed), next_number = 0; }

Stream *capturing(int device) {
    for (Stream *stream : streams)
        if (stream->capture && stream->device == device) return stream;
    return nullptr;
}

static cudaError_t new_stream(cudaStream_t *handle, bool blocking) {
    Stream *stream = new_stream(current_device);
    stream->blocking = blocking;
    *handle = (cudaStream_t)stream;
    return cudaSuccess;
}

static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace emulator

using namespace emulator;

// ---- streams

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    ENTER(cudaStreamCreate);
    return new_stream(stream, true);
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    ENTER(cudaStreamCreateWithFlags);
    return new_stream(stream, !(flags & cudaStreamNonBlocking));
}
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    ENTER(cudaStreamCreateWithPriority);
    return new_stream(stream, !(flags & cudaStreamNonBlocking));
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    ENTER(cudaStreamDestroy);
    Stream *stream = stream_of(handle);
    if (!stream || stream->is_default) return problem(cudaErrorInvalidResourceHandle, "destruction of a stream that does not exist");
    run(stream, stream->pushed);  // CUDA lets its work finish
    streams.erase(stream);        // not deleted: events may still refer to it
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    ENTER(cudaStreamSynchronize);
    Stream *stream = stream_of(handle);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "synchronization of a stream that does not exist");
    count("waits");
    if (stream->capture) {
        stream->invalidated = true;
        return problem(cudaErrorStreamCaptureUnsupported, "cudaStreamSynchronize of a captured stream");
    }
    if (cudaError_t status = wait_for_implied(stream)) return status;
    run(stream, stream->pushed);
    return sticky_error();
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t handle) {
    ENTER(cudaStreamQuery);
    Stream *stream = stream_of(handle);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "query of a stream that does not exist");
    if (stream->capture) {
        stream->invalidated = true;
        return problem(cudaErrorStreamCaptureUnsupported, "cudaStreamQuery of a captured stream");
    }
    return stream->done < stream->pushed ? cudaErrorNotReady : cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t e, unsigned) {
    ENTER(cudaStreamWaitEvent);
    Stream *stream = stream_of(handle);
    EVENT(event, e);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "a wait on a stream that does not exist");
    if (stream->capture) {
        if (event->captured) return cudaSuccess;
        stream->invalidated = true;
        return problem(cudaErrorStreamCaptureIsolation, "a captured stream waits for an event from outside the capture");
    }
    if (event->captured) return problem(cudaErrorNotSupported, "the emulator captures one stream at a time");
    if (Stream *other = event->stream; other && other != stream && other->done < event->position) {
        long position = event->position;
        enqueue(stream, [=] { run(other, position); });
    }
    return cudaSuccess;
}

// ---- capture and graphs

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    ENTER(cudaStreamBeginCapture);
    Stream *stream = stream_of(handle);
    if (!stream || stream->is_default) return problem(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (stream->capture) return problem(cudaErrorIllegalState, "the stream is already being captured");
    count("captures");
    stream->capture = std::make_unique<Graph>(), stream->invalidated = false, stream->capturer = std::this_thread::get_id();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
    ENTER(cudaStreamEndCapture);
    Stream *stream = stream_of(handle);
    *graph = nullptr;
    if (!stream || !stream->capture) return problem(cudaErrorIllegalState, "end of a capture that was not begun");
    std::unique_ptr<Graph> capture = std::move(stream->capture);
    if (stream->invalidated) return problem(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture");
    *graph = (cudaGraph_t)capture.release();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
    ENTER(cudaStreamIsCapturing);
    Stream *stream = stream_of(handle);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "query of a stream that does not exist");
    *status = !stream->capture ? cudaStreamCaptureStatusNone : stream->invalidated ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long) {
    ENTER(cudaGraphInstantiate);
    Graph *copy = new Graph;
    copy->nodes = ((Graph *)graph)->nodes;
    *made = (cudaGraphExec_t)copy;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
    ENTER(cudaGraphUpload);
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t s) {
    ENTER(cudaGraphLaunch);
    Stream *stream = stream_of(s);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "launch of a graph on a stream that does not exist");
    if (stream->capture) return problem(cudaErrorNotSupported, "the emulator does not support nested graphs");
    Graph *graph = (Graph *)handle;
    note("graph of %zu nodes, stream %p", graph->nodes.size(), (void *)stream);
    count("graph launches"), count("graph nodes", graph->nodes.size());
    for (auto &node : graph->nodes)
        if (cudaError_t status = push(stream, node)) return status;
    return push(stream, [in_flight = graph->in_flight] {});
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    ENTER(cudaGraphDestroy);
    delete (Graph *)graph;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
    ENTER(cudaGraphExecDestroy);
    Graph *graph = (Graph *)handle;
    if (graph->in_flight.use_count() > 1) fail_kernel(cudaErrorIllegalAddress, "a graph was destroyed while it was running");
    delete graph;
    return cudaSuccess;
}

// ---- events

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    ENTER(cudaEventCreateWithFlags);
    auto event = std::make_shared<Event>();
    event->device = current_device, event->timing = !(flags & cudaEventDisableTiming);
    *e = (cudaEvent_t)event.get();
    events[*e] = event;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) {
    ENTER(cudaEventDestroy);
    return events.erase(e) ? cudaSuccess : problem(cudaErrorInvalidResourceHandle, "an event is destroyed twice");
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t handle) {
    ENTER(cudaEventRecord);
    Stream *stream = stream_of(handle);
    EVENT(event, e);
    if (!stream) return problem(cudaErrorInvalidResourceHandle, "an event is recorded on a stream that does not exist");
    if (event->device != stream->device) return problem(cudaErrorInvalidResourceHandle, "an event of device %d is recorded on a stream of device %d", event->device, stream->device);
    event->captured = stream->capture != nullptr;
    if (event->captured) return cudaSuccess;
    if (cudaError_t status = push(stream, [event] { if (event->timing) event->seconds = now(); })) return status;
    event->stream = stream, event->position = stream->pushed;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    ENTER(cudaEventSynchronize);
    EVENT(event, e);
    count("waits");
    if (event->captured) return problem(cudaErrorStreamCaptureUnsupported, "synchronization of an event that was recorded during capture");
    if (event->stream) run(event->stream, event->position);
    return sticky_error();
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) {
    ENTER(cudaEventQuery);
    EVENT(event, e);
    return event->stream && event->stream->done < event->position ? cudaErrorNotReady : cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    ENTER(cudaEventElapsedTime);
    EVENT(a, from);
    EVENT(b, to);
    if (!a->timing || !b->timing || !a->stream || !b->stream) return problem(cudaErrorInvalidResourceHandle, "an event without a time");
    if (a->stream->done < a->position || b->stream->done < b->position) return cudaErrorNotReady;
    *ms = (b->seconds - a->seconds) * 1e3;
    return cudaSuccess;
}
#if CUDART_VERSION < 13000
EXPORT cudaError_t cudaEventElapsedTime_v2(float *ms, cudaEvent_t from, cudaEvent_t to) { return cudaEventElapsedTime(ms, from, to); }
#endif

