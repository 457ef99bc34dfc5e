// Maps, moves, resizes, protects, empties and unmaps memory at random (the same random on each run) and keeps a ledger of
// what each page must hold, while two threads read and write pages that nobody remaps.
//
// Usage: mappings [STEPS]

#include "common.h"

#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum { MOST_REGIONS = 24, MOST_PAGES = 1024, BYSTANDERS = 2, BYSTANDER_PAGES = 2048 };

struct region {
    unsigned char *base;
    size_t pages;
    uint64_t seeds[MOST_PAGES];
};

struct part {
    struct region *of;
    size_t first, pages;
    unsigned char *base;
};

static struct region regions[MOST_REGIONS];
static uint64_t random_state = 7;
static uint64_t next_seed = 1;
static int sink = -1, source = -1;

static size_t below(size_t limit) {
    return (size_t)(next_random(&random_state) % limit);
}

// Faults are caught and compared, not survived: a write to a read-only page must still be one.

static sigjmp_buf on_fault;
static volatile sig_atomic_t fault_code;
static void *volatile fault_address;

static void catch_fault(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    fault_code = info->si_code;
    fault_address = info->si_addr;
    siglongjmp(on_fault, 1);
}

enum access { READ, WRITE };

// The si_code of the fault that the access makes, or 0 if it makes none.
static int fault_of(unsigned char *at, enum access access) {
    if (sigsetjmp(on_fault, 1) != 0) {
        if (fault_address != at) {
            FAIL("fault at %p instead of %p", fault_address, (void *)at);
        }
        return fault_code;
    }
    volatile unsigned char *byte = at;
    if (access == READ) {
        (void)*byte;
    } else {
        *byte = *byte;
    }
    return 0;
}

static void expect_fault(unsigned char *at, enum access access, int code) {
    int got = fault_of(at, access);
    if (got != code) {
        FAIL("%s at %p gave code %d instead of %d", access == READ ? "read" : "write", (void *)at, got, code);
    }
}

static void check_part(struct part part) {
    for (size_t i = 0; i < part.pages; i++) {
        CHECK_PAGE(part.base + i * PAGE, part.of->seeds[part.first + i]);
    }
}

static struct part whole(struct region *region) {
    return (struct part){region, 0, region->pages, region->base};
}

static void check_region(struct region *region) {
    check_part(whole(region));
}

static struct part some_part(struct region *region) {
    size_t first = below(region->pages);
    size_t pages = 1 + below(region->pages - first);
    return (struct part){region, first, pages, region->base + first * PAGE};
}

static void write_part(struct part part) {
    for (size_t i = 0; i < part.pages; i++) {
        fill_page(part.base + i * PAGE, part.of->seeds[part.first + i] = next_seed++);
    }
}

static void forget_part(struct part part) {
    memset(&part.of->seeds[part.first], 0, part.pages * sizeof(uint64_t));
}

static void create(struct region *region) {
    region->pages = 1 + below(below(4) == 0 ? MOST_PAGES : 128);
    region->base = map_pages(region->pages);
    forget_part(whole(region));
    if (below(4) == 0) {
        // EINVAL where the kernel has no huge pages: nothing to test then.
        CHECK(madvise(region->base, region->pages * PAGE, MADV_HUGEPAGE) == 0 || errno == EINVAL);
    }
    if (below(3) != 0) {
        write_part(some_part(region));
    }
}

static void destroy(struct region *region) {
    check_region(region);
    CHECK(munmap(region->base, region->pages * PAGE) == 0);
    expect_fault(region->base + below(region->pages) * PAGE, READ, SEGV_MAPERR);
    region->pages = 0;
}

// Whether the kernel holds the region as several mappings: what an advice, a lock or a protection has split is joined again only if it can be.
static bool is_in_pieces(const struct region *region) {
    uintptr_t base = (uintptr_t)region->base;
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL);
    char line[512];
    bool whole = false;
    while (fgets(line, sizeof line, maps) != NULL) {
        uintptr_t from = 0, to = 0;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &from, &to) == 2) {
            whole |= from <= base && base + region->pages * PAGE <= to;
        }
    }
    CHECK(fclose(maps) == 0);
    return !whole;
}

// mremap, or what comes to the same where it refuses a region because it is several mappings.
static unsigned char *move(const struct region *region, size_t pages, int flags) {
    size_t bytes = region->pages * PAGE;
    unsigned char *there = mremap(region->base, bytes, pages * PAGE, MREMAP_MAYMOVE | flags, NULL);
    if (there != MAP_FAILED) {
        return there;
    }
    CHECK(errno == EFAULT && is_in_pieces(region));
    there = map_pages(pages);
    memcpy(there, region->base, (pages < region->pages ? pages : region->pages) * PAGE);
    if (flags & MREMAP_DONTUNMAP) {
        CHECK(madvise(region->base, bytes, MADV_DONTNEED) == 0);
    } else {
        CHECK(munmap(region->base, bytes) == 0);
    }
    return there;
}

