// Memory whose addresses have tags that the processor compares (arm64's MTE): a page that came back without its tags would end the program.
//
// Usage: tagged [ROUNDS]

#include "common.h"

#include <sys/auxv.h>
#include <sys/prctl.h>

enum { PAGES = 256, GRANULE = 16 };

#ifdef __aarch64__
static unsigned char *tagged(unsigned char *at, size_t page) {
    return (unsigned char *)((uintptr_t)(at + page * PAGE) | (uintptr_t)(page % 15 + 1) << 56);
}

static void set_tags(unsigned char *page) {
    for (size_t at = 0; at < PAGE; at += GRANULE) {
        __asm__ volatile(".arch armv8.5-a+memtag\n\tstg %0, [%0]" : : "r"(page + at) : "memory");
    }
}
#endif

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 20;
#ifdef __aarch64__
    const unsigned long HAS_TAGS = 1ul << 18, ON = 1, AT_ONCE = 1ul << 1, ALL = 0xfffful << 3;
    const int TAGGED = 0x20, CONTROL = 55;
    if (!(getauxval(AT_HWCAP2) & HAS_TAGS)) {
        FAIL("this processor has no tags");
    }
    CHECK(prctl(CONTROL, ON | AT_ONCE | ALL, 0, 0, 0) == 0);
    unsigned char *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE | TAGGED, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    // What has none is moved meanwhile.
    unsigned char *others = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(others != MAP_FAILED);
    for (size_t i = 0; i < PAGES; i++) {
        set_tags(tagged(memory, i));
        fill_page(tagged(memory, i), i + 1);
        fill_page(others + i * PAGE, i + 1);
    }
    for (int round = 0; round < rounds; round++) {
        for (size_t i = 0; i < PAGES; i++) {
            CHECK_PAGE(others + i * PAGE, (uint64_t)round + i + 1);
            CHECK_PAGE(tagged(memory, i), (uint64_t)round + i + 1);
            fill_page(tagged(memory, i), (uint64_t)round + i + 2);
            fill_page(others + i * PAGE, (uint64_t)round + i + 2);
        }
    }
    printf("tagged: %d rounds\n", rounds);
    return 0;
#else
    FAIL("only arm64 has tags, for %d rounds", rounds);
#endif
}
