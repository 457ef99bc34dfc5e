// Runs the `main` of a program that was linked as a library: what that is linked with comes and goes by dlopen(3) and dlclose(3). A fork after
// that runs nothing of what has gone.
//
// Usage: opened LIBRARY [ARGUMENT]...

#include "common.h"

#include <dlfcn.h>

int main(int argc, char **argv) {
    CHECK(argc > 1);
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        FAIL("%s", dlerror());
    }
    int (*run)(int, char **);
    *(void **)&run = dlsym(library, "main");
    CHECK(run != NULL);
    int status = run(argc - 1, argv + 1);
    CHECK(dlclose(library) == 0);
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    CHECK(status_of(child) == 0);
    return status;
}