static void resize(struct region *region) {
    size_t pages = 1 + below(MOST_PAGES);
    unsigned char *base = move(region, pages, 0);
    if (pages > region->pages) {
        memset(&region->seeds[region->pages], 0, (pages - region->pages) * sizeof(uint64_t));
    }
    region->base = base;
    region->pages = pages;
    if (below(2) == 0) {
        check_region(region);
    }
}

// Moves the region onto a place that is already mapped, and written to or not, if the kernel can.
static void move_onto(struct region *region) {
    unsigned char *there = map_pages(region->pages);
    if (below(2) == 0) {
        memset(there, 0xee, region->pages * PAGE);
    }
    unsigned char *from = region->base;
    size_t bytes = region->pages * PAGE;
    if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, there) == MAP_FAILED) {
        CHECK(errno == EFAULT && is_in_pieces(region));
        CHECK(munmap(there, bytes) == 0);
    } else {
        region->base = there;
        expect_fault(from, WRITE, SEGV_MAPERR);
    }
    check_part(some_part(region));
}

// Moves the pages and leaves the mapping, which then reads as zeros.
static void move_out_of(struct region *region) {
    size_t bytes = region->pages * PAGE;
    unsigned char *left = region->base;
    region->base = move(region, region->pages, MREMAP_DONTUNMAP);
    for (size_t i = 0; i < region->pages; i++) {
        CHECK_PAGE(left + i * PAGE, 0);
    }
    check_region(region);
    CHECK(munmap(left, bytes) == 0);
}

static void empty_part(struct part part) {
    CHECK(madvise(part.base, part.pages * PAGE, MADV_DONTNEED) == 0);
    forget_part(part);
    check_part(part);
}

// Until it is written again, a freed page holds what it held or zeros.
static void free_part(struct part part) {
    CHECK(madvise(part.base, part.pages * PAGE, MADV_FREE) == 0);
    for (size_t i = 0; i < part.pages; i++) {
        unsigned char *page = part.base + i * PAGE;
        if (first_difference(page, 0) >= 0) {
            CHECK_PAGE(page, part.of->seeds[part.first + i]);
        }
    }
    write_part(part);
}

static void make_read_only(struct part part) {
    CHECK(mprotect(part.base, part.pages * PAGE, PROT_READ) == 0);
    unsigned char *page = part.base + below(part.pages) * PAGE;
    expect_fault(page + below(PAGE), WRITE, SEGV_ACCERR);
    check_part(part);
    CHECK(pread(source, page, PAGE, 0) == -1 && errno == EFAULT);
    CHECK(mprotect(part.base, part.pages * PAGE, PROT_READ | PROT_WRITE) == 0);
    expect_fault(page, WRITE, 0);
    check_part(part);
}

static void make_inaccessible(struct part part) {
    CHECK(mprotect(part.base, part.pages * PAGE, PROT_NONE) == 0);
    unsigned char *page = part.base + below(part.pages) * PAGE;
    expect_fault(page + below(PAGE), READ, SEGV_ACCERR);
    CHECK(pwrite(sink, page, PAGE, 0) == -1 && errno == EFAULT);
    CHECK(mprotect(part.base, part.pages * PAGE, PROT_READ | PROT_WRITE) == 0);
    check_part(part);
}

// Unmaps the head, the tail, or all but the two; a region keeps one piece.
static void cut(struct region *region) {
    if (region->pages < 3) {
        return;
    }
    size_t at = 1 + below(region->pages - 2);
    if (below(2) == 0) {
        CHECK(munmap(region->base + at * PAGE, (region->pages - at) * PAGE) == 0);
        expect_fault(region->base + at * PAGE, READ, SEGV_MAPERR);
        region->pages = at;
    } else {
        CHECK(munmap(region->base, at * PAGE) == 0);
        expect_fault(region->base, READ, SEGV_MAPERR);
        region->base += at * PAGE;
        region->pages -= at;
        memmove(region->seeds, &region->seeds[at], region->pages * sizeof(uint64_t));
    }
    check_region(region);
}

