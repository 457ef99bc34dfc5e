// What a program has of a file that it maps to be read, it keeps: locks, leases, signals, descriptors, children that share its memory, what it has locked in
// memory, and its mappings' own limits.
//
// Usage: files_kept locks|leases|signals|shared|bounds|writes|many|locked|filtered|exec

#include "common.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { PAGES = 1100 };

extern char **environ;

static const char *const NAME = "kept";

static void make_file(const char *name, size_t pages, uint64_t version) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    uint64_t page[WORDS];
    for (size_t i = 0; i < pages; i++) {
        for (size_t k = 0; k < WORDS; k++) {
            page[k] = mix(i + 1) ^ version;
        }
        CHECK(write(fd, page, sizeof page) == (ssize_t)sizeof page);
    }
    CHECK(close(fd) == 0);
}

static void verify(const volatile unsigned char *mapped, size_t pages, size_t skip, uint64_t version) {
    for (size_t page = 0; page < pages; page++) {
        uint64_t found = *(const volatile uint64_t *)(mapped + page * PAGE);
        if (found != (mix(page + skip + 1) ^ version)) {
            FAIL("page %zu of %zu is not of version %lu", page, pages, version);
        }
    }
}

// Until pages have come and gone, if anybody moves them.
static void dwell(const volatile unsigned char *mapped, size_t pages, size_t skip, uint64_t version) {
    for (int i = 0; i < 12; i++) {
        verify(mapped, pages, skip, version);
        usleep(2000);
    }
}

static volatile unsigned char *map(int fd, size_t pages, size_t skip, int flags) {
    void *mapped = mmap(NULL, pages * PAGE, PROT_READ, flags, fd, (off_t)(skip * PAGE));
    CHECK(mapped != MAP_FAILED);
    return mapped;
}

// What another process finds: whether it could lock the file.
static int seen_by_others(int fd) {
    pid_t child = fork();
    if (child == 0) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        _exit(fcntl(fd, F_GETLK, &lock) != 0 ? 9 : lock.l_type == F_UNLCK ? 0 : lock.l_pid == getppid() ? 1 : 2);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static bool flocked(void) {
    int fd = open(NAME, O_RDONLY);
    CHECK(fd >= 0);
    bool is = flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK;
    close(fd);
    return is;
}

static void locks(void) {
    make_file(NAME, PAGES, 0);
    int fd = open(NAME, O_RDONLY), other = open(NAME, O_RDONLY);
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 10};
    CHECK(fd >= 0 && other >= 0 && fcntl(fd, F_SETLK, &lock) == 0);
    CHECK(seen_by_others(fd) == 1);
    for (int i = 0; i < 20; i++) {
        volatile unsigned char *mapped = map(fd, PAGES, 0, i % 2 == 0 ? MAP_SHARED : MAP_PRIVATE);
        dwell(mapped, PAGES, 0, 0);
        CHECK(seen_by_others(fd) == 1);
        CHECK(munmap((void *)mapped, PAGES * PAGE) == 0);
        CHECK(seen_by_others(fd) == 1);
    }
    // They end with any descriptor, as ever.
    CHECK(close(other) == 0 && seen_by_others(fd) == 0);
    // One of the description's ends with that: with its last mapping.
    CHECK(flock(fd, LOCK_EX) == 0);
    volatile unsigned char *mapped = map(fd, PAGES, 0, MAP_PRIVATE);
    dwell(mapped, PAGES, 0, 0);
    CHECK(close(fd) == 0 && flocked());
    dwell(mapped, PAGES, 0, 0);
    CHECK(flocked() && munmap((void *)mapped, PAGES * PAGE) == 0 && !flocked());
    puts("locks stay, and end when they would");
}

static void leases(void) {
    make_file(NAME, PAGES, 0);
    int fd = open(NAME, O_RDONLY);
    CHECK(fd >= 0);
    for (int i = 0; i < 6; i++) {
        volatile unsigned char *mapped = map(fd, PAGES, 0, MAP_SHARED);
        dwell(mapped, PAGES, 0, 0);
        CHECK(fcntl(fd, F_GETLEASE) == F_UNLCK);
        CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0 && fcntl(fd, F_GETLEASE) == F_WRLCK);
        volatile unsigned char *again = map(fd, PAGES, 0, MAP_PRIVATE);
        dwell(again, PAGES, 0, 0);
        CHECK(fcntl(fd, F_GETLEASE) == F_WRLCK);
        CHECK(fcntl(fd, F_SETLEASE, F_RDLCK) == 0 && fcntl(fd, F_GETLEASE) == F_RDLCK);
        CHECK(munmap((void *)again, PAGES * PAGE) == 0);
        again = map(fd, PAGES, 0, MAP_PRIVATE);
        dwell(again, PAGES, 0, 0);
        CHECK(fcntl(fd, F_GETLEASE) == F_RDLCK && fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
        CHECK(munmap((void *)mapped, PAGES * PAGE) == 0 && munmap((void *)again, PAGES * PAGE) == 0);
    }
    puts("leases of the program's own are had, and stay");
}

