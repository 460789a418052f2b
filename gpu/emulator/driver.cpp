// The host side of the emulator: as much of libcuda.so as this project calls, on the CPU's own memory.
//
// Settings for the tests (environment):
//   GPU_EMU_INIT=100          cuInit fails with that code (100: no device)
//   GPU_EMU_MEMORY_BYTES=N    the device has N bytes
//   GPU_EMU_FAIL_LAUNCH=N     the Nth launch from now on is an illegal access; it poisons the context, as on a device
#include <dlfcn.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

using Status = int;
using DevicePointer = unsigned long long;
using Handle = void *;

enum : Status {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719,
};

namespace {
std::mutex lock;
std::map<DevicePointer, size_t> allocations;  // address → bytes
size_t used_bytes = 0;
bool poisoned = false;
int context_object;
thread_local Handle current_context = nullptr;

struct Module { void *library; };
struct Function { int (*call)(void **, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned); };
struct Event { std::chrono::steady_clock::time_point at; };

size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t memory_bytes() { return setting("GPU_EMU_MEMORY_BYTES", size_t(1) << 31); }

Status allocate(DevicePointer *out, size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    if (poisoned) return ILLEGAL_ADDRESS;
    if (used_bytes + bytes > memory_bytes()) return OUT_OF_MEMORY;
    size_t held = bytes ? bytes : 1;
    // Exactly the bytes asked for: AddressSanitizer then sees the first one past the end.
    void *memory = nullptr;
    if (posix_memalign(&memory, 256, held)) return OUT_OF_MEMORY;
    memset(memory, 0xA5, held);  // device memory is not zeroed
    *out = reinterpret_cast<DevicePointer>(memory);
    allocations[*out] = bytes;
    used_bytes += bytes;
    return SUCCESS;
}

Status release(DevicePointer pointer) {
    std::lock_guard<std::mutex> guard(lock);
    if (!pointer) return SUCCESS;
    auto found = allocations.find(pointer);
    if (found == allocations.end()) return INVALID_VALUE;
    used_bytes -= found->second;
    allocations.erase(found);
    free(reinterpret_cast<void *>(pointer));
    return SUCCESS;
}

// Whether [pointer, pointer + bytes) lies in one allocation: a real copy outside of it fails too.
bool inside(DevicePointer pointer, size_t bytes) {
    auto after = allocations.upper_bound(pointer);
    if (after == allocations.begin()) return bytes == 0;
    auto found = std::prev(after);
    return pointer + bytes <= found->first + (found->second ? found->second : 1);
}

Status copy(void *to, const void *from, size_t bytes, DevicePointer device_side) {
    std::lock_guard<std::mutex> guard(lock);
    if (poisoned) return ILLEGAL_ADDRESS;
    if (!bytes) return SUCCESS;
    if (!inside(device_side, bytes)) return INVALID_VALUE;
    memmove(to, from, bytes);
    return SUCCESS;
}
void *host(DevicePointer p) { return reinterpret_cast<void *>(p); }
}  // namespace

extern "C" {
Status cuInit(unsigned) { return Status(setting("GPU_EMU_INIT", 0)); }
Status cuDriverGetVersion(int *v) { *v = 12090; return SUCCESS; }
Status cuDeviceGet(int *d, int ordinal) { *d = 0; return ordinal ? INVALID_DEVICE : SUCCESS; }
Status cuDeviceGetCount(int *n) { *n = 1; return SUCCESS; }
Status cuDeviceGetName(char *name, int length, int) { snprintf(name, length, "CPU emulator"); return SUCCESS; }
Status cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = memory_bytes(); return SUCCESS; }
Status cuMemGetInfo_v2(size_t *available, size_t *total) {
    *total = memory_bytes();
    *available = *total - used_bytes;
    return SUCCESS;
}
Status cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;          // threads per block
        case 8: *value = 48 * 1024; break;     // shared memory per block
        case 10: *value = 32; break;           // warp size
        case 16: *value = 2; break;            // multiprocessors
        case 75: *value = 9; break;            // compute capability
        case 76: *value = 0; break;
        case 97: *value = 96 * 1024; break;    // shared memory per block, opted in
        case 115: *value = 1; break;           // memory pools
        default: *value = 1;
    }
    return SUCCESS;
}
Status cuDevicePrimaryCtxRetain(Handle *c, int) { *c = &context_object; return SUCCESS; }
Status cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Status cuCtxSetCurrent(Handle c) { current_context = c; return SUCCESS; }
Status cuCtxGetCurrent(Handle *c) { *c = current_context; return SUCCESS; }
Status cuCtxSynchronize() { return poisoned ? ILLEGAL_ADDRESS : SUCCESS; }
Status cuDeviceGetDefaultMemPool(Handle *pool, int) { *pool = &context_object; return SUCCESS; }
Status cuMemPoolSetAttribute(Handle, int, void *) { return SUCCESS; }
Status cuMemPoolTrimTo(Handle, size_t) { return SUCCESS; }

