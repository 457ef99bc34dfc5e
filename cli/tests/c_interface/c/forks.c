/* A forked child finds the bytes, can't use its parent's handles, and has a runtime of its own if it wants one. */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <pthread.h>
#include <sys/wait.h>

enum { PAGES = 64 };

static const size_t LENGTH = PAGES * HETMEM_PAGE_SIZE;

static void holds(const volatile unsigned char *bytes)
{
    for (size_t i = 0; i < LENGTH; i++) {
        EXPECT(bytes[i] == (unsigned char)(i % 251));
    }
}

/* Keeps the library's heap busy, so that forks find it locked. */
static int over;
static void *refuse(void *argument)
{
    (void)argument;
    while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
        REFUSED(hetmem_config_new(NULL), HETMEM_INVALID_INPUT, "out is NULL");
    }
    return NULL;
}

static void in_child(hetmem_runtime *runtime, hetmem_mapping *mapping, unsigned char *bytes)
{
    hetmem_request out = {HETMEM_DEVICE(0), 0, 0};
    hetmem_statistics counted;
    hetmem_place place;
    hetmem_mapping *other;
    bounded();
    holds(bytes);
    REFUSED(hetmem_migrate(runtime, bytes, LENGTH, &out, NULL, 0, NULL), HETMEM_INVALID_INPUT, "of its own");
    REFUSED(hetmem_residency(runtime, bytes, HETMEM_PAGE_SIZE, &place, 1), HETMEM_INVALID_INPUT, "of its own");
    REFUSED(hetmem_release(runtime, bytes, LENGTH), HETMEM_INVALID_INPUT, "of its own");
    REFUSED(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, &other), HETMEM_INVALID_INPUT, "of its own");
    REFUSED(hetmem_statistics_get(runtime, &counted, sizeof counted), HETMEM_INVALID_INPUT, "of its own");
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    holds(bytes);

    hetmem_runtime *own = two_devices();
    uint64_t moved;
    OK(hetmem_map(own, LENGTH, HETMEM_FAULT_THREAD, &other));
    memcpy(hetmem_mapping_address(other), bytes, LENGTH);
    OK(hetmem_migrate(own, hetmem_mapping_address(other), LENGTH, &out, NULL, 0, &moved));
    EXPECT(moved == PAGES);
    holds(hetmem_mapping_address(other));
    hetmem_mapping_free(other);
    hetmem_runtime_free(own);
    _exit(0);
}

int main(void)
{
    bounded();
    hetmem_runtime *runtime = two_devices();
    hetmem_mapping *mapping;
    OK(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, &mapping));
    unsigned char *bytes = hetmem_mapping_address(mapping);
    for (size_t i = 0; i < LENGTH; i++) {
        bytes[i] = (unsigned char)(i % 251);
    }
    pthread_t busy;
    EXPECT(pthread_create(&busy, NULL, refuse, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        hetmem_request out = {HETMEM_DEVICE(round % 2), 0, 0}, home = {HETMEM_SYSTEM, 0, 0};
        OK(hetmem_migrate(runtime, bytes, LENGTH, &out, NULL, 0, NULL));
        OK(hetmem_migrate(runtime, bytes, LENGTH, &home, NULL, 0, NULL));
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            in_child(runtime, mapping, bytes);
        }
        /* What the child freed is the parent's still. */
        holds(bytes);
        int status;
        EXPECT(waitpid(child, &status, 0) == child);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    EXPECT(pthread_join(busy, NULL) == 0);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    puts("ok");
    return 0;
}
