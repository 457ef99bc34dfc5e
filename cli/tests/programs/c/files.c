// Maps files in every way, does to the mappings what can be done, and reads them meanwhile; others write the file, cut it short, and take its name. What
// is read is what the file has.
//
// Usage: files kinds|changes|written [ROUNDS]

#include "common.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>

enum { PAGES = 1700 };

static const char *const NAME = "data";

static uint64_t content(size_t page, uint64_t version) {
    return mix(page + 1) ^ version;
}

static void fill(int fd, uint64_t version) {
    static uint64_t words[PAGES][WORDS];
    for (size_t page = 0; page < PAGES; page++) {
        words[page][0] = words[page][WORDS - 1] = content(page, version);
    }
    CHECK(pwrite(fd, words, sizeof words, 0) == (ssize_t)sizeof words);
}

static void make_file(void) {
    int fd = open(NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    fill(fd, 0);
    CHECK(close(fd) == 0);
}

static volatile unsigned char *map_at(void *where, size_t pages, size_t skip, int protection, int flags) {
    int fd = open(NAME, O_RDONLY);
    CHECK(fd >= 0);
    void *mapped = mmap(where, pages * PAGE, protection, flags, fd, (off_t)(skip * PAGE));
    CHECK(mapped != MAP_FAILED && close(fd) == 0);
    return mapped;
}

static volatile unsigned char *map(size_t pages, size_t skip, int flags) {
    return map_at(NULL, pages, skip, PROT_READ, flags);
}

static uint64_t first_word(const volatile unsigned char *page) {
    return *(const volatile uint64_t *)page;
}

static void verify(const volatile unsigned char *mapped, size_t pages, size_t skip, uint64_t version) {
    for (size_t page = 0; page < pages; page++) {
        uint64_t expected = content(page + skip, version);
        if (first_word(mapped + page * PAGE) != expected || first_word(mapped + (page + 1) * PAGE - 8) != expected) {
            FAIL("page %zu of %zu from %zu on is not the file's", page, pages, skip);
        }
    }
}

// Until pages have come and gone, if anybody moves them.
static void dwell(const volatile unsigned char *mapped, size_t pages, size_t skip) {
    for (int i = 0; i < 12; i++) {
        verify(mapped, pages, skip, 0);
        usleep(2000);
    }
}

static sigjmp_buf on_fault;

static void catch_fault(int number) {
    siglongjmp(on_fault, number);
}

// The signal that the access raises, or 0.
static int fault_of(volatile unsigned char *at, int writes) {
    struct sigaction action = {.sa_handler = catch_fault}, segv, bus;
    CHECK(sigaction(SIGSEGV, &action, &segv) == 0 && sigaction(SIGBUS, &action, &bus) == 0);
    int number = sigsetjmp(on_fault, 1);
    if (number == 0) {
        unsigned char byte = *at;
        if (writes) {
            *at = byte;
        }
    }
    CHECK(sigaction(SIGSEGV, &segv, NULL) == 0 && sigaction(SIGBUS, &bus, NULL) == 0);
    return number;
}

static int ends_well(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void kinds(void) {
    make_file();
    static const int FLAGS[] = {MAP_SHARED, MAP_PRIVATE, MAP_PRIVATE | MAP_POPULATE, MAP_SHARED | MAP_NORESERVE};
    volatile unsigned char *all[4];
    for (size_t i = 0; i < 4; i++) {
        all[i] = map(PAGES - i * 100, i * 100, FLAGS[i]);
    }
    volatile unsigned char *code = map_at(NULL, 300, 0, PROT_READ | PROT_EXEC, MAP_PRIVATE);
    volatile unsigned char *own = map_at(NULL, 300, 0, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    volatile unsigned char *small = map(2, 7, MAP_SHARED);
    own[PAGE] = 1;
    for (size_t i = 0; i < 4; i++) {
        dwell(all[i], PAGES - i * 100, i * 100);
        printf("a write raises %d\n", fault_of(all[i] + 5 * PAGE, 1));
    }
    verify(code, 300, 0, 0);
    verify(own, 1, 0, 0);
    CHECK(own[PAGE] == 1);
    verify(small, 2, 7, 0);
    // Its page cache is another's to drop, and the mapping reads as ever.
    CHECK(unlink(NAME) == 0);
    dwell(all[0], PAGES, 0);
    // The kernel reads it, too.
    int fd = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(write(fd, (const void *)all[1], (PAGES - 100) * PAGE) == (ssize_t)((PAGES - 100) * PAGE));
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, (void *)all[2], PAGE) == -1 && errno == EFAULT);
    CHECK(close(fd) == 0);
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            verify(all[0], PAGES, 0, 0);
            volatile unsigned char *again = mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            _exit(again == MAP_FAILED);
        }
        verify(all[1], PAGES - 100, 100, 0);
        CHECK(ends_well(child));
        dwell(all[0], PAGES, 0);
    }
    puts("all kinds are the file");
}

