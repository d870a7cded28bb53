/* See mvos.h. The launch plan is that of kernels/tiles.py, number for number. */
#include "mvos.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "kernels.h"

/* ---- the driver: exactly the calls in use, so that no CUDA header is needed ---- */

typedef int CUresult, CUdevice;
typedef void *CUcontext, *CUlibrary, *CUkernel, *CUstream;

enum { ATTRIBUTE_MULTIPROCESSORS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76 };
enum { FUNCTION_MAX_DYNAMIC_SHARED = 8 };
enum { DEFAULT_SHARED_LIMIT = 48 * 1024 };

static struct {
    CUresult (*init)(unsigned);
    CUresult (*error_string)(CUresult, const char **);
    CUresult (*current_context)(CUcontext *);
    CUresult (*context_device)(CUdevice *);
    CUresult (*attribute)(int *, int, CUdevice);
    CUresult (*load)(CUlibrary *, const void *, void *, void **, unsigned, void *, void **,
                     unsigned);
    CUresult (*kernel)(CUkernel *, CUlibrary, const char *);
    CUresult (*set_kernel_attribute)(int, int, CUkernel, CUdevice);
    CUresult (*launch)(CUkernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       unsigned, CUstream, void **, void **);
    int ready;
} cuda;

/* One lock for the driver table and the loaded kernels: it is held for microseconds. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static _Thread_local char message[512];

static mvos_status fail(mvos_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

static mvos_status check(CUresult result, const char *call) {
    const char *text = NULL;
    if (result == 0) return MVOS_OK;
    if (cuda.error_string == NULL || cuda.error_string(result, &text) != 0 || text == NULL)
        text = "unknown error";
    return fail(MVOS_CUDA_ERROR, "%s failed: %s (%d)", call, text, result);
}

static mvos_status open_driver(void) {
    void *library;
    int i;
    if (cuda.ready) return MVOS_OK;
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return fail(MVOS_NO_DRIVER, "cannot load libcuda.so.1 (%s); install the NVIDIA driver",
                    dlerror());
    {
        struct {
            const char *name;
            void *slot;
        } wanted[] = {
            {"cuInit", &cuda.init},
            {"cuGetErrorString", &cuda.error_string},
            {"cuCtxGetCurrent", &cuda.current_context},
            {"cuCtxGetDevice", &cuda.context_device},
            {"cuDeviceGetAttribute", &cuda.attribute},
            {"cuLibraryLoadData", &cuda.load},
            {"cuLibraryGetKernel", &cuda.kernel},
            {"cuKernelSetAttribute", &cuda.set_kernel_attribute},
            {"cuLaunchKernel", &cuda.launch},
        };
        for (i = 0; i < (int)(sizeof wanted / sizeof *wanted); i++) {
            /* POSIX lets a function pointer be stored through a void pointer. */
            *(void **)wanted[i].slot = dlsym(library, wanted[i].name);
            if (*(void **)wanted[i].slot == NULL)
                return fail(MVOS_NO_DRIVER,
                            "libcuda.so.1 has no %s; install driver 525 (CUDA 12.0) or newer",
                            wanted[i].name);
        }
    }
    {
        mvos_status status = check(cuda.init(0), "cuInit");
        if (status != MVOS_OK) return status;
    }
    cuda.ready = 1;
    return MVOS_OK;
}

/* ---- which kernel ---- */

static int runs_on(const mvos_kernel *k, int major, int minor) {
    return k->major == major && (k->exact ? k->minor == minor : k->minor <= minor);
}

static int ceil_div(int64_t a, int64_t b) { return (int)((a + b - 1) / b); }

/* value_block of kernels/tiles.py */
static unsigned value_block(const mvos_read_shape *s) {
    int wide = s->value_dim % 128 == 0 || (s->value_dim == 64 && s->objects > 1);
    return s->dtype == MVOS_FP16 && wide ? 128 : 64;
}

/* The newest code that runs on the capability; -1 if there is none. */
static int find(const mvos_read_shape *s, int merge, int major, int minor) {
    int i, best = -1;
    for (i = 0; i < mvos_kernel_count; i++) {
        const mvos_kernel *k = &mvos_kernels[i];
        if (!runs_on(k, major, minor) || k->merge != merge || k->dtype != (int)s->dtype ||
            k->value_dim != s->value_dim)
            continue;
        if (!merge && (k->key_dim != s->key_dim || k->block_v != value_block(s))) continue;
        if (best < 0 || k->minor > mvos_kernels[best].minor) best = i;
    }
    return best;
}

/* choose_splits of kernels/tiles.py */
static int choose_splits(int64_t blocks, int64_t steps, int multiprocessors, int resident) {
    int64_t best_cost = 0;
    int s, best = 1, limit = steps < mvos_split_limit ? (int)steps : mvos_split_limit;
    for (s = 1; s <= limit; s++) {
        int b = ceil_div(blocks * s, multiprocessors);
        int together = b < resident ? b : resident;
        int64_t cost = (int64_t)ceil_div(b, resident) * (ceil_div(steps, s) + mvos_start) *
                       (together > mvos_alone ? together : mvos_alone);
        if (s > 1) cost += mvos_merge_cost + s;
        if (s == 1 || cost < best_cost) best = s, best_cost = cost;
    }
    return best;
}

