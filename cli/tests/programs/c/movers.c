// Threads that move their own memory about, to where the kernel chooses: the old place of one is the next place of another.
//
// Usage: movers CASE

#include "field.h"

enum { MOVERS = 8, MOVES = 1500, MANY = 900, FEW = 16 };

static uint64_t *word_of(unsigned char *memory, size_t page) {
    return (uint64_t *)(memory + page * PAGE);
}

static void *move_about(void *number) {
    uint64_t state = (uintptr_t)number, seed = (uintptr_t)number << 32;
    size_t pages = (uintptr_t)number % 2 == 0 ? MANY : FEW + (uintptr_t)number;
    unsigned char *memory = map_pages(pages);
    for (size_t i = 0; i < pages; i++) {
        *word_of(memory, i) = seed + i + 1;
    }
    for (int move = 0; move < MOVES; move++) {
        // It can't grow where it is.
        size_t more = 1 + next_random(&state) % 24;
        unsigned char *end = memory + pages * PAGE;
        void *wall =
            mmap(end, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
        memory = mremap(memory, pages * PAGE, (pages + more) * PAGE, MREMAP_MAYMOVE);
        CHECK(memory != MAP_FAILED);
        CHECK(munmap(memory + pages * PAGE, more * PAGE) == 0);
        CHECK(wall == MAP_FAILED || munmap(wall, PAGE) == 0);
        for (size_t i = 0; i < pages; i++) {
            if (*word_of(memory, i) != seed + i + 1) {
                FAIL("page %zu of %zu has %#lx after %d moves", i, pages, (unsigned long)*word_of(memory, i), move);
            }
        }
    }
    return NULL;
}

static void move_all(void) {
    pthread_t movers[MOVERS];
    for (uintptr_t i = 0; i < MOVERS; i++) {
        start_thread(&movers[i], move_about, (void *)(i + 1));
    }
    for (uintptr_t i = 0; i < MOVERS; i++) {
        CHECK(join_thread(movers[i]) == NULL);
    }
}

static const struct named CASES[] = {{"about", move_all}};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
