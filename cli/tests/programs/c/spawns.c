// The other ways to make a process: vfork, posix_spawn, system and popen. A child that borrows its parent's memory until it
// calls exec must find all of it, and the parent must find all of it afterwards.
//
// Usage: spawns [ROUNDS] [PAGES]; `spawns child SEED PAGES` is what it runs.

#include "common.h"

#include <spawn.h>

static size_t pages;
static unsigned char *arena;
static const char *self;

extern char **environ;

static int live_as_child(uint64_t seed, size_t own_pages) {
    unsigned char *own = malloc(own_pages * PAGE);
    CHECK(own != NULL);
    for (int again = 0; again < 3; again++) {
        for (size_t i = 0; i < own_pages; i++) {
            if (again > 0) {
                CHECK_PAGE(own + i * PAGE, seed + i + (uint64_t)again - 1);
            }
            fill_page(own + i * PAGE, seed + i + (uint64_t)again);
        }
    }
    free(own);
    return (int)(mix(seed) % 100);
}

static void check_arena(void) {
    for (size_t i = 0; i < pages; i++) {
        CHECK_PAGE(arena + i * PAGE, i + 1);
    }
}

static int run_by_vfork(char **argv) {
    pid_t child = vfork();
    if (child == 0) {
        execv(self, argv);
        _exit(127);
    }
    return status_of(child);
}

static int run_by_posix_spawn(char **argv) {
    pid_t child = -1;
    CHECK(posix_spawn(&child, self, NULL, NULL, argv, environ) == 0);
    return status_of(child);
}

static int run_by_fork(char **argv) {
    pid_t child = fork();
    if (child == 0) {
        execv(self, argv);
        _exit(127);
    }
    return status_of(child);
}

static int run_by_system(char **argv) {
    char command[512];
    snprintf(command, sizeof command, "'%s' %s %s %s", self, argv[1], argv[2], argv[3]);
    int status = system(command);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int run_by_popen(char **argv) {
    char command[512], line[64] = {0};
    snprintf(command, sizeof command, "'%s' %s %s %s; echo $?", self, argv[1], argv[2], argv[3]);
    FILE *pipe_of_child = popen(command, "r");
    CHECK(pipe_of_child != NULL);
    CHECK(fgets(line, sizeof line, pipe_of_child) != NULL);
    CHECK(pclose(pipe_of_child) == 0);
    return atoi(line);
}

static int (*const ways[])(char **) = {run_by_vfork, run_by_posix_spawn, run_by_fork, run_by_system, run_by_popen};
enum { WAYS = sizeof ways / sizeof ways[0] };

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "child") == 0) {
        return live_as_child(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10));
    }
    self = argv[0];
    size_t rounds = argument(argc, argv, 1, 12);
    pages = argument(argc, argv, 2, 4096);
    arena = map_pages(pages);
    for (size_t i = 0; i < pages; i++) {
        fill_page(arena + i * PAGE, i + 1);
    }
    int sum = 0;
    for (size_t round = 0; round < rounds; round++) {
        for (size_t way = 0; way < WAYS; way++) {
            uint64_t seed = round * WAYS + way + 1;
            char seed_text[24];
            snprintf(seed_text, sizeof seed_text, "%llu", (unsigned long long)seed);
            char *arguments[] = {(char *)self, "child", seed_text, "512", NULL};
            int got = ways[way](arguments);
            if (got != (int)(mix(seed) % 100)) {
                FAIL("way %zu of round %zu ended with %d", way, round, got);
            }
            sum += got;
            check_arena();
        }
    }
    printf("spawns: %d\n", sum);
    return 0;
}
