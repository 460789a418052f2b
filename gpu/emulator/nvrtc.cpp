// The compiler side of the emulator: as much of libnvrtc.so as this project calls. "Compiling" writes the kernel
// behind cuda_on_cpu.h into a C++ file and has g++ make a shared library of it, kept by a hash of source and flags.
//
// Settings (environment):
//   GPU_EMU_INCLUDE     folder of cuda_on_cpu.h (required)
//   GPU_EMU_CACHE       folder of the compiled kernels (required)
//   GPU_EMU_CXXFLAGS    more flags for g++, for example -fsanitize=address
#include <sys/stat.h>
#include <unistd.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

using Status = int;
using Handle = void *;
enum : Status { SUCCESS = 0, COMPILATION = 6, INTERNAL = 11 };

namespace {
struct Program { std::string source, log, image; };

std::string setting(const char *name) {
    const char *text = getenv(name);
    return text ? text : "";
}
std::string read_file(const std::string &path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}
std::string hash(const std::string &text) {
    uint64_t a = 0xcbf29ce484222325ull, b = 0x9E3779B97F4A7C15ull;
    for (unsigned char c : text) { a = (a ^ c) * 0x100000001b3ull; b = (b + c) * 0xff51afd7ed558ccdull; b ^= b >> 32; }
    char out[40];
    snprintf(out, sizeof out, "%016llx%016llx", (unsigned long long)a, (unsigned long long)b);
    return out;
}
// The C++ text: the header, the kernel as it is, and one plain function per kernel that launches it.
std::string as_cpp(const std::string &source) {
    std::string kernel = std::regex_replace(source, std::regex("extern\\s+\"C\"\\s+__global__"), "__global__");
    std::ostringstream out;
    out << "#include \"cuda_on_cpu.h\"\n#line 1 \"kernel.cu\"\n" << kernel << "\n";
    std::regex declared("__global__\\s+(?:void\\s+)?(?:__launch_bounds__\\s*\\([^)]*\\)\\s*)?(?:void\\s+)?(\\w+)\\s*\\(");
    std::set<std::string> names;
    for (std::sregex_iterator at(kernel.begin(), kernel.end(), declared), end; at != end; ++at) names.insert((*at)[1]);
    for (const auto &name : names)
        out << "extern \"C\" int rowmill_emu_launch_" << name
            << "(void **arguments, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes) {"
            << " return emu::launch(" << name << ", arguments, EmuDim{gx, gy, gz}, EmuDim{bx, by, bz}, shared_bytes); }\n";
    return out.str();
}
}  // namespace

extern "C" {
Status nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 9; return SUCCESS; }
const char *nvrtcGetErrorString(Status) { return "emulated NVRTC error"; }
Status nvrtcCreateProgram(Handle *out, const char *source, const char *, int, const char *const *, const char *const *) {
    *out = new Program{source, "", ""};
    return SUCCESS;
}
Status nvrtcDestroyProgram(Handle *program) { delete static_cast<Program *>(*program); *program = nullptr; return SUCCESS; }
Status nvrtcCompileProgram(Handle handle, int, const char *const *) {
    auto program = static_cast<Program *>(handle);
    std::string folder = setting("GPU_EMU_CACHE"), include = setting("GPU_EMU_INCLUDE");
    if (folder.empty() || include.empty()) { program->log = "GPU_EMU_CACHE and GPU_EMU_INCLUDE must be set"; return INTERNAL; }
    mkdir(folder.c_str(), 0777);
    std::string flags = "-std=c++17 -O1 -g1 -fno-strict-aliasing -ffp-contract=off -fwrapv -fno-gnu-unique -Wl,-Bsymbolic -w -shared -fPIC " + setting("GPU_EMU_CXXFLAGS");
    std::string text = as_cpp(program->source);
    std::string base = folder + "/" + hash(text + flags + read_file(include + "/cuda_on_cpu.h"));
    std::string library = base + ".so";
    program->image = "rowmill-emulator " + library + "\n";
    if (access(library.c_str(), R_OK) == 0) return SUCCESS;
    // Another process may compile the same kernel: each writes a file of its own, and renaming decides.
    std::string mine = base + "." + std::to_string(getpid());
    std::ofstream(mine + ".cpp") << text;
    std::string command = "g++ " + flags + " -I" + include + " -o " + mine + ".so " + mine + ".cpp 2> " + mine + ".log";
    int status = system(command.c_str());
    program->log = read_file(mine + ".log");
    unlink((mine + ".log").c_str());
    if (status) return COMPILATION;
    unlink((mine + ".cpp").c_str());
    return rename((mine + ".so").c_str(), library.c_str()) ? INTERNAL : SUCCESS;
}
Status nvrtcGetProgramLogSize(Handle p, size_t *n) { *n = static_cast<Program *>(p)->log.size() + 1; return SUCCESS; }
Status nvrtcGetProgramLog(Handle p, char *out) { strcpy(out, static_cast<Program *>(p)->log.c_str()); return SUCCESS; }
Status nvrtcGetCUBINSize(Handle p, size_t *n) { *n = static_cast<Program *>(p)->image.size() + 1; return SUCCESS; }
Status nvrtcGetCUBIN(Handle p, char *out) { strcpy(out, static_cast<Program *>(p)->image.c_str()); return SUCCESS; }
Status nvrtcGetPTXSize(Handle p, size_t *n) { return nvrtcGetCUBINSize(p, n); }
Status nvrtcGetPTX(Handle p, char *out) { return nvrtcGetCUBIN(p, out); }
}