static void map_over(struct part part) {
    void *at = mmap(part.base, part.pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(at == part.base);
    forget_part(part);
    check_part(part);
}

static void lock_part(struct part part) {
    CHECK(mlock(part.base, part.pages * PAGE) == 0);
    check_part(part);
    write_part(part);
    CHECK(munlock(part.base, part.pages * PAGE) == 0);
    check_part(part);
}

static void advise_part(struct part part) {
    static const int advice[] = {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_SEQUENTIAL, MADV_NORMAL};
    CHECK(madvise(part.base, part.pages * PAGE, advice[below(sizeof advice / sizeof advice[0])]) == 0);
    // An access-pattern advice splits the mapping until it is undone.
    CHECK(madvise(part.base, part.pages * PAGE, MADV_NORMAL) == 0);
    check_part(part);
}

static void move_break(void) {
    size_t pages = 1 + below(2048);
    unsigned char *old = sbrk((intptr_t)(pages * PAGE));
    CHECK(old != (void *)-1);
    unsigned char *base = (unsigned char *)(((uintptr_t)old + PAGE - 1) / PAGE * PAGE);
    for (size_t i = 0; i + 1 < pages; i++) {
        CHECK_PAGE(base + i * PAGE, 0);
        fill_page(base + i * PAGE, i + 1);
    }
    for (size_t i = 0; i + 1 < pages; i++) {
        CHECK_PAGE(base + i * PAGE, i + 1);
    }
    CHECK(sbrk(-(intptr_t)(pages * PAGE)) != (void *)-1);
    CHECK(sbrk(0) == old);
}

// Much more address space than memory, touched here and there.
static void touch_sparsely(void) {
    size_t bytes = 1024 * MIB;
    unsigned char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED);
    for (uint64_t i = 0; i < 256; i++) {
        unsigned char *page = base + mix(i) % (bytes / PAGE) * PAGE;
        CHECK_PAGE(page, 0);
    }
    for (uint64_t i = 0; i < 256; i++) {
        fill_page(base + i * 1024 * PAGE, i + 1);
    }
    for (uint64_t i = 0; i < 256; i++) {
        CHECK_PAGE(base + i * 1024 * PAGE, i + 1);
    }
    CHECK(munmap(base, bytes) == 0);
}

// What the kernel refuses, it refuses with the same words.
static void expect_refusals(void) {
    unsigned char *base = map_pages(8);
    CHECK(munmap(base + 4 * PAGE, 4 * PAGE) == 0);
    CHECK(munmap(base + 1, PAGE) == -1 && errno == EINVAL);
    CHECK(madvise(base, 8 * PAGE, MADV_WILLNEED) == -1 && errno == ENOMEM);
    CHECK(mprotect(base, 8 * PAGE, PROT_READ | PROT_WRITE) == -1 && errno == ENOMEM);
    CHECK(mremap(base + 4 * PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
    CHECK(mremap(base, 2 * PAGE, 4 * PAGE, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(munmap(base, 4 * PAGE) == 0);
}

static _Atomic bool stop;

// Mapped before the first step: nothing may come where a region has been.
static unsigned char *bystanders[BYSTANDERS];

static void *stand_by(void *argument_of_body) {
    size_t number = (size_t)(uintptr_t)argument_of_body;
    uint64_t self = (uint64_t)(number + 1) << 40;
    unsigned char *own = bystanders[number];
    uint64_t written[64] = {0};
    for (uint64_t i = 0; i < BYSTANDER_PAGES; i++) {
        fill_page(own + i * PAGE, self + i);
    }
    for (uint64_t step = 0; !atomic_load(&stop); step++) {
        uint64_t page = mix(step) % BYSTANDER_PAGES;
        uint64_t again = page < 64 ? written[page] * BYSTANDER_PAGES : 0;
        CHECK_PAGE(own + page * PAGE, self + page + again);
        if (page < 64) {
            written[page]++;
            fill_page(own + page * PAGE, self + page + written[page] * BYSTANDER_PAGES);
        }
    }
    return NULL;
}

static void step_once(void) {
    struct region *region = &regions[below(MOST_REGIONS)];
    if (region->pages == 0) {
        create(region);
        return;
    }
    switch (below(18)) {
    case 0:
    case 1: write_part(some_part(region)); break;
    case 2: resize(region); break;
    case 3: move_onto(region); break;
    case 4: move_out_of(region); break;
    case 5: empty_part(some_part(region)); break;
    case 6: free_part(some_part(region)); break;
    case 7: make_read_only(some_part(region)); break;
    case 8: make_inaccessible(some_part(region)); break;
    case 9: cut(region); break;
    case 10: map_over(some_part(region)); break;
    case 11: lock_part(some_part(region)); break;
    case 12: advise_part(some_part(region)); break;
    case 13: move_break(); break;
    case 14: expect_refusals(); break;
    case 15:
        if (below(16) == 0) {
            touch_sparsely();
        }
        break;
    case 16: destroy(region); break;
    default: check_region(region); break;
    }
}

int main(int argc, char **argv) {
    size_t steps = argument(argc, argv, 1, 6000);
    source = open("/dev/zero", O_RDONLY);
    sink = memfd_create("sink", MFD_CLOEXEC);
    CHECK(source >= 0 && sink >= 0);
    struct sigaction action = {.sa_sigaction = catch_fault, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    pthread_t ids[BYSTANDERS];
    for (size_t i = 0; i < BYSTANDERS; i++) {
        bystanders[i] = map_pages(BYSTANDER_PAGES);
        start_thread(&ids[i], stand_by, (void *)(uintptr_t)i);
    }
    for (size_t i = 0; i < steps; i++) {
        step_once();
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < MOST_REGIONS; i++) {
        check_region(&regions[i]);
        for (size_t k = 0; k < regions[i].pages; k++) {
            sum = mix(sum ^ regions[i].seeds[k]);
        }
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < BYSTANDERS; i++) {
        join_thread(ids[i]);
    }
    printf("mappings: %zu steps, %llu pages written, %llx\n", steps, (unsigned long long)next_seed - 1, (unsigned long long)sum);
    return 0;
}
