/*
 * Whole blocks go to a coherent device and come back, and forks leave both processes right: `blocks [SPEC]`, on an emulated device unless another is
 * given. On device-DAX memory (`blocks coherent:dax=/dev/dax0.0,size=64M`) nothing but whole blocks goes there, and the device is mapped in their place.
 */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <pthread.h>
#include <sys/wait.h>

enum { BLOCKS = 3, BLOCK_PAGES = 512, REST = 5, PAGES = BLOCKS * BLOCK_PAGES + REST, WORDS = 512, ROUNDS = 6 };

static const size_t LENGTH = PAGES * HETMEM_PAGE_SIZE;
static const size_t BLOCK = BLOCK_PAGES * HETMEM_PAGE_SIZE;

static const char *spec = "coherent:emulated,size=64M";
/* Whether the device is mapped in the place of blocks. */
static int dax;

static hetmem_request out = {HETMEM_DEVICE(0), 0, 0}, home = {HETMEM_SYSTEM, 0, 0};

static hetmem_runtime *start(void)
{
    hetmem_config *config;
    hetmem_runtime *runtime;
    OK(hetmem_config_new(&config));
    OK(hetmem_config_add_device(config, spec));
    OK(hetmem_runtime_new(config, &runtime));
    hetmem_config_free(config);
    return runtime;
}

/* The first word of each page, which a thread counts up, is left out. */
static void fill(uint64_t *words, uint64_t seed)
{
    for (size_t i = 0; i < PAGES * WORDS; i++) {
        if (i % WORDS != 0) {
            words[i] = i ^ seed << 32;
        }
    }
}

static void holds(const uint64_t *words, uint64_t seed)
{
    for (size_t i = 0; i < PAGES * WORDS; i++) {
        EXPECT(i % WORDS == 0 || words[i] == (i ^ seed << 32));
    }
}

/* The bytes of `words` that are the device's own memory, by the kernel's list. */
static size_t laid(const uint64_t *words)
{
    char line[512];
    size_t bytes = 0;
    uintptr_t first = (uintptr_t)words, end = first + LENGTH;
    FILE *maps = fopen("/proc/self/maps", "r");
    EXPECT(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        if (strstr(line, "/dev/dax") != NULL && sscanf(line, "%lx-%lx", &from, &to) == 2 && from < end && to > first) {
            EXPECT(from >= first && to <= end);
            bytes += to - from;
        }
    }
    fclose(maps);
    return bytes;
}

/* All blocks, and only these where the device takes only these. */
static void place(hetmem_runtime *runtime, uint64_t *words)
{
    static hetmem_outcome outcomes[PAGES];
    static hetmem_place places[PAGES];
    size_t there = dax ? BLOCKS * BLOCK_PAGES : PAGES;
    OK(hetmem_migrate(runtime, words, LENGTH, &out, outcomes, PAGES, NULL));
    OK(hetmem_residency(runtime, words, LENGTH, places, PAGES));
    for (size_t page = 0; page < PAGES; page++) {
        if (page < there) {
            EXPECT(outcomes[page] == HETMEM_MOVED || outcomes[page] == HETMEM_KEPT_ALREADY_THERE);
            EXPECT(places[page] == HETMEM_DEVICE(0));
        } else {
            EXPECT(outcomes[page] == HETMEM_KEPT_PART_OF_BLOCK && places[page] == HETMEM_SYSTEM);
        }
    }
    EXPECT(laid(words) == (dax ? BLOCKS * BLOCK : 0));
}

static void bring_home(hetmem_runtime *runtime, uint64_t *words)
{
    uint64_t moved;
    OK(hetmem_migrate(runtime, words, LENGTH, &home, NULL, 0, &moved));
    EXPECT(moved == (dax ? BLOCKS * BLOCK_PAGES : PAGES));
    EXPECT(laid(words) == 0);
}

/* Counts up the first word of each page until it is told to end. */
static uint64_t *shared, counted;
static int over;
static void *count(void *argument)
{
    (void)argument;
    for (size_t page = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); page = (page + 7) % PAGES) {
        __atomic_fetch_add(&shared[page * WORDS], 1, __ATOMIC_RELAXED);
        counted++;
    }
    return NULL;
}

/* Has what its parent had at the fork, whatever that writes now, and a runtime of its own on another part of the device. */
static void in_child(hetmem_runtime *theirs, uint64_t *words, uint64_t seed, int written)
{
    char byte;
    bounded();
    EXPECT(laid(words) == 0);
    EXPECT(read(written, &byte, 1) == 1);
    holds(words, seed);
    fill(words, seed + 1000);
    REFUSED(hetmem_migrate(theirs, words, LENGTH, &out, NULL, 0, NULL), HETMEM_INVALID_INPUT, "of its own");

    hetmem_runtime *own = start();
    hetmem_mapping *mapping;
    OK(hetmem_map(own, LENGTH, HETMEM_FAULT_THREAD, &mapping));
    uint64_t *others = hetmem_mapping_address(mapping);
    memcpy(others, words, LENGTH);
    place(own, others);
    holds(others, seed + 1000);
    fill(others, seed + 2000);
    bring_home(own, others);
    holds(others, seed + 2000);
    holds(words, seed + 1000);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(own);
    _exit(0);
}

int main(int argc, char **argv)
{
    bounded();
    if (argc > 1) {
        spec = argv[1];
    }
    dax = strstr(spec, "dax=") != NULL;
    hetmem_runtime *runtime = start();
    hetmem_mapping *mapping;
    OK(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, &mapping));
    shared = hetmem_mapping_address(mapping);
    memset(shared, 0, LENGTH);

    /* There, used in place, and back. */
    fill(shared, 1);
    place(runtime, shared);
    holds(shared, 1);
    fill(shared, 2);
    place(runtime, shared);
    bring_home(runtime, shared);
    holds(shared, 2);

    pthread_t counter;
    EXPECT(pthread_create(&counter, NULL, count, NULL) == 0);
    for (uint64_t seed = 10; seed < 10 + ROUNDS; seed++) {
        int written[2], status;
        EXPECT(pipe(written) == 0);
        fill(shared, seed);
        place(runtime, shared);
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            in_child(runtime, shared, seed, written[0]);
        }
        holds(shared, seed);
        /* Pages that are the child's, too, until they are written. */
        place(runtime, shared);
        fill(shared, seed + 500);
        EXPECT(write(written[1], "", 1) == 1);
        EXPECT(waitpid(child, &status, 0) == child);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        holds(shared, seed + 500);
        EXPECT(close(written[0]) == 0 && close(written[1]) == 0);
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    EXPECT(pthread_join(counter, NULL) == 0);
    bring_home(runtime, shared);
    uint64_t sum = 0;
    for (size_t page = 0; page < PAGES; page++) {
        sum += shared[page * WORDS];
    }
    EXPECT(sum == counted);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    puts("ok");
    return 0;
}
