/* The test device as programs see it, written from the description of its interface; and what the programs here have in common. */
#ifndef DEVICE_H
#define DEVICE_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct command {
    uint64_t addr;
    uint64_t ptr;
    uint64_t npages;
    uint64_t cpages;
    uint64_t faults;
};

enum {
    READ = 0,
    WRITE,
    TO_DEVICE,
    TO_SYSTEM,
    SNAPSHOT,
    EXCLUSIVE,
    CHECK_EXCLUSIVE,
    RELEASE,
};

/* Bytes of a snapshot. */
enum {
    P_NONE = 0x00,
    P_READ = 0x01,
    P_WRITE = 0x02,
    P_PMD = 0x04,
    P_ZERO = 0x10,
    P_PRIVATE_LOCAL = 0x20,
    P_COHERENT_LOCAL = 0x40,
    P_COHERENT_REMOTE = 0x50,
    P_ERROR = 0xFF,
};

#define REQUEST(number) _IOWR('H', (number), struct command)
#define PAGE ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)

#define EXPECT(holds)                                                                                                  \
    do {                                                                                                               \
        if (!(holds)) {                                                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #holds);                                        \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* The two must be the same. */
#define EQUAL(is, should)                                                                                              \
    do {                                                                                                               \
        long long is_ = (long long)(is), should_ = (long long)(should);                                                \
        if (is_ != should_) {                                                                                          \
            fprintf(stderr, "%s:%d: %s is %lld and not %lld\n", __FILE__, __LINE__, #is, is_, should_);                \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* What the program was started for: a device of the type, another of the same type, and with which pages. */
struct setting {
    int first, second;
    int coherent;
    int huge;
};

/* program private|coherent small|huge */
static inline struct setting begin(int argc, char **argv)
{
    alarm(120); /* who waits this long waits for ever */
    EXPECT(argc == 3);
    struct setting setting = {0, 1, strcmp(argv[1], "coherent") == 0, strcmp(argv[2], "huge") == 0};
    if (setting.coherent) {
        setting.first = 2;
        setting.second = 3;
    }
    if (!setting.huge) {
        EQUAL(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
    }
    return setting;
}

static inline int open_device(int minor)
{
    char path[32];
    snprintf(path, sizeof path, "/dev/hmm_dmirror%d", minor);
    int fd = open(path, O_RDWR);
    if (fd < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        _exit(1);
    }
    return fd;
}

/* Asks the device; returns 0 or an error number. */
static inline int ask(int fd, int number, void *addr, size_t pages, void *buffer, struct command *out)
{
    struct command command = {(uintptr_t)addr, (uintptr_t)buffer, pages, 0, 0};
    int result = ioctl(fd, REQUEST(number), &command);
    if (out != NULL) {
        *out = command;
    }
    return result == 0 ? 0 : errno;
}

/* Asks the device, which must do it, to all pages and with so many rounds of faults. */
#define DOES(fd, number, addr, pages, buffer, rounds)                                                                  \
    do {                                                                                                               \
        struct command done_;                                                                                          \
        EQUAL(ask((fd), (number), (addr), (pages), (buffer), &done_), 0);                                              \
        EQUAL(done_.cpages, (pages));                                                                                  \
        EQUAL(done_.faults, (rounds));                                                                                 \
    } while (0)

/* Asks the device, which must refuse with this error. */
#define REFUSES(fd, number, addr, pages, buffer, error) EQUAL(ask((fd), (number), (addr), (pages), (buffer), NULL), error)

static inline unsigned char *map(size_t pages, int protection, int flags, int fd)
{
    void *at = mmap(NULL, pages * PAGE, protection, flags, fd, 0);
    EXPECT(at != MAP_FAILED);
    return at;
}

/* Private anonymous memory that begins at 2 MiB, in huge pages if the setting says so and the kernel has some. */
static inline unsigned char *memory(const struct setting *setting, size_t pages)
{
    size_t length = pages * PAGE;
    unsigned char *at = map(pages + HUGE_PAGE / PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    unsigned char *start = (unsigned char *)(((uintptr_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
    if (start > at) {
        EQUAL(munmap(at, (size_t)(start - at)), 0);
    }
    EQUAL(munmap(start + length, HUGE_PAGE - (size_t)(start - at)), 0);
    if (setting->huge) {
        EQUAL(madvise(start, length, MADV_HUGEPAGE), 0);
    }
    return start;
}

/* Byte i of a pattern. */
static inline unsigned char byte(size_t i, unsigned seed)
{
    return (unsigned char)(i * 7 + i / PAGE * 13 + seed);
}

static inline void fill(unsigned char *at, size_t pages, unsigned seed)
{
    for (size_t i = 0; i < pages * PAGE; i++) {
        at[i] = byte(i, seed);
    }
}

static inline void holds(const unsigned char *at, size_t pages, unsigned seed)
{
    for (size_t i = 0; i < pages * PAGE; i++) {
        if (at[i] != byte(i, seed)) {
            fprintf(stderr, "byte %zu is %d and not %d\n", i, at[i], byte(i, seed));
            _exit(1);
        }
    }
}

/* A buffer for the device's answers. */
static inline unsigned char *buffer(size_t pages)
{
    unsigned char *at = malloc(pages * PAGE);
    EXPECT(at != NULL);
    memset(at, 0xA5, pages * PAGE);
    return at;
}

/* Waits for a child, which must have found everything as it should be. */
static inline void child_is_well(pid_t child)
{
    int status;
    EXPECT(child > 0);
    EQUAL(waitpid(child, &status, 0), child);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static inline int end(void)
{
    puts("ok");
    return 0;
}

#endif
