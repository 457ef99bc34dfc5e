/* Threads share a runtime: some migrate, some touch, some map and free, some ask, and nobody loses a word or waits for ever. */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>

enum { PAGES = 256, ROUNDS = 300, WORDS = 512 };

static const size_t LENGTH = PAGES * HETMEM_PAGE_SIZE;

static hetmem_runtime *runtime;
static uint64_t *shared;

/* Counts up a word of each page; its own word, so that the sum is known at the end. */
static void *touch(void *argument)
{
    volatile uint64_t *word = shared + (uintptr_t)argument;
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t page = 0; page < PAGES; page++) {
            word[page * WORDS]++;
        }
    }
    return NULL;
}

static void *migrate(void *argument)
{
    hetmem_outcome outcomes[PAGES];
    hetmem_place places[PAGES];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        hetmem_request request = {(round + (uint32_t)(uintptr_t)argument) % 3, 0, 0};
        OK(hetmem_migrate(runtime, shared, LENGTH, &request, outcomes, PAGES, NULL));
        OK(hetmem_residency(runtime, shared, LENGTH, places, PAGES));
        for (size_t page = 0; page < PAGES; page++) {
            EXPECT(outcomes[page] <= HETMEM_KEPT_PART_OF_BLOCK && outcomes[page] != HETMEM_KEPT_UNMANAGED);
            EXPECT(places[page] <= HETMEM_DEVICE(1) || places[page] == HETMEM_MIGRATING);
        }
    }
    return NULL;
}

static void *map(void *argument)
{
    for (int round = 0; round < ROUNDS; round++) {
        hetmem_mapping *mapping;
        hetmem_request out = {HETMEM_DEVICE((uintptr_t)argument % 2), 0, 0};
        OK(hetmem_map(runtime, 16 * HETMEM_PAGE_SIZE, HETMEM_FAULT_THREAD, &mapping));
        unsigned char *bytes = hetmem_mapping_address(mapping);
        memset(bytes, (unsigned char)(round + 1), 16 * HETMEM_PAGE_SIZE);
        OK(hetmem_migrate(runtime, bytes, 16 * HETMEM_PAGE_SIZE, &out, NULL, 0, NULL));
        EXPECT(bytes[9 * HETMEM_PAGE_SIZE] == (unsigned char)(round + 1));
        hetmem_mapping_free(mapping);
    }
    return NULL;
}

/* Of threads that adopt the same memory at once, one may; the others are told. */
static uint64_t *contested;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int adopted;

static void *adopt(void *argument)
{
    (void)argument;
    hetmem_error *error = hetmem_adopt(runtime, contested, LENGTH, HETMEM_FAULT_THREAD);
    if (error == NULL) {
        pthread_mutex_lock(&lock);
        adopted++;
        pthread_mutex_unlock(&lock);
    } else {
        EXPECT(strstr(hetmem_error_message(error), "managed already") != NULL);
        hetmem_error_free(error);
    }
    return NULL;
}

/* No function is a cancellation point: a thread that has been cancelled goes on until one that is. */
static void *cancelled(void *argument)
{
    bool *all = argument;
    EXPECT(pthread_cancel(pthread_self()) == 0);
    hetmem_runtime *own = two_devices();
    hetmem_mapping *mapping;
    hetmem_request out = {HETMEM_DEVICE(1), 0, 0};
    OK(hetmem_map(own, LENGTH, HETMEM_FAULT_THREAD, &mapping));
    unsigned char *bytes = hetmem_mapping_address(mapping);
    memset(bytes, 7, LENGTH);
    OK(hetmem_migrate(own, bytes, LENGTH, &out, NULL, 0, NULL));
    EXPECT(bytes[LENGTH - 1] == 7);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(own);
    *all = true;
    pthread_testcancel();
    return NULL;
}

static void cancel_one(void)
{
    pthread_t thread;
    bool all = false;
    void *result;
    EXPECT(pthread_create(&thread, NULL, cancelled, &all) == 0);
    EXPECT(pthread_join(thread, &result) == 0);
    EXPECT(result == PTHREAD_CANCELED && all);
}

int main(void)
{
    bounded();
    cancel_one();
    runtime = two_devices();
    hetmem_mapping *mapping;
    OK(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, &mapping));
    shared = hetmem_mapping_address(mapping);
    contested = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(contested != MAP_FAILED);

    static void *(*const work[])(void *) = {touch, touch, touch, migrate, migrate, map, map, adopt, adopt, adopt};
    enum { THREADS = sizeof work / sizeof work[0] };
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&threads[i], NULL, work[i], (void *)i) == 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        EXPECT(pthread_join(threads[i], NULL) == 0);
    }
    for (size_t page = 0; page < PAGES; page++) {
        for (size_t thread = 0; thread < 3; thread++) {
            EXPECT(shared[page * WORDS + thread] == ROUNDS);
        }
    }
    EXPECT(adopted == 1);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    munmap(contested, LENGTH);
    puts("ok");
    return 0;
}