static mvos_status get_kernel(int index, CUdevice device, CUkernel *kernel) {
    const mvos_kernel *k = &mvos_kernels[index];
    CUlibrary library;
    mvos_status status;
    if (mvos_loaded[index] == NULL) {
        CUkernel found;
        status = check(cuda.load(&library, k->image, NULL, NULL, 0, NULL, NULL, 0),
                       "cuLibraryLoadData");
        if (status != MVOS_OK) return status;
        status = check(cuda.kernel(&found, library, k->symbol), "cuLibraryGetKernel");
        if (status != MVOS_OK) return status;
        mvos_loaded[index] = found;
    }
    if (k->shared > DEFAULT_SHARED_LIMIT) {
        status = check(cuda.set_kernel_attribute(FUNCTION_MAX_DYNAMIC_SHARED, (int)k->shared,
                                                 mvos_loaded[index], device),
                       "cuKernelSetAttribute");
        if (status != MVOS_OK) return status;
    }
    *kernel = mvos_loaded[index];
    return MVOS_OK;
}

typedef struct launch_plan {
    mvos_read_plan public;
    const mvos_kernel *read, *merge;
    CUkernel read_kernel, merge_kernel;
} launch_plan;

static mvos_status check_shape(const mvos_read_shape *s) {
    if (s == NULL) return fail(MVOS_INVALID, "shape is NULL");
    if (s->dtype != MVOS_FP16 && s->dtype != MVOS_FP32)
        return fail(MVOS_INVALID, "shape.dtype must be MVOS_FP16 or MVOS_FP32, got %d",
                    (int)s->dtype);
#define POSITIVE(field)                                                                       \
    if (s->field < 1) return fail(MVOS_INVALID, "shape." #field " must be at least 1, got %d", \
                                  (int)s->field)
    POSITIVE(positions);
    POSITIVE(key_dim);
    POSITIVE(value_dim);
    POSITIVE(objects);
    POSITIVE(capacity);
    POSITIVE(reads);
#undef POSITIVE
    /* The kernels count in 32 bits within one slot and one object's reads. */
    if ((int64_t)s->objects * s->positions * s->value_dim > INT32_MAX ||
        (int64_t)s->positions * s->key_dim > INT32_MAX ||
        (int64_t)s->reads * s->positions * mvos_split_limit > INT32_MAX ||
        (int64_t)s->objects * s->reads > INT32_MAX)
        return fail(MVOS_INVALID, "shape is too large: a slot must hold fewer than 2^31 elements");
    return MVOS_OK;
}

/* Called with the lock held. */
static mvos_status make_plan(const mvos_read_shape *s, launch_plan *p) {
    CUcontext context = NULL;
    CUdevice device = 0;
    int major = 0, minor = 0, multiprocessors = 0, read, merge;
    mvos_status status = open_driver();
    if (status != MVOS_OK) return status;
    if (cuda.current_context(&context) != 0 || context == NULL)
        return fail(MVOS_NO_CONTEXT,
                    "the calling thread has no current CUDA context; call cudaSetDevice or "
                    "cuCtxSetCurrent first");
    if ((status = check(cuda.context_device(&device), "cuCtxGetDevice")) != MVOS_OK ||
        (status = check(cuda.attribute(&major, ATTRIBUTE_MAJOR, device),
                        "cuDeviceGetAttribute")) != MVOS_OK ||
        (status = check(cuda.attribute(&minor, ATTRIBUTE_MINOR, device),
                        "cuDeviceGetAttribute")) != MVOS_OK ||
        (status = check(cuda.attribute(&multiprocessors, ATTRIBUTE_MULTIPROCESSORS, device),
                        "cuDeviceGetAttribute")) != MVOS_OK)
        return status;
    if (!mvos_supports(major, minor))
        return fail(MVOS_UNSUPPORTED,
                    "this library holds no code for compute capability %d.%d; build it with "
                    "-DMVOS_TARGETS=...,sm_%d%d if Triton supports that",
                    major, minor, major, minor);
    read = find(s, 0, major, minor);
    merge = find(s, 1, major, minor);
    if (read < 0 || merge < 0)
        return fail(MVOS_UNSUPPORTED,
                    "this library holds no memory read with Ck = %d, Cv = %d; build it with "
                    "-DMVOS_KEY_DIM and -DMVOS_VALUE_DIM",
                    s->key_dim, s->value_dim);
    p->read = &mvos_kernels[read];
    p->merge = &mvos_kernels[merge];
    p->public.grid[0] = (unsigned)ceil_div(s->positions, p->read->block_m);
    p->public.grid[1] = (unsigned)ceil_div((int64_t)s->objects * s->value_dim, p->read->block_v);
    p->public.splits = choose_splits((int64_t)p->public.grid[0] * p->public.grid[1],
                                     (int64_t)s->reads * ceil_div(s->positions, p->read->block_n),
                                     multiprocessors, p->read->resident);
    p->public.grid[2] = (unsigned)p->public.splits;
    p->public.workspace_bytes = 0;
    if (p->public.splits > 1)
        p->public.workspace_bytes = (size_t)p->public.splits * (size_t)s->objects *
                                    (size_t)s->positions * (size_t)(s->value_dim + 1) *
                                    sizeof(float);
    if ((status = get_kernel(read, device, &p->read_kernel)) != MVOS_OK) return status;
    return p->public.splits > 1 ? get_kernel(merge, device, &p->merge_kernel) : MVOS_OK;
}

