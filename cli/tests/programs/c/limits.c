// Limits and sums of memory, in which hetmem's own counts, too: a program that keeps them must not be in the way of itself.
//
// Usage: limits CASE

#include "field.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/syscall.h>

// What hetmem's own may come to, with two devices of 64 MiB and a stock, beside the few MiB of the program.
static const size_t BOUND = 300 * MIB;

static const char *own_path;

// A number of /proc/self/status, in bytes.
static size_t status(const char *name) {
    char line[256];
    size_t kib = 0;
    FILE *file = fopen("/proc/self/status", "re");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, strlen(name)) == 0) {
            CHECK(sscanf(line + strlen(name), ": %zu kB", &kib) == 1);
        }
    }
    CHECK(fclose(file) == 0);
    return kib * KIB;
}

static void limit(int resource, size_t to) {
    struct rlimit now;
    CHECK(getrlimit(resource, &now) == 0);
    if (now.rlim_max != RLIM_INFINITY && now.rlim_max < to) {
        not_here("the limit is %zu already", (size_t)now.rlim_max);
    }
    now.rlim_cur = now.rlim_max = to;
    CHECK(setrlimit(resource, &now) == 0);
}

static void nobody(void) {
    enum { NOBODY = 65534 };
    if (geteuid() != 0) {
        not_here("only root can become an ordinary user");
    }
    CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

__attribute__((noreturn)) static void execute(const char *name) {
    CHECK(fflush(stdout) == 0);
    execl(own_path, own_path, name, (char *)NULL);
    FAIL("exec");
}

// Locked memory

// Locks all that it has and will have: `pages` now, as much again later.
static void lock_all(size_t pages) {
    unsigned char *now = map_pages(pages);
    for (size_t i = 0; i < pages; i++) {
        fill_page(now + i * PAGE, i + 1);
    }
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        FAIL("mlockall: %s", strerror(errno));
    }
    unsigned char *later = map_pages(pages);
    for (size_t round = 1; round <= 20; round++) {
        for (size_t i = 0; i < pages; i++) {
            CHECK_PAGE(now + i * PAGE, round + i);
            fill_page(now + i * PAGE, round + i + 1);
            CHECK_PAGE(later + i * PAGE, round == 1 ? 0 : round + i);
            fill_page(later + i * PAGE, round + i + 1);
        }
    }
    size_t resident = status("VmRSS"), locked = status("VmLck");
    if (resident >= BOUND || locked >= BOUND) {
        print("resident: %zu MiB, locked: %zu MiB\n", resident / MIB, locked / MIB);
    }
    CHECK(munlockall() == 0);
    print("everything was locked, and it was little\n");
}

static void lock_all_by_root(void) {
    if (geteuid() != 0 || prctl(PR_CAPBSET_READ, CAP_IPC_LOCK) != 1) {
        not_here("CAP_IPC_LOCK is needed");
    }
    use_field(10);
    lock_all(2048);
}

// By an ordinary user, whose limit is what most systems have; the program fits in it.
static void lock_all_by_nobody(void) {
    limit(RLIMIT_MEMLOCK, 8 * MIB);
    nobody();
    lock_all(64);
}

// A program that must not wait for the disk locks what it has, and forks.
static void lock_and_fork(void) {
    if (geteuid() != 0 || prctl(PR_CAPBSET_READ, CAP_IPC_LOCK) != 1) {
        not_here("CAP_IPC_LOCK is needed");
    }
    use_field(10);
    CHECK(mlockall(MCL_CURRENT) == 0);
    for (int round = 0; round < 5; round++) {
        use_field(2);
        pid_t child = fork();
        if (child == 0) {
            check_field();
            _exit(status("VmLck") == 0 ? 3 : 4);
        }
        CHECK(status_of(child) == 3);
    }
    print("locked, and forked\n");
}

// Limits on memory

static void *allocate(void *argument_of_body) {
    (void)argument_of_body;
    return malloc(MIB);
}

static void use_much(void) {
    size_t pages = 200 * MIB / PAGE;
    unsigned char *much = malloc(pages * PAGE);
    if (much == NULL) {
        FAIL("no 200 MiB are to be had: %s", strerror(errno));
    }
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < pages; i++) {
            CHECK(round == 0 || much[i * PAGE] == (unsigned char)(i + round - 1));
            much[i * PAGE] = (unsigned char)(i + round);
        }
        pthread_t thread;
        start_thread(&thread, allocate, NULL);
        free(join_thread(thread));
        pid_t child = fork();
        if (child == 0) {
            _exit(much[77 * PAGE] == (unsigned char)(77 + round) ? 3 : 4);
        }
        CHECK(status_of(child) == 3);
    }
    print("200 MiB were used\n");
}

