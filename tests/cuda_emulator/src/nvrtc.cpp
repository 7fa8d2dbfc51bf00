// NVRTC on g++: compiles a kernel's source with the shim of tests/host_cuda into a shared library, which is the "cubin".
// Environment: CUDA_EMULATOR_BUILD (the folder of prelude.h and its precompiled form), CUDA_EMULATOR_KEY (a hash of all that a cubin
// depends on besides its source), CUDA_EMULATOR_CXX, CUDA_EMULATOR_FLAGS, CUDA_EMULATOR_VERSION (12090).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Program {
    std::string text, log, image;
    std::vector<std::string> expressions;
};

std::string setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

std::string read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

// The names of the kernels in a source.
std::set<std::string> kernels(const std::string &text) {
    static const std::regex pattern("__global__\\s+void\\s+(?:__launch_bounds__\\s*\\([^)]*\\)\\s*)?(\\w+)\\s*\\(");
    std::set<std::string> names;
    for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) names.insert((*it)[1]);
    return names;
}

const int COMPILATION = 6;  // NVRTC_ERROR_COMPILATION

}  // namespace

EXPORT const char *nvrtcGetErrorString(int status) { return status == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_UNKNOWN"; }
EXPORT int nvrtcVersion(int *major, int *minor) {
    int version = atoi(setting("CUDA_EMULATOR_VERSION").c_str());
    *major = version / 1000, *minor = version % 1000 / 10;
    return 0;
}
EXPORT int nvrtcGetNumSupportedArchs(int *n) {
    *n = 1;
    return 0;
}
EXPORT int nvrtcGetSupportedArchs(int *architectures) {
    *architectures = 90;
    return 0;
}
EXPORT int nvrtcCreateProgram(Program **made, const char *text, const char *, int, const char *const *, const char *const *) {
    *made = new Program{text};
    return 0;
}
EXPORT int nvrtcDestroyProgram(Program **program) {
    delete *program;
    *program = nullptr;
    return 0;
}
EXPORT int nvrtcAddNameExpression(Program *program, const char *expression) {
    program->expressions.push_back(expression);
    return 0;
}
EXPORT int nvrtcGetLoweredName(Program *program, const char *expression, const char **name) {
    for (auto &known : program->expressions)
        if (known == expression) *name = known.c_str();
    return 0;
}
EXPORT int nvrtcCompileProgram(Program *program, int, const char *const *) {
    if (program->text.empty()) {  // how CuPy gets the compiler's version for its cache keys
        program->image = "// CUDA emulator " + setting("CUDA_EMULATOR_KEY");
        return 0;
    }
    std::string build = setting("CUDA_EMULATOR_BUILD"), base = build + "/kernel-XXXXXX";
    if (int file = mkstemp(base.data()); file < 0) {
        program->log = "cannot write to " + build;
        return COMPILATION;
    } else {
        close(file);
    }
    {
        std::ofstream text(base + ".cpp");
        text << program->text << "\n#include \"entry.h\"\n";
        for (auto &name : kernels(program->text)) text << "EMULATED_ENTRY(" << name << ")\n";
    }
    std::string command = setting("CUDA_EMULATOR_CXX") + " " + setting("CUDA_EMULATOR_FLAGS") + " -include prelude.h " + base + ".cpp -o " + base + ".so > " + base + ".log 2>&1";
    bool failed = system(command.c_str()) != 0;
    program->log = read(base + ".log");
    if (!failed) {
        std::string library = read(base + ".so");
        size_t size = library.size();
        program->image = "EMULATED" + std::string((const char *)&size, sizeof size) + library;
    }
    for (const char *suffix : {"", ".cpp", ".log", ".so"})
        if (setting("CUDA_EMULATOR_KEEP").empty()) unlink((base + suffix).c_str());
    return failed ? COMPILATION : 0;
}
EXPORT int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = program->log.size() + 1;
    return 0;
}
EXPORT int nvrtcGetProgramLog(Program *program, char *log) {
    strcpy(log, program->log.c_str());
    return 0;
}
static int image_size(Program *program, size_t *size) {
    *size = program->image.size() + 1;
    return 0;
}
static int image(Program *program, char *out) {
    memcpy(out, program->image.c_str(), program->image.size() + 1);
    return 0;
}
EXPORT int nvrtcGetPTXSize(Program *program, size_t *size) { return image_size(program, size); }
EXPORT int nvrtcGetPTX(Program *program, char *out) { return image(program, out); }
EXPORT int nvrtcGetCUBINSize(Program *program, size_t *size) { return image_size(program, size); }
EXPORT int nvrtcGetCUBIN(Program *program, char *out) { return image(program, out); }
