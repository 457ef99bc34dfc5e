// Allocations of all sizes by several threads, with what sanitizers watch: the heap, strings, locks, stacks.
//
// Usage: allocations ROUNDS|overflow

#include "common.h"

#include <ctype.h>

enum { THREADS = 3, BLOCKS = 256 };

static size_t rounds;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t total;

static uint64_t use_heap(uint64_t seed) {
    uint64_t state = seed, sum = 0;
    char *blocks[BLOCKS] = {0};
    for (size_t step = 0; step < 4 * BLOCKS; step++) {
        size_t i = next_random(&state) % BLOCKS, length = next_random(&state) % (step % 16 == 0 ? 200000 : 2000) + 1;
        if (blocks[i] != NULL) {
            sum += strlen(blocks[i]);
        }
        char *block = step % 3 == 0 ? realloc(blocks[i], length + 1) : malloc(length + 1);
        CHECK(block != NULL);
        if (step % 3 != 0) {
            free(blocks[i]);
        }
        memset(block, 'a' + (int)(length % 26), length);
        block[length] = 0;
        blocks[i] = block;
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        sum += blocks[i] == NULL ? 0 : (uint64_t)blocks[i][0];
        free(blocks[i]);
    }
    return sum;
}

static void *work(void *argument_of_body) {
    for (size_t round = 0; round < rounds; round++) {
        uint64_t sum = use_heap(round * THREADS + (uintptr_t)argument_of_body);
        CHECK(pthread_mutex_lock(&lock) == 0);
        total += sum;
        CHECK(pthread_mutex_unlock(&lock) == 0);
    }
    return NULL;
}

__attribute__((noinline)) static char look(const char *text, size_t at) {
    return ((const volatile char *)text)[at];
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    if (!isdigit((unsigned char)argv[1][0])) {
        char *text = malloc(64);
        CHECK(text != NULL);
        memset(text, 1, 64);
        int found = look(text, strlen(argv[1]) * 8);
        free(text);
        return found & 1;
    }
    rounds = argument(argc, argv, 1, 10);
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        start_thread(&threads[i], work, (void *)(uintptr_t)i);
    }
    for (size_t i = 0; i < THREADS; i++) {
        join_thread(threads[i]);
    }
    pid_t child = fork();
    if (child == 0) {
        _exit(use_heap(7) != 0 ? 3 : 4);
    }
    CHECK(status_of(child) == 3);
    printf("total: %llu\n", (unsigned long long)total);
    return 0;
}
