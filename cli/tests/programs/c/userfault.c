// A program that serves page faults of its own with userfaultfd: missing pages, write protection, and a range that it
// gives back. hetmem must leave those ranges alone, before, while and after they are registered.
//
// Usage: userfault [ROUNDS]

#include "common.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum { RANGE_PAGES = 512 };

static int uffd = -1, stop_pipe[2];
static unsigned char *range;
static uint64_t generation;
static _Atomic uint64_t served, unprotected;

static void *serve(void *argument_of_body) {
    (void)argument_of_body;
    unsigned char *page = malloc(2 * PAGE);
    CHECK(page != NULL);
    page = (unsigned char *)(((uintptr_t)page + PAGE - 1) / PAGE * PAGE);
    for (;;) {
        struct pollfd ready[2] = {{.fd = uffd, .events = POLLIN}, {.fd = stop_pipe[0], .events = POLLIN}};
        CHECK(poll(ready, 2, -1) > 0);
        if (ready[1].revents != 0) {
            return NULL;
        }
        struct uffd_msg message;
        ssize_t n = read(uffd, &message, sizeof message);
        if (n < 0 && errno == EAGAIN) {
            continue;
        }
        CHECK(n == sizeof message && message.event == UFFD_EVENT_PAGEFAULT);
        uint64_t at = message.arg.pagefault.address / PAGE * PAGE;
        CHECK(at >= (uintptr_t)range && at < (uintptr_t)range + RANGE_PAGES * PAGE);
        if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
            struct uffdio_writeprotect lift = {{at, PAGE}, 0};
            CHECK(ioctl(uffd, UFFDIO_WRITEPROTECT, &lift) == 0);
            atomic_fetch_add(&unprotected, 1);
            continue;
        }
        uint64_t index = (at - (uintptr_t)range) / PAGE;
        if (index % 5 == 0) {
            struct uffdio_zeropage zero = {.range = {at, PAGE}};
            CHECK(ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0);
        } else {
            fill_page(page, generation * RANGE_PAGES + index + 1);
            struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)page, .len = PAGE};
            CHECK(ioctl(uffd, UFFDIO_COPY, &copy) == 0);
        }
        atomic_fetch_add(&served, 1);
    }
}

static uint64_t expected(uint64_t index) {
    return index % 5 == 0 ? 0 : generation * RANGE_PAGES + index + 1;
}

static void register_range(uint64_t mode) {
    struct uffdio_register registration = {.range = {(uintptr_t)range, RANGE_PAGES * PAGE}, .mode = mode};
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &registration) == 0);
}

static void unregister_range(void) {
    struct uffdio_range all = {(uintptr_t)range, RANGE_PAGES * PAGE};
    CHECK(ioctl(uffd, UFFDIO_UNREGISTER, &all) == 0);
}

int main(int argc, char **argv) {
    size_t rounds = argument(argc, argv, 1, 60);
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) {
        printf("userfault: not permitted here\n");
        return 77;
    }
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    CHECK(ioctl(uffd, UFFDIO_API, &api) == 0);
    CHECK(pipe(stop_pipe) == 0);
    // A first owner: the memory is written and may have been moved before the program registers it.
    unsigned char *other = map_pages(4096);
    for (uint64_t i = 0; i < 4096; i++) {
        fill_page(other + i * PAGE, i + 1);
    }
    range = map_pages(RANGE_PAGES);
    pthread_t server;
    start_thread(&server, serve, NULL);
    for (generation = 0; generation < rounds; generation++) {
        for (uint64_t i = 0; i < RANGE_PAGES; i++) {
            fill_page(range + i * PAGE, ~(generation * RANGE_PAGES + i));
        }
        register_range(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
        for (uint64_t i = 0; i < RANGE_PAGES; i++) {
            CHECK_PAGE(range + i * PAGE, ~(generation * RANGE_PAGES + i));
        }
        CHECK(madvise(range, RANGE_PAGES * PAGE, MADV_DONTNEED) == 0);
        for (uint64_t i = 0; i < RANGE_PAGES; i++) {
            CHECK_PAGE(range + i * PAGE, expected(i));
        }
        struct uffdio_writeprotect protect = {{(uintptr_t)range, RANGE_PAGES * PAGE}, UFFDIO_WRITEPROTECT_MODE_WP};
        CHECK(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) == 0);
        for (uint64_t i = 0; i < RANGE_PAGES; i += 2) {
            fill_page(range + i * PAGE, i + 1000000);
        }
        for (uint64_t i = 0; i < RANGE_PAGES; i++) {
            CHECK_PAGE(range + i * PAGE, i % 2 == 0 ? i + 1000000 : expected(i));
        }
        unregister_range();
        for (uint64_t i = 0; i < RANGE_PAGES; i++) {
            CHECK_PAGE(range + i * PAGE, i % 2 == 0 ? i + 1000000 : expected(i));
        }
        for (uint64_t i = 0; i < 4096; i++) {
            CHECK_PAGE(other + i * PAGE, generation + i + 1);
            fill_page(other + i * PAGE, generation + i + 2);
        }
    }
    CHECK(write(stop_pipe[1], "", 1) == 1);
    join_thread(server);
    printf("userfault: %llu pages served, %llu writes allowed\n", (unsigned long long)served, (unsigned long long)unprotected);
    return 0;
}
