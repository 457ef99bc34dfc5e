// Under a limit what is kept for pages on their way home counts: of the program itself no more stays than the rest.
//
// Usage: stocked MIB, which is what may stay.

#include "common.h"

#include <fcntl.h>
#include <time.h>

// Of memory, in MiB; in seconds, more than the slowest machine needs.
enum { SIZE = 64, PATIENCE = 100 };

static size_t present(const unsigned char *memory) {
    static uint64_t entries[SIZE * MIB / PAGE];
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CHECK(map >= 0);
    CHECK(pread(map, entries, sizeof entries, (off_t)((uintptr_t)memory / PAGE * 8)) == (ssize_t)sizeof entries);
    CHECK(close(map) == 0);
    size_t pages = 0;
    for (size_t i = 0; i < SIZE * MIB / PAGE; i++) {
        pages += entries[i] >> 63;
    }
    return pages;
}

int main(int argc, char **argv) {
    size_t most = argument(argc, argv, 1, 0) * MIB / PAGE;
    size_t pages = SIZE * MIB / PAGE;
    unsigned char *memory = map_pages(pages);
    CHECK(madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
    for (size_t i = 0; i < pages; i++) {
        fill_page(memory + i * PAGE, i + 1);
    }
    CHECK(present(memory) > 0);
    time_t begin = time(NULL);
    // Natively all stays.
    bool managed = getenv("HETMEM_AGENT") != NULL;
    while (managed && present(memory) > most) {
        if (time(NULL) - begin > PATIENCE) {
            FAIL("%zu pages of %zu are still there", present(memory), pages);
        }
        const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
    for (size_t i = 0; i < pages; i++) {
        CHECK_PAGE(memory + i * PAGE, i + 1);
    }
    printf("%zu pages\n", pages);
    return 0;
}
