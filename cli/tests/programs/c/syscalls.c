// System calls that read and write the program's memory, on pages that may be anywhere at that moment: the kernel must find
// the bytes as the program would.
//
// Usage: syscalls [ROUNDS]; works in the current folder.

#include "common.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { BUFFER_PAGES = 256, PIECES = 64 };

static unsigned char *from, *to;

static void fill_source(uint64_t round) {
    for (size_t i = 0; i < BUFFER_PAGES; i++) {
        fill_page(from + i * PAGE, round * BUFFER_PAGES + i + 1);
    }
}

static void check_target(uint64_t round, const char *how) {
    for (size_t i = 0; i < BUFFER_PAGES; i++) {
        long word = first_difference(to + i * PAGE, round * BUFFER_PAGES + i + 1);
        if (word >= 0) {
            FAIL("%s, round %llu: page %zu differs at word %ld", how, (unsigned long long)round, i, word);
        }
    }
    memset(to, 0x5a, BUFFER_PAGES * PAGE);
}

static void write_all(int fd, const unsigned char *at, size_t bytes) {
    while (bytes > 0) {
        ssize_t n = write(fd, at, bytes);
        CHECK(n > 0);
        at += n;
        bytes -= (size_t)n;
    }
}

static void read_all(int fd, unsigned char *at, size_t bytes) {
    while (bytes > 0) {
        ssize_t n = read(fd, at, bytes);
        CHECK(n > 0);
        at += n;
        bytes -= (size_t)n;
    }
}

static void *write_from_thread(void *argument_of_body) {
    write_all(*(int *)argument_of_body, from, BUFFER_PAGES * PAGE);
    return NULL;
}

static void through_pipe(uint64_t round) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    pthread_t writer;
    start_thread(&writer, write_from_thread, &ends[1]);
    read_all(ends[0], to, BUFFER_PAGES * PAGE);
    join_thread(writer);
    check_target(round, "pipe");
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

// The pipe holds references to the pages themselves.
static void through_vmsplice(uint64_t round) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (size_t at = 0; at < BUFFER_PAGES * PAGE; at += 8 * PAGE) {
        struct iovec piece = {from + at, 8 * PAGE};
        CHECK(vmsplice(ends[1], &piece, 1, 0) == (ssize_t)(8 * PAGE));
        read_all(ends[0], to + at, 8 * PAGE);
    }
    check_target(round, "vmsplice");
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

// What is written to pages that a pipe refers to shows at its other end: such pages must stay in place.
static void through_vmsplice_later(uint64_t round) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (size_t at = 0; at < BUFFER_PAGES * PAGE; at += 8 * PAGE) {
        struct iovec piece = {to + at, 8 * PAGE};
        CHECK(vmsplice(ends[1], &piece, 1, 0) == (ssize_t)(8 * PAGE));
        for (size_t i = 0; i < BUFFER_PAGES; i++) {
            CHECK_PAGE(from + i * PAGE, round * BUFFER_PAGES + i + 1);
        }
        memcpy(to + at, from + at, 8 * PAGE);
        unsigned char *seen = map_pages(8);
        read_all(ends[0], seen, 8 * PAGE);
        CHECK(memcmp(seen, from + at, 8 * PAGE) == 0);
        CHECK(munmap(seen, 8 * PAGE) == 0);
    }
    check_target(round, "vmsplice, written later");
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void through_socket(uint64_t round) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pthread_t writer;
    start_thread(&writer, write_from_thread, &ends[1]);
    size_t got = 0;
    while (got < BUFFER_PAGES * PAGE) {
        // The vector and the message header lie on the heap as well.
        struct iovec *vector = calloc(2, sizeof *vector);
        struct msghdr *message = calloc(1, sizeof *message);
        CHECK(vector != NULL && message != NULL);
        size_t left = BUFFER_PAGES * PAGE - got;
        vector[0] = (struct iovec){to + got, left < 1000 ? left : 1000};
        vector[1] = (struct iovec){to + got + vector[0].iov_len, left - vector[0].iov_len};
        message->msg_iov = vector;
        message->msg_iovlen = 2;
        struct pollfd *ready = calloc(1, sizeof *ready);
        CHECK(ready != NULL);
        *ready = (struct pollfd){.fd = ends[0], .events = POLLIN};
        CHECK(poll(ready, 1, -1) == 1 && (ready->revents & POLLIN) != 0);
        ssize_t n = recvmsg(ends[0], message, 0);
        CHECK(n > 0);
        got += (size_t)n;
        free(ready);
        free(message);
        free(vector);
    }
    join_thread(writer);
    check_target(round, "socket");
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void through_vectors(uint64_t round) {
    int fd = memfd_create("vectors", MFD_CLOEXEC);
    CHECK(fd >= 0);
    struct iovec pieces[PIECES];
    size_t each = BUFFER_PAGES * PAGE / PIECES;
    for (size_t i = 0; i < PIECES; i++) {
        pieces[i] = (struct iovec){from + i * each, each};
    }
    CHECK(pwritev(fd, pieces, PIECES, 0) == (ssize_t)(BUFFER_PAGES * PAGE));
    for (size_t i = 0; i < PIECES; i++) {
        pieces[i].iov_base = to + i * each;
    }
    CHECK(preadv(fd, pieces, PIECES, 0) == (ssize_t)(BUFFER_PAGES * PAGE));
    check_target(round, "vectors");
    CHECK(close(fd) == 0);
}

