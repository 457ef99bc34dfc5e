// Ways for a program to end. Its status must arrive as it is, and what it had not yet written must not be lost.
//
// Usage: endings HOW

#include "common.h"

#include <signal.h>

static unsigned char *arena;
enum { ARENA_PAGES = 2048, ROUNDS = 20 };

static void use_memory(void) {
    for (uint64_t round = 0; round < ROUNDS; round++) {
        for (uint64_t i = 0; i < ARENA_PAGES; i++) {
            CHECK_PAGE(arena + i * PAGE, round == 0 ? 0 : round + i);
            fill_page(arena + i * PAGE, round + i + 1);
        }
    }
}

static void at_exit(void) {
    for (uint64_t i = 0; i < ARENA_PAGES; i++) {
        CHECK_PAGE(arena + i * PAGE, ROUNDS + i);
    }
    printf("at exit\n");
}

static void *outlive_main(void *argument_of_body) {
    (void)argument_of_body;
    for (uint64_t i = 0; i < ARENA_PAGES; i++) {
        CHECK_PAGE(arena + i * PAGE, ROUNDS + i);
    }
    printf("outlived main\n");
    exit(11);
}

static void *wait_for_ever(void *argument_of_body) {
    (void)argument_of_body;
    for (;;) {
        pause();
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    const char *how = argv[1];
    arena = map_pages(ARENA_PAGES);
    use_memory();
    CHECK(atexit(at_exit) == 0);
    printf("ends by %s\n", how);
    pthread_t other;
    if (strcmp(how, "return") == 0) {
        return 7;
    } else if (strcmp(how, "exit-with-threads") == 0) {
        for (int i = 0; i < 4; i++) {
            start_thread(&other, wait_for_ever, NULL);
        }
        exit(9);
    } else if (strcmp(how, "last-thread") == 0) {
        start_thread(&other, outlive_main, NULL);
        pthread_exit(NULL);
    } else if (strcmp(how, "immediate") == 0) {
        CHECK(fflush(stdout) == 0);
        _exit(200);
    } else if (strcmp(how, "exec") == 0) {
        CHECK(fflush(stdout) == 0);
        execl(argv[0], argv[0], "return", (char *)NULL);
    } else if (strcmp(how, "exec-with-threads") == 0) {
        CHECK(fflush(stdout) == 0);
        for (int i = 0; i < 4; i++) {
            start_thread(&other, wait_for_ever, NULL);
        }
        execl(argv[0], argv[0], "exit-with-threads", (char *)NULL);
    } else if (strcmp(how, "abort") == 0) {
        CHECK(fflush(stdout) == 0);
        abort();
    } else if (strcmp(how, "null") == 0) {
        CHECK(fflush(stdout) == 0);
        *(volatile int *)(uintptr_t)(argc - 2) = 1;
    } else if (strcmp(how, "terminate") == 0) {
        CHECK(fflush(stdout) == 0);
        CHECK(kill(getpid(), SIGTERM) == 0);
        pause();
    } else if (strcmp(how, "killed") == 0) {
        CHECK(fflush(stdout) == 0);
        CHECK(kill(getpid(), SIGKILL) == 0);
        pause();
    }
    return 99;
}
