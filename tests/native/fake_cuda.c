/* A stand-in for libcuda that runs nothing and records everything, for check_launches.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fake_launch {
    char kernel[64];
    const unsigned char *image;
    unsigned grid[3], block[3], shared;
    void *stream;
    int parameters;
    uint64_t values[32];
} fake_launch;

/* Set by the test. A layout has a letter for each parameter of a kernel: p pointer, i int32. */
int fake_major = 8, fake_minor = 6, fake_multiprocessors = 84, fake_has_context = 1;
char fake_failing[64], fake_layout_read[32], fake_layout_merge[32];

/* Read by the test. */
fake_launch fake_launches[8];
int fake_launch_count, fake_load_count, fake_inits;
int fake_attribute_value; /* the last CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */

static struct {
    const unsigned char *image;
    char kernel[64];
} modules[256];

#define FAIL_IF_ASKED(name) \
    if (strcmp(fake_failing, name) == 0) return 719

int cuInit(unsigned flags) {
    FAIL_IF_ASKED("cuInit");
    fake_inits++;
    return flags == 0 ? 0 : 1;
}

/* cuda.bindings asks for every function of the driver; those that are not here stay null. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                        int *status) {
    Dl_info self;
    void *library;
    (void)version, (void)flags;
    if (dladdr((void *)&cuGetProcAddress_v2, &self) == 0) return 1;
    library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = library ? dlsym(library, name) : NULL;
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = 3;
    return ordinal == 0 ? 0 : 101;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = modules;
    return device == 3 ? 0 : 101;
}

int cuCtxSetCurrent(void *context) {
    fake_has_context = context != NULL;
    return 0;
}

int cuCtxSynchronize(void) { return 0; }

/* The host's memory serves as the device's. */
int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    *pointer = (uint64_t)(uintptr_t)calloc(bytes, 1);
    return *pointer ? 0 : 2;
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}

int cuKernelGetFunction(void **function, void *kernel) {
    FAIL_IF_ASKED("cuKernelGetFunction");
    *function = kernel;
    return 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = error == 719 ? "unspecified launch failure" : "invalid argument";
    return 0;
}

int cuCtxGetCurrent(void **context) {
    *context = fake_has_context ? modules : NULL;
    return 0;
}

int cuCtxGetDevice(int *device) {
    FAIL_IF_ASKED("cuCtxGetDevice");
    *device = 3;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    FAIL_IF_ASKED("cuDeviceGetAttribute");
    if (device != 3) return 101;
    if (attribute == 16) *value = fake_multiprocessors;
    else if (attribute == 75) *value = fake_major;
    else if (attribute == 76) *value = fake_minor;
    else return 1;
    return 0;
}

int cuLibraryLoadData(void **library, const void *code, void *a, void **b, unsigned c, void *d,
                      void **e, unsigned f) {
    FAIL_IF_ASKED("cuLibraryLoadData");
    const unsigned char *elf = code;
    unsigned char *copy;
    uint64_t table, size;
    uint16_t entry, entries;
    (void)a, (void)b, (void)d, (void)e;
    if (c || f || memcmp(elf, "\177ELF", 4) != 0) return 1;
    /* Like the driver, keep a copy. A cubin ends with its program headers. */
    memcpy(&table, elf + 0x20, 8);
    memcpy(&entry, elf + 0x36, 2);
    memcpy(&entries, elf + 0x38, 2);
    size = table + (uint64_t)entry * entries;
    copy = malloc(size);
    memcpy(copy, elf, size);
    modules[fake_load_count].image = copy;
    *library = &modules[fake_load_count++];
    return 0;
}

int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    FAIL_IF_ASKED("cuLibraryGetKernel");
    snprintf(((__typeof__(&modules[0]))library)->kernel, 64, "%s", name);
    *kernel = library;
    return 0;
}

int cuKernelSetAttribute(int attribute, int value, void *kernel, int device) {
    FAIL_IF_ASKED("cuKernelSetAttribute");
    if (attribute != 8 || kernel == NULL || device != 3) return 1;
    fake_attribute_value = value;
    return 0;
}

int cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {
    __typeof__(&modules[0]) module = kernel;
    fake_launch *l = &fake_launches[fake_launch_count % 8];
    const char *layout = strstr(module->kernel, "merge") ? fake_layout_merge : fake_layout_read;
    FAIL_IF_ASKED("cuLaunchKernel");
    if (extra != NULL) return 1;
    snprintf(l->kernel, sizeof l->kernel, "%s", module->kernel);
    l->image = module->image;
    l->grid[0] = gx, l->grid[1] = gy, l->grid[2] = gz;
    l->block[0] = bx, l->block[1] = by, l->block[2] = bz;
    l->shared = shared;
    l->stream = stream;
    for (l->parameters = 0; layout[l->parameters]; l->parameters++) {
        /* The driver reads as many bytes as the kernel's parameter has, and so do we. */
        l->values[l->parameters] = layout[l->parameters] == 'p'
                                       ? *(uint64_t *)parameters[l->parameters]
                                       : *(uint32_t *)parameters[l->parameters];
    }
    fake_launch_count++;
    return 0;
}
