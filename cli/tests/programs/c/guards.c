// Guard markers: installed and removed through the C library and past it, over pages that may be anywhere. What they discard reads as zeros
// once they are gone, and a touch of one ends in SIGSEGV. Where both calls are made past the C library nobody can know, so pages are written before they are
// read.
//
// Usage: guards [ROUNDS]

#include "field.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGES = 1024, THREADS = 2, LONGEST = 24 };

static _Thread_local sigjmp_buf away;
static size_t rounds;
static int self;

static void on_signal(int signal) {
    (void)signal;
    siglongjmp(away, 1);
}

static bool touch_fails(volatile unsigned char *page) {
    if (sigsetjmp(away, 1) != 0) {
        return true;
    }
    (void)*page;
    return false;
}

static int advise(bool bare, void *at, size_t bytes, int advice) {
    return bare ? (int)syscall(SYS_madvise, at, bytes, advice) : madvise(at, bytes, advice);
}

// By process_madvise(2) of the C library, where the kernel takes it for guards.
static int remove_as_process(void *at, size_t bytes) {
    struct iovec vector = {at, bytes};
    ssize_t advised = process_madvise(self, &vector, 1, MADV_GUARD_REMOVE, 0);
    return advised == (ssize_t)bytes ? 0 : madvise(at, bytes, MADV_GUARD_REMOVE);
}

static void *work(void *argument) {
    uint64_t random = (uintptr_t)argument + 1;
    unsigned char *base = map_pages(PAGES);
    uint64_t *seeds = calloc(PAGES, sizeof *seeds);
    CHECK(seeds != NULL);
    for (uint64_t i = 0; i < PAGES; i++) {
        seeds[i] = mix(i + random);
        fill_page(base + i * PAGE, seeds[i]);
    }
    for (size_t round = 0; round < rounds; round++) {
        uint64_t count = 1 + next_random(&random) % LONGEST;
        uint64_t first = next_random(&random) % (PAGES - count);
        bool bare_install = next_random(&random) % 2, bare_remove = next_random(&random) % 2;
        unsigned char *at = base + first * PAGE;
        CHECK(advise(bare_install, at, count * PAGE, MADV_GUARD_INSTALL) == 0);
        CHECK(touch_fails(at) && touch_fails(at + (count - 1) * PAGE));
        CHECK(advise(bare_install, at + 1, PAGE, MADV_GUARD_INSTALL) == -1 && errno == EINVAL);
        if (!bare_remove && round % 2 == 0) {
            CHECK(remove_as_process(at, count * PAGE) == 0);
        } else {
            CHECK(advise(bare_remove, at, count * PAGE, MADV_GUARD_REMOVE) == 0);
        }
        for (uint64_t i = first; i < first + count; i++) {
            if (!bare_install || !bare_remove) {
                CHECK_PAGE(base + i * PAGE, 0);
            }
            seeds[i] = mix(round * PAGES + i);
            fill_page(base + i * PAGE, seeds[i]);
        }
        for (int look = 0; look < 32; look++) {
            uint64_t i = next_random(&random) % PAGES;
            CHECK_PAGE(base + i * PAGE, seeds[i]);
        }
    }
    for (uint64_t i = 0; i < PAGES; i++) {
        CHECK_PAGE(base + i * PAGE, seeds[i]);
    }
    free(seeds);
    CHECK(munmap(base, PAGES * PAGE) == 0);
    return NULL;
}

int main(int argc, char **argv) {
    rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000;
    void *probe = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(probe != MAP_FAILED);
    if (madvise(probe, PAGE, MADV_GUARD_INSTALL) != 0) {
        not_here("no guard markers in this kernel");
    }
    self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    struct sigaction action = {.sa_handler = on_signal};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    printf("%zu rounds in each of %d threads\n", rounds, THREADS);
    return 0;
}
