// Lists the program's open descriptors, at the start and after it has closed, opened, inherited and passed some on: nobody else
// may keep any in its table, nor lose any when the program closes everything above its own.
//
// Usage: descriptors [ROUNDS]; `descriptors list` is what it runs.

#include "common.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static unsigned char *arena;
enum { ARENA_PAGES = 4096 };

static void list(const char *when) {
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder != NULL);
    printf("%s:", when);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(folder)) {
            printf(" %s", entry->d_name);
            count++;
        }
    }
    printf(" (%d)\n", count);
    CHECK(fflush(stdout) == 0);
    CHECK(closedir(folder) == 0);
}

static void use_memory(uint64_t rounds) {
    for (uint64_t round = 0; round < rounds; round++) {
        for (uint64_t i = 0; i < ARENA_PAGES; i++) {
            CHECK_PAGE(arena + i * PAGE, i + 1);
        }
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        list("in the program that was run");
        return 0;
    }
    size_t rounds = argument(argc, argv, 1, 40);
    list("at the start");
    arena = map_pages(ARENA_PAGES);
    for (uint64_t i = 0; i < ARENA_PAGES; i++) {
        fill_page(arena + i * PAGE, i + 1);
    }
    use_memory(rounds);
    list("after some work");
    int first = open("/dev/null", O_RDWR);
    CHECK(first == 3);
    CHECK(syscall(SYS_close_range, 3u, ~0u, 0) == 0);
    use_memory(rounds);
    list("after all were closed");
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    int highest = limit.rlim_cur > 1024 ? 1023 : (int)limit.rlim_cur - 1;
    for (int fd = 3; fd <= highest; fd++) {
        CHECK(open("/dev/null", O_RDONLY | O_CLOEXEC) == fd);
    }
    use_memory(rounds);
    for (int fd = 3; fd <= highest; fd++) {
        CHECK(close(fd) == 0);
        CHECK(close(fd) == -1 && errno == EBADF);
    }
    list("after each was opened and closed");
    pid_t child = fork();
    if (child == 0) {
        use_memory(rounds);
        list("in a child");
        CHECK(open("/dev/null", O_RDONLY) == 3);
        execl(argv[0], argv[0], "list", (char *)NULL);
        _exit(127);
    }
    CHECK(status_of(child) == 0);
    use_memory(rounds);
    list("at the end");
    return 0;
}