static atomic_int signals_seen;

static void count_signal(int number) {
    (void)number;
    atomic_fetch_add(&signals_seen, 1);
}

// Another process writes the file; this one is told of nothing.
static void signals(void) {
    struct sigaction action = {.sa_handler = count_signal};
    for (int number = 1; number <= SIGRTMAX; number++) {
        if (number != SIGKILL && number != SIGSTOP && number != SIGCHLD && number != 32 && number != 33) {
            CHECK(sigaction(number, &action, NULL) == 0);
        }
    }
    for (int i = 0; i < 10; i++) {
        if (i == 5) {
            CHECK(signal(SIGIO, SIG_IGN) != SIG_ERR);
        }
        make_file(NAME, PAGES, 0);
        int fd = open(NAME, O_RDONLY);
        CHECK(fd >= 0);
        volatile unsigned char *mapped = map(fd, PAGES, 0, MAP_SHARED);
        dwell(mapped, PAGES, 0, 0);
        pid_t child = fork();
        if (child == 0) {
            int own = open(NAME, O_RDWR);
            uint64_t first = 77;
            _exit(own < 0 || pwrite(own, &first, sizeof first, 0) != sizeof first);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        CHECK(*(const volatile uint64_t *)mapped == 77);
        CHECK(close(fd) == 0 && munmap((void *)mapped, PAGES * PAGE) == 0);
    }
    CHECK(atomic_load(&signals_seen) == 0);
    puts("no signal came");
}

static int open_descriptors(void) {
    int found = 0;
    for (int fd = 0; fd < 256; fd++) {
        found += fcntl(fd, F_GETFD) >= 0;
    }
    return found;
}

// Children that share the memory map, unmap and protect, and so are their parent's mappings then.
static void shared_memory(void) {
    make_file(NAME, PAGES, 0);
    int fd = open(NAME, O_RDONLY), before = open_descriptors();
    CHECK(fd >= 0);
    for (int i = 0; i < 12; i++) {
        volatile unsigned char *mapped = map(fd, PAGES, 0, i % 2 == 0 ? MAP_SHARED : MAP_PRIVATE);
        dwell(mapped, PAGES, 0, 0);
        volatile unsigned char *volatile of_child = NULL;
        pid_t child = vfork();
        if (child == 0) {
            of_child = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
            int failed = mprotect((void *)(mapped + 10 * PAGE), PAGE, PROT_NONE);
            failed |= munmap((void *)(mapped + 20 * PAGE), PAGE);
            _exit(failed);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        verify(of_child, PAGES, 0, 0);
        verify(mapped, 10, 0, 0);
        verify(mapped + 21 * PAGE, PAGES - 21, 21, 0);
        CHECK(mprotect((void *)(mapped + 10 * PAGE), PAGE, PROT_READ) == 0);
        verify(mapped, 20, 0, 0);
        char *const arguments[] = {"true", NULL};
        CHECK(posix_spawnp(&child, "true", NULL, NULL, arguments, environ) == 0 && waitpid(child, &status, 0) == child && status == 0);
        CHECK(munmap((void *)mapped, PAGES * PAGE) == 0 && munmap((void *)of_child, PAGES * PAGE) == 0);
    }
    CHECK(open_descriptors() == before);
    puts("children that share the memory are as ever");
}

static sigjmp_buf on_fault;

static void catch_fault(int number) {
    siglongjmp(on_fault, number);
}

static int fault_of(const volatile unsigned char *at) {
    int number = sigsetjmp(on_fault, 1);
    if (number == 0) {
        (void)*at;
    }
    return number;
}

// Beyond the end of the file, and as that moves.
static void bounds(void) {
    CHECK(signal(SIGBUS, catch_fault) != SIG_ERR && signal(SIGSEGV, catch_fault) != SIG_ERR);
    for (int i = 0; i < 6; i++) {
        make_file(NAME, PAGES, 0);
        CHECK(truncate(NAME, (off_t)(PAGES * PAGE - 100)) == 0);
        int fd = open(NAME, O_RDONLY);
        CHECK(fd >= 0);
        volatile unsigned char *mapped = map(fd, 2 * PAGES, 0, i % 2 == 0 ? MAP_SHARED : MAP_PRIVATE);
        volatile unsigned char *beyond = map(fd, 100, PAGES + 5, MAP_SHARED);
        for (int k = 0; k < 12; k++) {
            verify(mapped, PAGES, 0, 0);
            CHECK(mapped[PAGES * PAGE - 101] != 0 || mapped[PAGES * PAGE - 102] != 0 || mapped[PAGES * PAGE - 103] != 0);
            for (size_t at = PAGES * PAGE - 100; at < PAGES * PAGE; at++) {
                CHECK(mapped[at] == 0);
            }
            CHECK(fault_of(mapped + PAGES * PAGE) == SIGBUS && fault_of(mapped + 2 * PAGES * PAGE - 1) == SIGBUS);
            CHECK(fault_of(beyond) == SIGBUS);
            usleep(2000);
        }
        CHECK(truncate(NAME, (off_t)(700 * PAGE)) == 0);
        verify(mapped, 700, 0, 0);
        CHECK(fault_of(mapped + 700 * PAGE) == SIGBUS && fault_of(mapped + PAGES * PAGE - 1) == SIGBUS);
        make_file("longer", 2 * PAGES, 3);
        CHECK(truncate(NAME, (off_t)(2 * PAGES * PAGE)) == 0);
        CHECK(mapped[800 * PAGE] == 0 && mapped[2 * PAGES * PAGE - 1] == 0 && beyond[0] == 0);
        verify(mapped, 700, 0, 0);
        // Mapped once more, it is leased again.
        volatile unsigned char *again = map(fd, 2 * PAGES, 0, MAP_SHARED);
        dwell(again, 700, 0, 0);
        verify(mapped, 700, 0, 0);
        CHECK(again[2 * PAGES * PAGE - 1] == 0);
        CHECK(close(fd) == 0 && munmap((void *)mapped, 2 * PAGES * PAGE) == 0 && munmap((void *)beyond, 100 * PAGE) == 0);
        CHECK(munmap((void *)again, 2 * PAGES * PAGE) == 0);
    }
    puts("files end where they end");
}

// The process writes the file itself that it has mapped.
static void writes(void) {
    make_file(NAME, PAGES, 0);
    int fd = open(NAME, O_RDONLY);
    CHECK(fd >= 0);
    for (uint64_t version = 1; version < 12; version++) {
        volatile unsigned char *mapped = map(fd, PAGES, 0, version % 2 == 0 ? MAP_SHARED : MAP_PRIVATE);
        volatile unsigned char *other = map(fd, 300, 200, MAP_SHARED);
        dwell(mapped, PAGES, 0, version - 1);
        dwell(other, 300, 200, version - 1);
        int writer = open(NAME, O_RDWR);
        CHECK(writer >= 0);
        uint64_t page[WORDS];
        for (size_t i = 0; i < PAGES; i++) {
            for (size_t k = 0; k < WORDS; k++) {
                page[k] = mix(i + 1) ^ version;
            }
            CHECK(pwrite(writer, page, sizeof page, (off_t)(i * PAGE)) == (ssize_t)sizeof page);
            CHECK(*(const volatile uint64_t *)(mapped + i * PAGE) == page[0]);
        }
        dwell(mapped, PAGES, 0, version);
        verify(other, 300, 200, version);
        // As long as it is open for writing it may be written: what is mapped now is read as it is then.
        volatile unsigned char *meanwhile = map(fd, PAGES, 0, MAP_SHARED);
        volatile unsigned char *by_writer = map(writer, PAGES, 0, MAP_SHARED);
        dwell(meanwhile, PAGES, 0, version);
        page[0] = 99;
        CHECK(pwrite(writer, page, 8, 5 * PAGE) == 8);
        CHECK(*(const volatile uint64_t *)(meanwhile + 5 * PAGE) == 99 && *(const volatile uint64_t *)(by_writer + 5 * PAGE) == 99);
        page[0] = mix(6) ^ version;
        CHECK(pwrite(writer, page, 8, 5 * PAGE) == 8);
        CHECK(munmap((void *)mapped, PAGES * PAGE) == 0 && munmap((void *)other, 300 * PAGE) == 0);
        CHECK(munmap((void *)meanwhile, PAGES * PAGE) == 0 && munmap((void *)by_writer, PAGES * PAGE) == 0);
        CHECK(close(writer) == 0);
    }
    puts("what the process writes it reads");
}

static void many(void) {
    enum { FILES = 100, MAPPINGS = 2000, EACH = 17 };
    static volatile unsigned char *mapped[MAPPINGS];
    char name[32];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "many%d", i);
        make_file(name, EACH + 20, (uint64_t)i);
    }
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MAPPINGS; i++) {
            snprintf(name, sizeof name, "many%d", i % FILES);
            int fd = open(name, O_RDONLY);
            CHECK(fd >= 0);
            mapped[i] = map(fd, EACH, (size_t)i % 20, i % 3 == 0 ? MAP_PRIVATE : MAP_SHARED);
            CHECK(close(fd) == 0);
        }
        for (int i = 0; i < MAPPINGS; i++) {
            if (i % 100 == 0) {
                dwell(mapped[i], EACH, (size_t)i % 20, (uint64_t)(i % FILES));
            }
            verify(mapped[i], EACH, (size_t)i % 20, (uint64_t)(i % FILES));
        }
        for (int i = 0; i < MAPPINGS; i++) {
            CHECK(munmap((void *)mapped[i], EACH * PAGE) == 0);
        }
    }
    puts("each of many is its file");
}

