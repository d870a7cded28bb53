// The header compiles as C++, and without a driver the library says so instead of crashing.
#include <cstdio>
#include <cstring>

#include "mvos.h"

static int failures = 0;

static void expect(bool condition, const char *what) {
    if (condition) return;
    std::printf("FAILED: %s (message: %s)\n", what, mvos_error_message());
    ++failures;
}

int main() {
    expect(std::strcmp(mvos_error_message(), "") == 0, "no message before the first failure");
    expect(mvos_version() ==
               MVOS_VERSION_MAJOR * 10000 + MVOS_VERSION_MINOR * 100 + MVOS_VERSION_PATCH,
           "library and header agree on the version");
    expect(mvos_supports(6, 1) == 0, "no code for Pascal");
    mvos_read_shape shape = {MVOS_FP16, 1620, 64, 64, 1, 2, 2};
    mvos_read_plan plan;
    expect(mvos_memory_read_plan(&shape, &plan) == MVOS_NO_DRIVER, "no driver is an error code");
    expect(std::strstr(mvos_error_message(), "install the NVIDIA driver") != nullptr,
           "the message names the remedy");
    shape.reads = 0;
    expect(mvos_memory_read_plan(&shape, &plan) == MVOS_INVALID, "arguments come first");
    expect(std::strstr(mvos_error_message(), "shape.reads must be at least 1, got 0") != nullptr,
           "the message names the field");
    expect(mvos_memory_read_plan(nullptr, &plan) == MVOS_INVALID, "a null shape");
    return failures != 0;
}