static mvos_status plan_locked(const mvos_read_shape *s, launch_plan *p) {
    mvos_status status = check_shape(s);
    if (status != MVOS_OK) return status;
    pthread_mutex_lock(&lock);
    status = make_plan(s, p);
    pthread_mutex_unlock(&lock);
    return status;
}

/* ---- the public functions ---- */

int mvos_version(void) {
    return MVOS_VERSION_MAJOR * 10000 + MVOS_VERSION_MINOR * 100 + MVOS_VERSION_PATCH;
}

const char *mvos_error_message(void) { return message; }

int mvos_supports(int major, int minor) {
    int i;
    for (i = 0; i < mvos_kernel_count; i++)
        if (runs_on(&mvos_kernels[i], major, minor)) return 1;
    return 0;
}

mvos_status mvos_memory_read_plan(const mvos_read_shape *shape, mvos_read_plan *plan) {
    launch_plan p;
    mvos_status status;
    if (plan == NULL) return fail(MVOS_INVALID, "plan is NULL");
    status = plan_locked(shape, &p);
    if (status == MVOS_OK) *plan = p.public;
    return status;
}

mvos_status mvos_memory_read(const mvos_read_shape *shape, const void *query, const void *keys,
                             const void *values, const int32_t *slots, void *out, void *workspace,
                             size_t workspace_bytes, void *stream) {
    launch_plan p;
    mvos_status status;
    struct {
        const char *name;
        const void *pointer;
        uintptr_t alignment;
    } given[] = {{"query", query, 16}, {"keys", keys, 16}, {"values", values, 16},
                 {"slots", slots, 16}, {"out", out, 16},   {"workspace", workspace, 16}};
    size_t i;
    for (i = 0; i < 6; i++) {
        if (given[i].pointer == NULL && i < 5)
            return fail(MVOS_INVALID, "%s is NULL", given[i].name);
        if ((uintptr_t)given[i].pointer % given[i].alignment)
            return fail(MVOS_INVALID, "%s must be aligned to %d bytes, got %p", given[i].name,
                        (int)given[i].alignment, given[i].pointer);
    }
    if ((status = plan_locked(shape, &p)) != MVOS_OK) return status;
    if (p.public.splits > 1 && (workspace == NULL || workspace_bytes < p.public.workspace_bytes))
        return fail(MVOS_INVALID, "workspace must hold %zu bytes, got %zu at %p",
                    p.public.workspace_bytes, workspace_bytes, workspace);
    {
        int32_t splits = p.public.splits, rows = shape->objects * shape->positions;
        int32_t positions = shape->positions, objects = shape->objects;
        int32_t reads = shape->reads, capacity = shape->capacity;
        /* Partial readouts first, then their log-sum-exps. Unused, but never null, without splits. */
        void *partial = splits > 1 ? workspace : out;
        void *lse = splits > 1 ? (float *)workspace + (size_t)splits * (size_t)rows *
                                                          (size_t)shape->value_dim
                               : out;
        void *scratch = NULL, *profile = NULL; /* Triton's own, unused by these kernels */
        void *read_parameters[] = {&query,   &keys,      &values,  &slots,    &out,
                                   &partial, &lse,       &positions, &objects, &reads,
                                   &capacity, &splits,   &scratch, &profile};
        void *merge_parameters[] = {&partial, &lse, &out, &rows, &splits, &scratch, &profile};
        status = check(cuda.launch(p.read_kernel, p.public.grid[0], p.public.grid[1],
                                   p.public.grid[2], p.read->threads, 1, 1, p.read->shared, stream,
                                   read_parameters, NULL),
                       "cuLaunchKernel of the read");
        if (status != MVOS_OK || splits == 1) return status;
        return check(cuda.launch(p.merge_kernel, (unsigned)ceil_div(rows, p.merge->block_m),
                                 (unsigned)shape->value_dim / p.merge->block_v, 1,
                                 p.merge->threads, 1, 1, p.merge->shared, stream, merge_parameters,
                                 NULL),
                     "cuLaunchKernel of the merge");
    }
}
