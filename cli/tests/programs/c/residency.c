// What a program is told of where its pages are: what it has written and not given back is there, wherever hetmem has it.
//
// Usage: residency CASE

#include "field.h"

enum { PAGES = 512, ROUNDS = 100 };

static unsigned char states[PAGES];

static bool is_written(uint64_t round, size_t i) {
    return mix(round * PAGES + i) % 2 == 0;
}

static void resident(void) {
    use_field(1);
    size_t there = 0;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        unsigned char *own = map_pages(PAGES);
        CHECK(madvise(own, PAGES * PAGE, MADV_NOHUGEPAGE) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            if (is_written(round, i)) {
                fill_page(own + i * PAGE, round + i);
            }
        }
        use_field(1);
        CHECK(mincore(own, PAGES * PAGE, states) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            // A hole beside a touched one may have been filled.
            if (is_written(round, i) && !(states[i] & 1)) {
                FAIL("round %llu: page %zu is said to be away", (unsigned long long)round, i);
            }
            there += is_written(round, i);
        }
        // Asking does not bring anything about, and the first half, given back, is there no more.
        CHECK(madvise(own, PAGES / 2 * PAGE, MADV_DONTNEED) == 0);
        CHECK(mincore(own, PAGES * PAGE, states) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            CHECK((states[i] & 1) == (i >= PAGES / 2) || !is_written(round, i));
            if (i >= PAGES / 2) {
                CHECK_PAGE(own + i * PAGE, is_written(round, i) ? round + i : 0);
            }
        }
        CHECK(munmap(own, PAGES * PAGE) == 0);
    }
    print("there: %zu pages\n", there);
}

// Of a range of several mappings, and from within one.
static void in_pieces(void) {
    unsigned char *own = map_pages(PAGES);
    CHECK(madvise(own, PAGES * PAGE, MADV_NOHUGEPAGE) == 0);
    for (size_t i = 0; i < PAGES; i++) {
        fill_page(own + i * PAGE, i + 1);
    }
    CHECK(mprotect(own + 100 * PAGE, 50 * PAGE, PROT_READ) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        use_field(1);
        memset(states, 0, sizeof states);
        CHECK(mincore(own + 10 * PAGE, (PAGES - 10) * PAGE - 100, states) == 0);
        for (size_t i = 0; i < PAGES - 10; i++) {
            CHECK((states[i] & 1) == 1);
        }
        CHECK(states[PAGES - 10] == 0);
    }
    for (size_t i = 0; i < PAGES; i++) {
        CHECK_PAGE(own + i * PAGE, i + 1);
    }
    print("there, in pieces\n");
}

static const struct named CASES[] = {{"written", resident}, {"pieces", in_pieces}};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