static void limit_data(void) {
    limit(RLIMIT_DATA, 400 * MIB);
    execute("much");
}

static void limit_data_late(void) {
    limit(RLIMIT_DATA, 400 * MIB);
    use_much();
}

static void limit_address_space(void) {
    limit(RLIMIT_AS, 8192 * MIB);
    execute("much");
}

// What the limit leaves is the program's to the end: then, and not before, an allocation fails, and it goes on.
static void exhaust_data(void) {
    use_field(20);
    limit(RLIMIT_DATA, 400 * MIB);
    size_t blocks = 0;
    while (mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
        blocks++;
    }
    CHECK(errno == ENOMEM);
    print("at least 200 MiB: %d, at most 400 MiB: %d\n", blocks >= 200, blocks <= 400);
    check_field();
}

static void count_descriptors(void) {
    int count = 0;
    while (dup(STDOUT_FILENO) >= 0) {
        count++;
    }
    CHECK(errno == EMFILE);
    use_field(10);
    print("%d descriptors were free\n", count);
}

static void limit_descriptors(void) {
    limit(RLIMIT_NOFILE, 12);
    execute("descriptors-left");
}

static void limit_descriptors_late(void) {
    use_field(5);
    limit(RLIMIT_NOFILE, 8);
    count_descriptors();
}

// Past what is called before forks by the C library.
static pid_t bare_fork(void) {
#ifdef __x86_64__
    long child = SYS_fork;
    __asm__ volatile("syscall" : "+a"(child) : : "rcx", "r11", "memory");
    return (pid_t)child;
#else
    return fork();
#endif
}

// The kernel makes a descriptor for each fork of what is registered, and has it wait until that is read.
static void fork_with_few_descriptors(void) {
    static const rlim_t FEW[] = {16, 8, 5, 3, 1, 0};
    for (size_t i = 0; i < sizeof FEW / sizeof *FEW; i++) {
        struct rlimit few;
        CHECK(getrlimit(RLIMIT_NOFILE, &few) == 0);
        few.rlim_cur = FEW[i];
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        for (int round = 0; round < 3; round++) {
            use_field(2);
            pid_t child = fork();
            if (child == 0) {
                check_field();
                _exit(7);
            }
            CHECK(status_of(child) == 7);
            // With fewer the program would be stopped: the child could get nothing.
            if (FEW[i] < 3) {
                continue;
            }
            child = bare_fork();
            if (child == 0) {
                check_field();
                _exit(8);
            }
            CHECK(status_of(child) == 8);
        }
        check_field();
    }
}

// Its own mappings

// Reads all that the process can read, as collectors and checkpoints do. By a pipe, as a mapping may be gone when it is read.
static void read_mappings(void) {
    enum { CHUNK = 16 };
    int ends[2];
    static char line[4096], bytes[CHUNK * 4096];
    size_t readable = 0;
    use_field(10);
    CHECK(pipe(ends) == 0);
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        char modes[5];
        if (sscanf(line, "%lx-%lx %4s", &from, &to, modes) != 3 || modes[0] != 'r' || modes[3] != 'p' ||
            strstr(line, "[v") != NULL) {
            continue;
        }
        readable += to - from;
        for (unsigned long at = from; at < to && readable < 2 * BOUND; at += CHUNK * PAGE) {
            size_t length = to - at < CHUNK * PAGE ? to - at : CHUNK * PAGE;
            ssize_t written = write(ends[1], (void *)at, length);
            CHECK(written >= 0 || errno == EFAULT);
            for (ssize_t left = written; left > 0;) {
                ssize_t got = read(ends[0], bytes, (size_t)left);
                CHECK(got > 0);
                left -= got;
            }
        }
    }
    CHECK(fclose(maps) == 0);
    if (readable >= BOUND) {
        print("readable: %zu MiB\n", readable / MIB);
    }
    check_field();
    print("all that can be read was read, and it was little\n");
}

static const struct named CASES[] = {
    {"mlockall", lock_all_by_root},
    {"mlockall-user", lock_all_by_nobody},
    {"mlockall-fork", lock_and_fork},
    {"much", use_much},
    {"data", limit_data},
    {"data-late", limit_data_late},
    {"data-exhausted", exhaust_data},
    {"address-space", limit_address_space},
    {"descriptors", limit_descriptors},
    {"descriptors-left", count_descriptors},
    {"descriptors-late", limit_descriptors_late},
    {"descriptors-fork", fork_with_few_descriptors},
    {"mappings", read_mappings},
};

int main(int argc, char **argv) {
    own_path = argv[0];
    return RUN_CASE(CASES, argc, argv);
}
