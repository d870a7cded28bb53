// The fused memory read from C++, with the driver alone: no Python, no CUDA toolkit.
//
//     cmake -S . -B build/cmake && cmake --build build/cmake
//     c++ -std=c++17 -Ibuild/cmake/include examples/memory_read.cpp -Lbuild/cmake -lmvos -lcuda
//
// All values are 1 and the softmax's weights sum to 1, so the readout must be 1 everywhere.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "mvos.h"

#if __has_include(<cuda.h>)
#include <cuda.h>
#else  // what this file uses of it
extern "C" {
typedef struct CUctx_st *CUcontext;
typedef unsigned long long CUdeviceptr;
int cuInit(unsigned);
int cuDeviceGet(int *, int);
int cuDevicePrimaryCtxRetain(CUcontext *, int);
int cuCtxSetCurrent(CUcontext);
int cuCtxSynchronize(void);
int cuMemAlloc_v2(CUdeviceptr *, std::size_t);
int cuMemcpyHtoD_v2(CUdeviceptr, const void *, std::size_t);
int cuMemcpyDtoH_v2(void *, CUdeviceptr, std::size_t);
}
#define cuMemAlloc cuMemAlloc_v2
#define cuMemcpyHtoD cuMemcpyHtoD_v2
#define cuMemcpyDtoH cuMemcpyDtoH_v2
#endif

static void *device(std::size_t bytes) {
    CUdeviceptr pointer = 0;
    return bytes && cuMemAlloc(&pointer, bytes) == 0 ? reinterpret_cast<void *>(pointer) : nullptr;
}

template <typename T>
static void *to_device(const std::vector<T> &host) {
    void *copy = device(host.size() * sizeof(T));
    cuMemcpyHtoD(reinterpret_cast<CUdeviceptr>(copy), host.data(), host.size() * sizeof(T));
    return copy;
}

static int fail(const char *what, const char *why) {
    std::fprintf(stderr, "error: %s: %s\n", what, why);
    return 2;
}

int main() {
    int gpu;
    CUcontext context;
    if (cuInit(0) || cuDeviceGet(&gpu, 0) || cuDevicePrimaryCtxRetain(&context, gpu) ||
        cuCtxSetCurrent(context))
        return fail("no GPU", "the driver gives no context for device 0");

    // One object on 480x864 (N = 30 * 54) reads two slots: its first frame and the most recent one.
    const mvos_read_shape shape = {MVOS_FP32, 30 * 54, 64, 64, 1, 2, 2};
    const std::size_t n = shape.positions;
    std::vector<float> query(n * shape.key_dim), keys(shape.capacity * n * shape.key_dim);
    for (std::size_t i = 0; i < query.size(); ++i) query[i] = std::sin(0.37f * i);
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::cos(0.11f * i);
    const std::vector<float> values(shape.capacity * shape.objects * n * shape.value_dim, 1.0f);
    const std::vector<std::int32_t> slots = {0, 1};
    std::vector<float> readout(shape.objects * n * shape.value_dim);

    mvos_read_plan plan;
    if (mvos_memory_read_plan(&shape, &plan)) return fail("no plan", mvos_error_message());
    void *out = device(readout.size() * sizeof(float));
    if (mvos_memory_read(&shape, to_device(query), to_device(keys), to_device(values),
                         static_cast<std::int32_t *>(to_device(slots)), out,
                         device(plan.workspace_bytes), plan.workspace_bytes, nullptr))
        return fail("no launch", mvos_error_message());
    std::printf("launched %u x %u x %u blocks, %d split(s)\n", plan.grid[0], plan.grid[1],
                plan.grid[2], plan.splits);
    if (cuCtxSynchronize() || cuMemcpyDtoH(readout.data(), reinterpret_cast<CUdeviceptr>(out),
                                           readout.size() * sizeof(float)))
        return fail("no result", "the kernel or the copy failed");

    float worst = 0;
    for (float value : readout) worst = std::fmax(worst, std::fabs(value - 1));
    std::printf("the readout is 1 within %g\n", worst);
    return worst < 1e-3f ? 0 : 1;
}