// With O_DIRECT the device reads and writes the program's pages, which are pinned meanwhile.
static void through_file(uint64_t round, int flags) {
    int fd = open("syscalls.data", O_RDWR | O_CREAT | flags, 0600);
    if (fd < 0 && flags != 0 && errno == EINVAL) {
        return; // this file system knows no direct I/O
    }
    CHECK(fd >= 0);
    CHECK(pwrite(fd, from, BUFFER_PAGES * PAGE, 0) == (ssize_t)(BUFFER_PAGES * PAGE));
    CHECK(pread(fd, to, BUFFER_PAGES * PAGE, 0) == (ssize_t)(BUFFER_PAGES * PAGE));
    check_target(round, flags == 0 ? "file" : "direct file");
    CHECK(close(fd) == 0);
}

static void through_process_vm(uint64_t round) {
    struct iovec local = {to, BUFFER_PAGES * PAGE}, remote = {from, BUFFER_PAGES * PAGE};
    CHECK(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)(BUFFER_PAGES * PAGE));
    check_target(round, "process_vm_readv");
    local = (struct iovec){from, BUFFER_PAGES * PAGE};
    remote = (struct iovec){to, BUFFER_PAGES * PAGE};
    CHECK(process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)(BUFFER_PAGES * PAGE));
    check_target(round, "process_vm_writev");
}

// A private mapping of a file: pages of the file where it wasn't written, own pages where it was.
static void through_private_file(uint64_t round) {
    int fd = open("syscalls.data", O_RDWR);
    CHECK(fd >= 0);
    unsigned char *mapped = mmap(NULL, BUFFER_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(mapped != MAP_FAILED);
    for (size_t i = 0; i < BUFFER_PAGES; i++) {
        CHECK_PAGE(mapped + i * PAGE, round * BUFFER_PAGES + i + 1);
        if (i % 3 == 0) {
            fill_page(mapped + i * PAGE, i + 7);
        }
    }
    for (size_t i = 0; i < BUFFER_PAGES; i++) {
        CHECK_PAGE(mapped + i * PAGE, i % 3 == 0 ? i + 7 : round * BUFFER_PAGES + i + 1);
    }
    CHECK(munmap(mapped, BUFFER_PAGES * PAGE) == 0 && close(fd) == 0);
}

// Structures that the kernel writes one after the other, each to a page of its own.
static void small_structures(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), ends[2];
    CHECK(epoll >= 0 && pipe(ends) == 0);
    for (size_t i = 0; i < BUFFER_PAGES; i++) {
        unsigned char *page = to + i * PAGE;
        struct stat *about = (struct stat *)page;
        CHECK(fstat(ends[0], about) == 0 && S_ISFIFO(about->st_mode));
        struct timespec *now = (struct timespec *)(page + 512);
        CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, now) == 0 && now->tv_nsec < 1000000000);
        CHECK(getcwd((char *)page + 1024, 1024) != NULL && page[1024] == '/');
        struct epoll_event *event = (struct epoll_event *)(page + 2048);
        *event = (struct epoll_event){.events = EPOLLOUT, .data = {.u64 = i}};
        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], event) == 0);
        CHECK(epoll_wait(epoll, event, 1, -1) == 1 && event->data.u64 == i);
        CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, ends[1], NULL) == 0);
    }
    memset(to, 0x5a, BUFFER_PAGES * PAGE);
    CHECK(close(epoll) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
}

// Two threads wake each other by futex, on words of pages of their own.

struct turns {
    _Atomic uint32_t *word;
    uint32_t count;
};

static void await_word(_Atomic uint32_t *word, uint32_t wanted) {
    for (uint32_t seen; (seen = atomic_load(word)) != wanted;) {
        CHECK(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0) == 0 || errno == EAGAIN || errno == EINTR);
    }
}

static void set_word(_Atomic uint32_t *word, uint32_t value) {
    atomic_store(word, value);
    CHECK(syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) >= 0);
}

static void *answer(void *argument_of_body) {
    struct turns *turns = argument_of_body;
    for (uint32_t i = 0; i < turns->count; i++) {
        _Atomic uint32_t *word = (_Atomic uint32_t *)((unsigned char *)turns->word + i % 16 * PAGE);
        await_word(word, 2 * i + 1);
        set_word(word, 2 * i + 2);
    }
    return NULL;
}

static void wake_each_other(uint32_t count) {
    struct turns turns = {map_pages(16), count};
    pthread_t other;
    start_thread(&other, answer, &turns);
    for (uint32_t i = 0; i < count; i++) {
        _Atomic uint32_t *word = (_Atomic uint32_t *)((unsigned char *)turns.word + i % 16 * PAGE);
        set_word(word, 2 * i + 1);
        await_word(word, 2 * i + 2);
    }
    join_thread(other);
    CHECK(munmap((void *)turns.word, 16 * PAGE) == 0);
}

int main(int argc, char **argv) {
    size_t rounds = argument(argc, argv, 1, 100);
    from = map_pages(BUFFER_PAGES);
    to = malloc(BUFFER_PAGES * PAGE + PAGE);
    CHECK(to != NULL);
    to = (unsigned char *)(((uintptr_t)to + PAGE - 1) / PAGE * PAGE);
    for (uint64_t round = 0; round < rounds; round++) {
        fill_source(round);
        through_pipe(round);
        through_vmsplice(round);
        through_vmsplice_later(round);
        through_socket(round);
        through_vectors(round);
        through_file(round, 0);
        through_file(round, O_DIRECT);
        through_private_file(round);
        through_process_vm(round);
        fill_source(round);
        small_structures();
        wake_each_other(200);
    }
    CHECK(unlink("syscalls.data") == 0);
    printf("syscalls: %zu rounds\n", rounds);
    return 0;
}
