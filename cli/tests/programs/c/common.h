// What the test programs share: checks that end the program loudly, patterns that can be told apart page by page, and
// nothing that depends on time, on addresses or on the environment. A program prints the same bytes on every run.

#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define KIB ((size_t)1024)
#define MIB (KIB * KIB)
#define WORDS (PAGE / sizeof(uint64_t))

// Ends the program at once, without running anything that other threads may be in the middle of.
__attribute__((format(printf, 3, 4), noreturn, unused)) static void fail_at(const char *file, int line, const char *format, ...) {
    int saved = errno;
    char text[512];
    int at = snprintf(text, sizeof text, "%s:%d: ", file, line);
    va_list args;
    va_start(args, format);
    at += vsnprintf(text + at, sizeof text - (size_t)at, format, args);
    va_end(args);
    if (at > (int)sizeof text - 64) {
        at = (int)sizeof text - 64;
    }
    at += snprintf(text + at, sizeof text - (size_t)at, " (errno %d, pid %d)\n", saved, (int)getpid());
    if (write(STDERR_FILENO, text, (size_t)at) < 0) {
        _exit(2);
    }
    _exit(1);
}

#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            FAIL("%s", #condition);                                                                                    \
        }                                                                                                              \
    } while (0)

// Ends the program as one that can't be tried here, if the kernel is older.
__attribute__((unused)) static void needs_linux(int version, int sublevel) {
    struct utsname found;
    int major = 0, minor = 0;
    CHECK(uname(&found) == 0 && sscanf(found.release, "%d.%d", &major, &minor) == 2);
    if (major < version || (major == version && minor < sublevel)) {
        printf("it takes Linux %d.%d\n", version, sublevel);
        exit(77);
    }
}

// splitmix64: a good hash of its argument.
__attribute__((unused)) static inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

__attribute__((unused)) static inline uint64_t next_random(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    return mix(*state);
}

// Fills one page so that each of its words depends on `seed`; seed 0 stands for a page of zeros.
__attribute__((unused)) static void fill_page(void *page, uint64_t seed) {
    uint64_t *words = page;
    if (seed == 0) {
        memset(page, 0, PAGE);
        return;
    }
    uint64_t value = mix(seed);
    for (size_t i = 0; i < WORDS; i++) {
        words[i] = value + i * 0x0101010101010101u;
    }
}

// The index of the first word of the page that isn't what `fill_page` wrote, or -1.
__attribute__((unused)) static long first_difference(const void *page, uint64_t seed) {
    const volatile uint64_t *words = page;
    uint64_t value = seed == 0 ? 0 : mix(seed);
    uint64_t step = seed == 0 ? 0 : 0x0101010101010101u;
    for (size_t i = 0; i < WORDS; i++) {
        if (words[i] != value + i * step) {
            return (long)i;
        }
    }
    return -1;
}

#define CHECK_PAGE(page, seed)                                                                                         \
    do {                                                                                                               \
        long word_ = first_difference((page), (seed));                                                                 \
        if (word_ >= 0) {                                                                                              \
            FAIL("page %p with seed %#llx differs at word %ld: %#llx", (const void *)(page),                           \
                 (unsigned long long)(seed), word_, (unsigned long long)((const volatile uint64_t *)(page))[word_]);   \
        }                                                                                                              \
    } while (0)

__attribute__((unused)) static void *map_pages(size_t pages) {
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

// Far from what the kernel chooses for others, the C library's stacks of threads among them: nothing else comes where it was once it is unmapped or moved away.
__attribute__((unused)) static void *map_far(size_t pages) {
    static uintptr_t next = (uintptr_t)1 << 40;
    void *at = mmap((void *)next, pages * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(at == (void *)next);
    next += (pages + 1024) * PAGE;
    return at;
}

__attribute__((unused)) static size_t argument(int argc, char **argv, int index, size_t otherwise) {
    return index < argc ? strtoull(argv[index], NULL, 10) : otherwise;
}

// Waits for the child and returns its exit status; ends the program if a signal killed it.
__attribute__((unused)) static int status_of(pid_t child) {
    int status = 0;
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status)) {
        FAIL("child %d ended with wait status %#x", (int)child, status);
    }
    return WEXITSTATUS(status);
}

__attribute__((unused)) static void start_thread(pthread_t *thread, void *(*body)(void *), void *argument_of_body) {
    CHECK(pthread_create(thread, NULL, body, argument_of_body) == 0);
}

__attribute__((unused)) static void *join_thread(pthread_t thread) {
    void *result = NULL;
    CHECK(pthread_join(thread, &result) == 0);
    return result;
}

#endif
