// Gives the end of a range back and takes it again at once, over and over, as allocators do: by munmap and mmap, by the program
// break, by mremap. Whoever looked at the range a moment ago is wrong about it now.
//
// Usage: regrow [ROUNDS]

#include "common.h"

enum { HEAD_PAGES = 48, TAIL_PAGES = 16, PAGES = HEAD_PAGES + TAIL_PAGES };

static uint64_t random_state = 11;

// Fills the tail, which must be empty, and checks a part of everything.
static void use(unsigned char *base, uint64_t round) {
    unsigned char *tail = base + HEAD_PAGES * PAGE;
    for (uint64_t i = 0; i < TAIL_PAGES; i++) {
        CHECK_PAGE(tail + i * PAGE, 0);
        fill_page(tail + i * PAGE, round * PAGES + i + 1);
    }
    for (int look = 0; look < 8; look++) {
        uint64_t i = next_random(&random_state) % PAGES;
        uint64_t expected = i < HEAD_PAGES ? i + 1 : round * PAGES + (i - HEAD_PAGES) + 1;
        CHECK_PAGE(base + i * PAGE, expected);
    }
    for (uint64_t i = 0; i < TAIL_PAGES; i++) {
        CHECK_PAGE(tail + i * PAGE, round * PAGES + i + 1);
    }
}

static void fill_head(unsigned char *base) {
    for (uint64_t i = 0; i < HEAD_PAGES; i++) {
        fill_page(base + i * PAGE, i + 1);
    }
}

static void by_munmap(size_t rounds) {
    unsigned char *base = map_pages(PAGES);
    unsigned char *tail = base + HEAD_PAGES * PAGE;
    fill_head(base);
    for (uint64_t round = 0; round < rounds; round++) {
        CHECK(munmap(tail, TAIL_PAGES * PAGE) == 0);
        void *at = mmap(tail, TAIL_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(at == tail);
        use(base, round);
    }
    CHECK(munmap(base, PAGES * PAGE) == 0);
}

static void by_break(size_t rounds) {
    unsigned char *old = sbrk(0);
    size_t round_up = (PAGE - (uintptr_t)old % PAGE) % PAGE;
    unsigned char *base = old + round_up;
    CHECK(sbrk((intptr_t)(round_up + PAGES * PAGE)) == old);
    fill_head(base);
    for (uint64_t round = 0; round < rounds; round++) {
        CHECK(brk(base + HEAD_PAGES * PAGE) == 0);
        CHECK(brk(base + PAGES * PAGE) == 0);
        use(base, round);
    }
    CHECK(brk(old) == 0);
}

static void by_mremap(size_t rounds) {
    unsigned char *base = map_pages(PAGES);
    fill_head(base);
    for (uint64_t round = 0; round < rounds; round++) {
        CHECK(mremap(base, PAGES * PAGE, HEAD_PAGES * PAGE, 0) == base);
        base = mremap(base, HEAD_PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE);
        CHECK(base != MAP_FAILED);
        use(base, round);
    }
    CHECK(munmap(base, PAGES * PAGE) == 0);
}

int main(int argc, char **argv) {
    size_t rounds = argument(argc, argv, 1, 10000);
    by_munmap(rounds);
    by_break(rounds);
    by_mremap(rounds);
    printf("regrow: %zu rounds\n", rounds);
    return 0;
}
