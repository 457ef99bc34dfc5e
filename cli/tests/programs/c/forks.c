// A parent fills memory and forks again and again; each child compares everything with what the parent had at that
// moment, writes over part of it and compares again, while the parent does the same to its own. Some children fork
// in their turn, and some forks happen while other threads write.
//
// Usage: forks [ROUNDS] [PAGES]

#include "common.h"

#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { STATIC_PAGES = 512, BLOCKS = 256, WRITERS = 3 };

static _Alignas(4096) unsigned char in_bss[STATIC_PAGES * PAGE];

// All memory of the test: pages here and there, and the seed of each.
static size_t pages;
static unsigned char **page_at;
static uint64_t *seed_of;

static void check_all(void) {
    for (size_t i = 0; i < pages; i++) {
        CHECK_PAGE(page_at[i], seed_of[i]);
    }
}

static void write_some(uint64_t seed, uint64_t every) {
    uint64_t state = seed;
    for (size_t i = 0; i < pages; i++) {
        if (next_random(&state) % every == 0) {
            CHECK_PAGE(page_at[i], seed_of[i]);
            seed_of[i] = mix(seed ^ i) | 1;
            fill_page(page_at[i], seed_of[i]);
        }
    }
}

static int live_as_child(size_t round, int depth) {
    if (round % 2 == 0) {
        check_all();
    }
    write_some(round * 10 + (uint64_t)depth, 3);
    if (depth < 2 && round % 3 == 0) {
        pid_t child = fork();
        if (child == 0) {
            _exit(live_as_child(round, depth + 1));
        }
        write_some(round * 100 + (uint64_t)depth, 5);
        CHECK(status_of(child) == 40 + depth + 1);
    }
    check_all();
    return 40 + depth;
}

static void fork_and_compare(size_t rounds) {
    for (size_t round = 0; round < rounds; round++) {
        pid_t child = fork();
        if (child == 0) {
            _exit(live_as_child(round, 0));
        }
        write_some(1000 + round, 4);
        check_all();
        CHECK(status_of(child) == 40);
        check_all();
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < pages; i++) {
        sum = mix(sum ^ seed_of[i]);
    }
    printf("forks: %zu %llx\n", rounds, (unsigned long long)sum);
}

// Several children at a time: a page is shared by many until each writes.
static void fork_a_crowd(size_t rounds) {
    for (size_t round = 0; round < rounds; round++) {
        pid_t crowd[4];
        for (int i = 0; i < 4; i++) {
            crowd[i] = fork();
            if (crowd[i] == 0) {
                write_some(round * 7 + (uint64_t)i, 2 + (uint64_t)i);
                check_all();
                _exit(i);
            }
        }
        write_some(5000 + round, 6);
        for (int i = 0; i < 4; i++) {
            CHECK(status_of(crowd[i]) == i);
        }
        check_all();
    }
    printf("crowds: %zu\n", rounds);
}

static _Atomic bool stop;
static _Atomic uint64_t written;

static void *keep_writing(void *argument_of_body) {
    size_t self = (size_t)(uintptr_t)argument_of_body;
    unsigned char *own = map_pages(256);
    uint64_t count = 0;
    while (!atomic_load(&stop)) {
        unsigned char *page = own + (count % 256) * PAGE;
        CHECK_PAGE(page, count < 256 ? 0 : mix(self + count - 256) | 1);
        fill_page(page, mix(self + count) | 1);
        count++;
        atomic_fetch_add(&written, 1);
    }
    CHECK(munmap(own, 256 * PAGE) == 0);
    return NULL;
}

// A child of a process with threads has one thread, and all of the memory.
static void fork_beside_threads(size_t rounds) {
    pthread_t ids[WRITERS];
    for (size_t i = 0; i < WRITERS; i++) {
        start_thread(&ids[i], keep_writing, (void *)(uintptr_t)(i * 1000000));
    }
    for (size_t round = 0; round < rounds; round++) {
        uint64_t before = atomic_load(&written);
        while (atomic_load(&written) < before + 64) {
            CHECK(sched_yield() == 0);
        }
        pid_t child = fork();
        if (child == 0) {
            check_all();
            write_some(round, 8);
            check_all();
            _exit(7);
        }
        write_some(9000 + round, 8);
        CHECK(status_of(child) == 7);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < WRITERS; i++) {
        join_thread(ids[i]);
    }
    check_all();
    printf("forks beside threads: %zu\n", rounds);
}

// What the child inherits differently: wiped and left-out ranges.
static void fork_with_advice(size_t rounds) {
    for (size_t round = 0; round < rounds; round++) {
        unsigned char *wiped = map_pages(64);
        unsigned char *kept = map_pages(64);
        for (size_t i = 0; i < 64; i++) {
            fill_page(wiped + i * PAGE, round * 64 + i + 1);
            fill_page(kept + i * PAGE, round * 64 + i + 1);
        }
        CHECK(madvise(wiped, 64 * PAGE, MADV_WIPEONFORK) == 0);
        pid_t child = fork();
        if (child == 0) {
            for (size_t i = 0; i < 64; i++) {
                CHECK_PAGE(wiped + i * PAGE, 0);
                CHECK_PAGE(kept + i * PAGE, round * 64 + i + 1);
            }
            _exit(9);
        }
        CHECK(status_of(child) == 9);
        for (size_t i = 0; i < 64; i++) {
            CHECK_PAGE(wiped + i * PAGE, round * 64 + i + 1);
        }
        CHECK(munmap(wiped, 64 * PAGE) == 0 && munmap(kept, 64 * PAGE) == 0);
    }
    printf("forks with advice: %zu\n", rounds);
}

// By the system call itself, which no handler of the C library notices. Without the privilege to be told of forks nobody could help
// the child, so it is not tried.
static void fork_unannounced(size_t rounds) {
    if (geteuid() == 0 && prctl(PR_CAPBSET_READ, CAP_SYS_PTRACE) == 1) {
        for (size_t round = 0; round < rounds; round++) {
            pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
            if (child == 0) {
                check_all();
                syscall(SYS_exit_group, 11);
            }
            write_some(20000 + round, 4);
            CHECK(status_of(child) == 11);
            check_all();
        }
    }
    printf("forks unannounced: %zu\n", rounds);
}

int main(int argc, char **argv) {
    size_t rounds = argument(argc, argv, 1, 60);
    size_t mapped = argument(argc, argv, 2, 4096);
    pages = mapped + STATIC_PAGES + BLOCKS * 4;
    page_at = malloc(pages * sizeof *page_at);
    seed_of = calloc(pages, sizeof *seed_of);
    CHECK(page_at != NULL && seed_of != NULL);
    unsigned char *arena = map_pages(mapped);
    size_t n = 0;
    for (size_t i = 0; i < mapped; i++) {
        page_at[n++] = arena + i * PAGE;
    }
    for (size_t i = 0; i < STATIC_PAGES; i++) {
        page_at[n++] = in_bss + i * PAGE;
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        unsigned char *block = calloc(4, PAGE);
        CHECK(block != NULL);
        for (size_t k = 0; k < 4; k++) {
            page_at[n++] = block + k * PAGE;
        }
    }
    write_some(1, 2);
    fork_and_compare(rounds);
    fork_a_crowd(rounds / 4 + 1);
    fork_beside_threads(rounds / 2 + 1);
    fork_with_advice(rounds);
    fork_unannounced(rounds);
    return 0;
}