// What is locked in memory stays, and what is mapped from then on.
static void locked(void) {
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    bool may = setrlimit(RLIMIT_MEMLOCK, &limit) == 0;
    make_file(NAME, PAGES, 0);
    int fd = open(NAME, O_RDONLY);
    CHECK(fd >= 0);
    volatile unsigned char *before = map(fd, PAGES, 0, MAP_SHARED);
    dwell(before, PAGES, 0, 0);
    if (may) {
        CHECK(mlock((void *)before, 10 * PAGE) == 0);
    }
    dwell(before, PAGES, 0, 0);
    volatile unsigned char *of_lock = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED | MAP_LOCKED, fd, 0);
    CHECK(of_lock != MAP_FAILED);
    if (may) {
        CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
    }
    volatile unsigned char *after = map(fd, PAGES, 0, MAP_SHARED);
    for (int i = 0; i < 3; i++) {
        dwell(before, PAGES, 0, 0);
        dwell(of_lock, PAGES, 0, 0);
        dwell(after, PAGES, 0, 0);
    }
    if (may) {
        unsigned char resident[PAGES];
        CHECK(mincore((void *)after, PAGES * PAGE, resident) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            CHECK((resident[i] & 1) == 1);
        }
        CHECK(munlockall() == 0);
    }
    puts("what is locked stays");
}