static void changes(long rounds) {
    make_file();
    for (long round = 0; round < rounds; round++) {
        int flags = round % 2 == 0 ? MAP_PRIVATE : MAP_SHARED;
        unsigned char *mapped = (unsigned char *)map(PAGES, 0, flags);
        dwell(mapped, PAGES, 0);
        int result = mprotect(mapped, 100 * PAGE, PROT_READ | PROT_WRITE);
        printf("%s can be made writable: %d\n", flags == MAP_PRIVATE ? "private" : "shared", result == 0 ? 0 : errno);
        if (result == 0) {
            mapped[3 * PAGE] ^= 0xff;
            CHECK(mprotect(mapped, 100 * PAGE, PROT_READ) == 0);
            mapped = (unsigned char *)map_at(mapped, 100, 0, PROT_READ, flags | MAP_FIXED);
        }
        dwell(mapped, PAGES, 0);
        CHECK(mprotect(mapped + 200 * PAGE, PAGE, PROT_NONE) == 0 && fault_of(mapped + 200 * PAGE, 0) == SIGSEGV);
        CHECK(mprotect(mapped + 200 * PAGE, PAGE, PROT_READ) == 0);
        munmap(mapped, PAGES * PAGE);

        mapped = (unsigned char *)map(PAGES, 0, flags);
        dwell(mapped, PAGES, 0);
        static const int ADVICE[] = {MADV_NORMAL,   MADV_RANDOM, MADV_SEQUENTIAL,    MADV_WILLNEED,
                                     MADV_DONTNEED, MADV_COLD,   MADV_POPULATE_READ, MADV_DONTNEED};
        for (size_t i = 0; i < sizeof ADVICE / sizeof *ADVICE; i++) {
            CHECK(madvise(mapped, PAGES * PAGE, ADVICE[i]) == 0);
            verify(mapped, PAGES, 0, 0);
        }
        static const int REFUSED[] = {MADV_FREE, MADV_REMOVE, MADV_WIPEONFORK};
        for (size_t i = 0; i < sizeof REFUSED / sizeof *REFUSED; i++) {
            result = madvise(mapped, PAGES * PAGE, REFUSED[i]);
            printf("advice %d: %d\n", REFUSED[i], result == 0 ? 0 : errno);
        }
        verify(mapped, PAGES, 0, 0);
        munmap(mapped, PAGES * PAGE);

        mapped = (unsigned char *)map(PAGES, 0, flags);
        dwell(mapped, PAGES, 0);
        unsigned char *place = mmap(NULL, 2 * PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(place != MAP_FAILED);
        unsigned char *moved = mremap(mapped + 512 * PAGE, 600 * PAGE, 600 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
        CHECK(moved == place);
        verify(moved, 600, 512, 0);
        verify(mapped, 512, 0, 0);
        verify(mapped + 1112 * PAGE, PAGES - 1112, 1112, 0);
        CHECK(munmap(place, 2 * PAGES * PAGE) == 0 && munmap(mapped, 100 * PAGE) == 0);
        verify(mapped + 100 * PAGE, 412, 100, 0);
        result = mlock(mapped + 100 * PAGE, 100 * PAGE);
        CHECK(result == 0 || errno == ENOMEM || errno == EPERM);
        unsigned char resident[100];
        CHECK(mincore(mapped + 100 * PAGE, sizeof resident * PAGE, resident) == 0 && (resident[99] & 1) == 1);
        CHECK(msync(mapped + 100 * PAGE, 100 * PAGE, MS_SYNC) == 0);
        munmap(mapped, PAGES * PAGE);

        // Something else in its place, and a call that is refused leaves it.
        mapped = (unsigned char *)map(PAGES, 0, flags);
        dwell(mapped, PAGES, 0);
        CHECK(mmap(mapped, PAGES * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED);
        CHECK(munmap(mapped + 1, PAGE) == -1 && errno == EINVAL);
        verify(mapped, PAGES, 0, 0);
        CHECK(mmap(mapped + 64 * PAGE, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
        CHECK(mapped[64 * PAGE] == 0);
        verify(mapped, 64, 0, 0);
        verify(mapped + 128 * PAGE, PAGES - 128, 128, 0);
        munmap(mapped, PAGES * PAGE);
    }
    puts("every change is as it should be");
}

static atomic_ulong *versions;

static void *read_versions(void *argument) {
    uint64_t state = (uint64_t)(uintptr_t)argument;
    uint64_t reads = 0;
    while (atomic_load(&versions[2]) == 0) {
        volatile unsigned char *mapped = map(PAGES, 0, MAP_SHARED);
        for (int i = 0; i < 40000; i++, reads++) {
            size_t page = next_random(&state) % PAGES;
            uint64_t before = atomic_load(&versions[0]);
            uint64_t version = first_word(mapped + page * PAGE) ^ content(page, 0);
            uint64_t after = atomic_load(&versions[1]);
            if (version < before || version > after) {
                FAIL("page %zu is of version %lu, and the file of %lu to %lu", page, version, before, after);
            }
        }
        munmap((void *)mapped, PAGES * PAGE);
    }
    return (void *)(uintptr_t)(reads > 0);
}

// A process writes the file over and over, others read it.
static void written(long rounds) {
    make_file();
    versions = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(versions != MAP_FAILED);
    pid_t writer = fork();
    if (writer == 0) {
        for (uint64_t version = 1; version <= (uint64_t)rounds; version++) {
            usleep(15000);
            // What is written from here on is read as the one or the other.
            atomic_store(&versions[1], version);
            int fd = open(NAME, O_RDWR);
            CHECK(fd >= 0);
            fill(fd, version);
            CHECK(close(fd) == 0);
            atomic_store(&versions[0], version);
        }
        atomic_store(&versions[2], 1);
        _exit(0);
    }
    pthread_t readers[3];
    for (size_t i = 0; i < 3; i++) {
        CHECK(pthread_create(&readers[i], NULL, read_versions, (void *)(i + 1)) == 0);
    }
    for (size_t i = 0; i < 3; i++) {
        void *some;
        CHECK(pthread_join(readers[i], &some) == 0 && some != NULL);
    }
    CHECK(ends_well(writer));

    // Renamed over, cut short, grown.
    volatile unsigned char *mapped = map(PAGES, 0, MAP_SHARED);
    for (int i = 0; i < 30; i++) {
        verify(mapped, PAGES, 0, (uint64_t)rounds);
        usleep(1000);
    }
    CHECK(rename(NAME, "old") == 0);
    make_file();
    verify(mapped, PAGES, 0, (uint64_t)rounds);
    CHECK(truncate("old", 700 * PAGE) == 0);
    verify(mapped, 700, 0, (uint64_t)rounds);
    printf("behind the end a read raises %d\n", fault_of((unsigned char *)mapped + 700 * PAGE, 0));
    CHECK(truncate("old", PAGES * PAGE) == 0);
    CHECK(first_word(mapped + 1000 * PAGE) == 0);
    puts("nobody has read what the file did not have");
}

int main(int count, char **arguments) {
    CHECK(count >= 2);
    needs_linux(6, 11);
    long rounds = count > 2 ? strtol(arguments[2], NULL, 10) : 4;
    if (strcmp(arguments[1], "kinds") == 0) {
        kinds();
    } else if (strcmp(arguments[1], "changes") == 0) {
        changes(rounds);
    } else {
        written(rounds);
    }
    return 0;
}