Status cuStreamCreate(Handle *s, unsigned) { *s = malloc(8); return SUCCESS; }
Status cuStreamCreateWithPriority(Handle *s, unsigned, int) { *s = malloc(8); return SUCCESS; }
Status cuStreamDestroy_v2(Handle s) { free(s); return SUCCESS; }
Status cuStreamSynchronize(Handle) { return poisoned ? ILLEGAL_ADDRESS : SUCCESS; }
Status cuStreamWaitEvent(Handle, Handle, unsigned) { return SUCCESS; }
Status cuEventCreate(Handle *e, unsigned) { *e = new Event{std::chrono::steady_clock::now()}; return SUCCESS; }
Status cuEventDestroy_v2(Handle e) { delete static_cast<Event *>(e); return SUCCESS; }
Status cuEventRecord(Handle e, Handle) { static_cast<Event *>(e)->at = std::chrono::steady_clock::now(); return SUCCESS; }
Status cuEventSynchronize(Handle) { return SUCCESS; }
Status cuEventQuery(Handle) { return SUCCESS; }
Status cuEventElapsedTime(float *ms, Handle a, Handle b) {
    *ms = std::chrono::duration<float, std::milli>(static_cast<Event *>(b)->at - static_cast<Event *>(a)->at).count();
    return SUCCESS;
}
Status cuEventElapsedTime_v2(float *ms, Handle a, Handle b) { return cuEventElapsedTime(ms, a, b); }

Status cuMemAlloc_v2(DevicePointer *p, size_t n) { return allocate(p, n); }
Status cuMemFree_v2(DevicePointer p) { return release(p); }
Status cuMemAllocAsync(DevicePointer *p, size_t n, Handle) { return allocate(p, n); }
Status cuMemFreeAsync(DevicePointer p, Handle) { return release(p); }
Status cuMemHostAlloc(void **p, size_t n, unsigned) { *p = aligned_alloc(64, (n + 64) / 64 * 64); return *p ? SUCCESS : OUT_OF_MEMORY; }
Status cuMemFreeHost(void *p) { free(p); return SUCCESS; }
Status cuMemcpyHtoDAsync_v2(DevicePointer d, const void *s, size_t n, Handle) { return copy(host(d), s, n, d); }
Status cuMemcpyDtoHAsync_v2(void *d, DevicePointer s, size_t n, Handle) { return copy(d, host(s), n, s); }
Status cuMemcpyDtoDAsync_v2(DevicePointer d, DevicePointer s, size_t n, Handle) {
    { std::lock_guard<std::mutex> guard(lock); if (n && !inside(s, n)) return INVALID_VALUE; }
    return copy(host(d), host(s), n, d);
}
Status cuMemsetD8Async(DevicePointer d, unsigned char v, size_t n, Handle) {
    std::lock_guard<std::mutex> guard(lock);
    if (poisoned) return ILLEGAL_ADDRESS;
    if (n && !inside(d, n)) return INVALID_VALUE;
    memset(host(d), v, n);
    return SUCCESS;
}

// A module's image is a line of text that names the shared library which nvrtc.cpp had g++ make.
Status cuModuleLoadData(Handle *module, const void *image) {
    std::string text(static_cast<const char *>(image));
    const std::string mark = "rowmill-emulator ";
    if (text.compare(0, mark.size(), mark)) return INVALID_IMAGE;
    std::string path = text.substr(mark.size(), text.find('\n') - mark.size());
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) { fprintf(stderr, "emulator: %s\n", dlerror()); return INVALID_IMAGE; }
    *module = new Module{library};
    return SUCCESS;
}
Status cuModuleUnload(Handle module) { delete static_cast<Module *>(module); return SUCCESS; }
Status cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    auto symbol = dlsym(static_cast<Module *>(module)->library, (std::string("rowmill_emu_launch_") + name).c_str());
    if (!symbol) return NOT_FOUND;
    *function = new Function{reinterpret_cast<decltype(Function::call)>(symbol)};
    return SUCCESS;
}
Status cuFuncGetAttribute(int *value, int, Handle) { *value = 0; return SUCCESS; }
Status cuFuncSetAttribute(Handle, int, int) { return SUCCESS; }
Status cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared_bytes, Handle, void **arguments, void **) {
    static size_t launches = 0;
    if (poisoned) return ILLEGAL_ADDRESS;
    if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || shared_bytes > 96 * 1024) return INVALID_VALUE;
    if (++launches == setting("GPU_EMU_FAIL_LAUNCH", 0)) { poisoned = true; return SUCCESS; }
    return static_cast<Function *>(function)->call(arguments, gx, gy, gz, bx, by, bz, shared_bytes) ? LAUNCH_FAILED : SUCCESS;
}
Status cuGetErrorName(Status code, const char **text) {
    static thread_local char buffer[64];
    snprintf(buffer, sizeof buffer, "emulated error %d", code);
    *text = buffer;
    return SUCCESS;
}
Status cuGetErrorString(Status code, const char **text) { return cuGetErrorName(code, text); }
}