// A filter ends the process that asks for a lease, which nobody here does; children have it, too.
static void filtered(void) {
    make_file(NAME, PAGES, 0);
    int fd = open(NAME, O_RDONLY);
    CHECK(fd >= 0);
    volatile unsigned char *mapped = map(fd, PAGES, 0, MAP_SHARED);
    dwell(mapped, PAGES, 0, 0);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETLEASE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        puts("a filter of system calls is not permitted here");
        exit(77);
    }
    for (int generation = 0; generation < 3; generation++) {
        volatile unsigned char *more = map(fd, PAGES, 0, MAP_PRIVATE);
        dwell(more, PAGES, 0, 0);
        dwell(mapped, PAGES, 0, 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child > 0) {
            int status;
            CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
            if (generation > 0) {
                _exit(0);
            }
            break;
        }
        if (generation == 2) {
            _exit(0);
        }
    }
    puts("nobody asks for leases where that is forbidden");
}

// Another program takes this one's place: nobody waits for it who writes the file.
static void executes(const char *self, bool again) {
    if (!again) {
        make_file(NAME, PAGES, 0);
        int fd = open(NAME, O_RDONLY);
        CHECK(fd >= 0);
        volatile unsigned char *mapped = map(fd, PAGES, 0, MAP_SHARED);
        dwell(mapped, PAGES, 0, 0);
        CHECK(close(fd) == 0);
        execl(self, self, "exec", "again", NULL);
        FAIL("exec");
    }
    int fd = open(NAME, O_RDWR | O_NONBLOCK);
    CHECK(fd >= 0);
    struct stat found;
    CHECK(fstat(fd, &found) == 0 && found.st_size == (off_t)(PAGES * PAGE) && found.st_nlink == 1);
    puts("the next program may write");
}

int main(int count, char **arguments) {
    CHECK(count >= 2);
    needs_linux(6, 11);
    const char *what = arguments[1];
    if (strcmp(what, "locks") == 0) {
        locks();
    } else if (strcmp(what, "leases") == 0) {
        leases();
    } else if (strcmp(what, "signals") == 0) {
        signals();
    } else if (strcmp(what, "shared") == 0) {
        shared_memory();
    } else if (strcmp(what, "bounds") == 0) {
        bounds();
    } else if (strcmp(what, "writes") == 0) {
        writes();
    } else if (strcmp(what, "many") == 0) {
        many();
    } else if (strcmp(what, "locked") == 0) {
        locked();
    } else if (strcmp(what, "filtered") == 0) {
        filtered();
    } else {
        CHECK(strcmp(what, "exec") == 0);
        executes(arguments[0], count > 2);
    }
    return 0;
}
