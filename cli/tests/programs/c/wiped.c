// What a program has wiped, unmapped or dropped is nowhere in its memory any more.
//
// Usage: wiped CASE

#include "field.h"

#include <fcntl.h>
#include <time.h>

// In milliseconds: how long the secrets are used, and longer than anything is left behind on the slowest machine.
enum { PAGES = 12 * 1024, USED = 1000, PATIENCE = 60 * 1000 };

// No two words of a page are the same, and their differences are found nowhere else.
static const uint64_t STEP = 0x9e3779b97f4a7c15u;
enum { IN_A_ROW = 16 };

static unsigned char *secrets;

static void write_secrets(void) {
    for (uint64_t page = 0; page < PAGES; page++) {
        uint64_t *words = (uint64_t *)(secrets + page * PAGE);
        for (uint64_t i = 0; i < WORDS; i++) {
            words[i] = mix(page) + i * STEP;
        }
    }
}

static bool is_secret(const uint64_t *words) {
    for (size_t i = 1; i < IN_A_ROW; i++) {
        if (words[i] - words[i - 1] != STEP) {
            return false;
        }
    }
    return true;
}

// How many pages of the process, whoever's, are secrets. Only what is there is looked at, by the kernel.
static size_t left_behind(void) {
    static unsigned char bytes[PAGE];
    static char line[4096];
    size_t found = 0;
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC), pages = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(memory >= 0 && pages >= 0 && maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        CHECK(sscanf(line, "%lx-%lx", &from, &to) == 2);
        for (unsigned long at = from; at < to; at += PAGE) {
            static uint64_t entries[512];
            size_t index = at / PAGE % 512;
            if (at == from || index == 0) {
                size_t count = 512 - index;
                ssize_t got = pread(pages, entries + index, count * 8, (off_t)(at / PAGE * 8));
                memset(entries + index + (got > 0 ? (size_t)got / 8 : 0), 0, (count - (got > 0 ? (size_t)got / 8 : 0)) * 8);
            }
            // Present, or in swap.
            if (entries[index] >> 62 != 0 && pread(memory, bytes, PAGE, (off_t)at) == (ssize_t)PAGE) {
                found += is_secret((const uint64_t *)bytes);
            }
        }
    }
    memset(bytes, 0, sizeof bytes);
    CHECK(fclose(maps) == 0 && close(pages) == 0 && close(memory) == 0);
    return found;
}

static long milliseconds(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void try(void (*remove_secrets)(void)) {
    secrets = map_pages(PAGES);
    for (long end = milliseconds() + USED; milliseconds() < end;) {
        write_secrets();
        use_field(1);
        CHECK(is_secret((const uint64_t *)(secrets + (PAGES - 1) * PAGE)));
    }
    // One that is found shows that they would be. It may be out, just now, of what is looked at.
    for (long end = milliseconds() + PATIENCE; left_behind() == 0;) {
        CHECK(milliseconds() < end);
    }
    remove_secrets();
    size_t left = 0;
    for (long end = milliseconds() + PATIENCE; (left = left_behind()) > 0;) {
        if (milliseconds() > end) {
            FAIL("%zu pages are left behind", left);
        }
    }
    check_field();
    print("nothing is left behind\n");
}

static void wipe(void) {
    memset(secrets, 0, PAGES * PAGE);
}

static void unmap(void) {
    CHECK(munmap(secrets, PAGES * PAGE) == 0);
}

static void drop(void) {
    CHECK(madvise(secrets, PAGES * PAGE, MADV_DONTNEED) == 0);
}

static void by_wiping(void) {
    try(wipe);
}

static void by_unmapping(void) {
    try(unmap);
}

static void by_dropping(void) {
    try(drop);
}

static const struct named CASES[] = {{"wiped", by_wiping}, {"unmapped", by_unmapping}, {"dropped", by_dropping}};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
