/* The fused memory read for C and C++ pipelines: no Python, no CUDA toolkit, only the driver.
 *
 *     S[q, m]    = (2 m.q - |m|^2) / sqrt(Ck)
 *     readout[q] = sum over m of softmax(S[q, m]) value[m]
 *
 * The library holds machine code for each architecture it was built for, finds libcuda at run time
 * and picks by compute capability. It works in the calling thread's current CUDA context and
 * launches on the caller's stream; it allocates no device memory and never waits for the device.
 * All functions may be called from several threads. Linux; driver 525 (CUDA 12.0) or newer.
 */
#ifndef MVOS_H
#define MVOS_H

#include <stddef.h>
#include <stdint.h>

#define MVOS_VERSION_MAJOR 0
#define MVOS_VERSION_MINOR 1
#define MVOS_VERSION_PATCH 0

#if defined(__GNUC__)
#define MVOS_API __attribute__((visibility("default")))
#else
#define MVOS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mvos_status {
    MVOS_OK = 0,
    MVOS_INVALID = 1,     /* an argument is wrong; nothing was launched */
    MVOS_NO_DRIVER = 2,   /* libcuda cannot be loaded, or is too old */
    MVOS_NO_CONTEXT = 3,  /* the thread has no current CUDA context */
    MVOS_UNSUPPORTED = 4, /* no kernel for this architecture or shape */
    MVOS_CUDA_ERROR = 5   /* a driver call failed */
} mvos_status;

typedef enum mvos_dtype { MVOS_FP16 = 0, MVOS_FP32 = 1 } mvos_dtype;

typedef struct mvos_read_shape {
    mvos_dtype dtype;
    int32_t positions; /* N: positions of the 1/16 grid */
    int32_t key_dim;   /* Ck */
    int32_t value_dim; /* Cv */
    int32_t objects;   /* K */
    int32_t capacity;  /* S: slots in the memory */
    int32_t reads;     /* R: slots that each object reads */
} mvos_read_shape;

typedef struct mvos_read_plan {
    int32_t splits;         /* parts of the memory that run side by side */
    uint32_t grid[3];       /* blocks of the main launch */
    size_t workspace_bytes; /* 0 if splits is 1 */
} mvos_read_plan;

/* MAJOR * 10000 + MINOR * 100 + PATCH of the library in use. */
MVOS_API int mvos_version(void);

/* The last failure of the calling thread, cause and remedy in one line; "" if there was none. */
MVOS_API const char *mvos_error_message(void);

/* Whether the library holds code for a compute capability: 1 or 0. Needs no driver. */
MVOS_API int mvos_supports(int major, int minor);

/* Plan a read on the current context's device, and load its code. Call it before capturing a CUDA
 * graph, since loading is no stream operation. */
MVOS_API mvos_status mvos_memory_read_plan(const mvos_read_shape *shape, mvos_read_plan *plan);

/* Launch the read. Device pointers, dense, 16-byte aligned:
 *   query [N, Ck], keys [S, N, Ck], values [S, K, N, Cv], slots int32 [K, R] (-1: none),
 *   out [K, N, Cv]; workspace: at least the plan's bytes, NULL if that is 0, not shared by reads
 *   that may run at the same time. stream: a CUstream or cudaStream_t, NULL for the default one. */
MVOS_API mvos_status mvos_memory_read(const mvos_read_shape *shape, const void *query,
                                      const void *keys, const void *values, const int32_t *slots,
                                      void *out, void *workspace, size_t workspace_bytes,
                                      void *stream);

#ifdef __cplusplus
}
#endif
#endif
