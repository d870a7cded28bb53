/* The table of embedded machine code, written by embed.py. */
#ifndef MVOS_KERNELS_H
#define MVOS_KERNELS_H

typedef struct mvos_kernel {
    int major, minor;
    int exact; /* code for sm_90a and the like runs on that capability alone */
    int merge; /* 1: joins the splits, 0: reads */
    int dtype, key_dim, value_dim;
    unsigned block_m, block_n, block_v; /* merge: rows, 0, columns */
    int resident;                       /* blocks that fit on a multiprocessor */
    unsigned threads, shared;
    const char *symbol;
    const unsigned char *image;
} mvos_kernel;

extern const mvos_kernel mvos_kernels[];
extern const int mvos_kernel_count;

/* The driver's handle of each kernel, once loaded: it belongs to no context, and serves all. */
extern void *mvos_loaded[];

/* The split model's constants, from kernels/tiles.py. */
extern const int mvos_split_limit, mvos_alone, mvos_start, mvos_merge_cost;

#endif
