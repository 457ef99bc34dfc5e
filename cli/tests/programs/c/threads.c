// Many threads on the same pages: words of several threads side by side on each page, atomics that all add to, mutexes
// and condition variables in memory that moves, and threads that come and go all the time.
//
// Usage: threads [ROUNDS] [THREADS] [PAGES]

#include "common.h"

enum { MOST_THREADS = 16, CHURN = 12 };

static size_t rounds, threads, pages;
static uint64_t *arena;
static pthread_barrier_t barrier;
static _Atomic uint64_t total;

// Word 0 of each page is added to by all threads; word 1 + thread is one thread's own.
static void *walk(void *argument_of_body) {
    size_t self = (size_t)(uintptr_t)argument_of_body;
    uint64_t sum = 0;
    for (size_t round = 0; round < rounds; round++) {
        size_t stride = 2 * (size_t)(mix(round * MOST_THREADS + self) % pages) + 1;
        // An odd stride visits each page once when the number of pages is a power of two.
        for (size_t i = 0, page = self; i < pages; i++, page = (page + stride) & (pages - 1)) {
            uint64_t *words = arena + page * WORDS;
            uint64_t *own = &words[1 + self];
            if (*own != (round == 0 ? 0 : mix(round - 1 + self * 1000 + page))) {
                FAIL("thread %zu, round %zu, page %zu: found %#llx", self, round, page, (unsigned long long)*own);
            }
            *own = mix(round + self * 1000 + page);
            sum += *own;
            atomic_fetch_add((_Atomic uint64_t *)words, self + 1);
        }
        int serial = pthread_barrier_wait(&barrier);
        CHECK(serial == 0 || serial == PTHREAD_BARRIER_SERIAL_THREAD);
    }
    atomic_fetch_add(&total, sum);
    return NULL;
}

static void walk_together(void) {
    pthread_t ids[MOST_THREADS];
    CHECK(pthread_barrier_init(&barrier, NULL, (unsigned)threads) == 0);
    for (size_t i = 0; i < threads; i++) {
        start_thread(&ids[i], walk, (void *)(uintptr_t)i);
    }
    for (size_t i = 0; i < threads; i++) {
        join_thread(ids[i]);
    }
    uint64_t each = rounds * threads * (threads + 1) / 2;
    for (size_t page = 0; page < pages; page++) {
        if (arena[page * WORDS] != each) {
            FAIL("page %zu counted %llu instead of %llu", page, (unsigned long long)arena[page * WORDS], (unsigned long long)each);
        }
    }
    printf("walk: %llu\n", (unsigned long long)total);
}

// A queue of one place in memory of its own, so that the mutex and the waiters' futexes move too.
struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool full;
    uint64_t letter;
    struct mailbox *to;
    uint64_t letters;
};

static void *pass_on(void *argument_of_body) {
    struct mailbox *own = argument_of_body;
    for (uint64_t i = 0; i < own->letters; i++) {
        CHECK(pthread_mutex_lock(&own->lock) == 0);
        while (!own->full) {
            CHECK(pthread_cond_wait(&own->changed, &own->lock) == 0);
        }
        uint64_t letter = own->letter;
        own->full = false;
        CHECK(pthread_mutex_unlock(&own->lock) == 0);
        struct mailbox *to = own->to;
        CHECK(pthread_mutex_lock(&to->lock) == 0);
        CHECK(!to->full);
        to->letter = mix(letter);
        to->full = true;
        CHECK(pthread_cond_signal(&to->changed) == 0);
        CHECK(pthread_mutex_unlock(&to->lock) == 0);
    }
    return NULL;
}

static void pass_letters(uint64_t letters) {
    struct mailbox *ring[4];
    pthread_t ids[4];
    for (int i = 0; i < 4; i++) {
        ring[i] = map_pages(1);
        CHECK(pthread_mutex_init(&ring[i]->lock, NULL) == 0);
        CHECK(pthread_cond_init(&ring[i]->changed, NULL) == 0);
        ring[i]->letters = letters;
    }
    for (int i = 0; i < 4; i++) {
        ring[i]->to = ring[(i + 1) % 4];
    }
    ring[0]->letter = 1;
    ring[0]->full = true;
    for (int i = 0; i < 4; i++) {
        start_thread(&ids[i], pass_on, ring[i]);
    }
    uint64_t expected = 1;
    for (uint64_t i = 0; i < 4 * letters; i++) {
        expected = mix(expected);
    }
    for (int i = 0; i < 4; i++) {
        join_thread(ids[i]);
    }
    CHECK(ring[0]->full && ring[0]->letter == expected);
    printf("letters: %llx\n", (unsigned long long)expected);
}

static _Thread_local uint64_t own_words[1024];

// Uses its stack to some depth, so that frames lie on pages that move under them.
__attribute__((noinline)) static uint64_t descend(unsigned depth, uint64_t seed) {
    volatile uint64_t frame[128];
    for (size_t i = 0; i < 128; i++) {
        frame[i] = mix(seed + i);
    }
    uint64_t below = depth == 0 ? 0 : descend(depth - 1, mix(seed));
    for (size_t i = 0; i < 128; i++) {
        if (frame[i] != mix(seed + i)) {
            FAIL("stack frame at depth %u differs", depth);
        }
    }
    return below ^ frame[depth % 128];
}

// Allocates, grows, checks and frees; leaves its result on the heap for the thread that joins it.
static void *live_and_die(void *argument_of_body) {
    uint64_t seed = (uint64_t)(uintptr_t)argument_of_body;
    uint64_t state = seed, sum = 0;
    uint64_t *blocks[64] = {0};
    size_t lengths[64] = {0};
    uint64_t seeds[64] = {0};
    for (size_t i = 0; i < 1024; i++) {
        CHECK(own_words[i] == 0);
        own_words[i] = seed + i;
    }
    for (int step = 0; step < 400; step++) {
        size_t i = next_random(&state) % 64;
        for (size_t w = 0; w < lengths[i]; w += 61) {
            if (blocks[i][w] != seeds[i] + w) {
                FAIL("heap block differs");
            }
        }
        size_t words = next_random(&state) % 4096 + 1;
        if (step % 3 == 0) {
            free(blocks[i]);
            blocks[i] = malloc(words * sizeof(uint64_t));
        } else {
            size_t kept = lengths[i] < words ? lengths[i] : words;
            blocks[i] = realloc(blocks[i], words * sizeof(uint64_t));
            CHECK(blocks[i] != NULL);
            for (size_t w = 0; w < kept; w += 61) {
                CHECK(blocks[i][w] == seeds[i] + w);
            }
        }
        CHECK(blocks[i] != NULL);
        seeds[i] = next_random(&state);
        lengths[i] = words;
        for (size_t w = 0; w < words; w++) {
            blocks[i][w] = seeds[i] + w;
        }
        sum += seeds[i] ^ words;
    }
    for (size_t i = 0; i < 64; i++) {
        free(blocks[i]);
    }
    sum ^= descend(60, seed);
    for (size_t i = 0; i < 1024; i++) {
        CHECK(own_words[i] == seed + i);
    }
    uint64_t *result = malloc(sizeof *result);
    CHECK(result != NULL);
    *result = sum;
    return result;
}

static void churn(size_t generations) {
    uint64_t sum = 0;
    for (size_t generation = 0; generation < generations; generation++) {
        pthread_t ids[CHURN];
        for (size_t i = 0; i < CHURN; i++) {
            start_thread(&ids[i], live_and_die, (void *)(uintptr_t)(generation * CHURN + i + 1));
        }
        for (size_t i = 0; i < CHURN; i++) {
            uint64_t *result = join_thread(ids[i]);
            sum += *result;
            free(result);
        }
    }
    printf("churn: %llx\n", (unsigned long long)sum);
}

int main(int argc, char **argv) {
    rounds = argument(argc, argv, 1, 60);
    threads = argument(argc, argv, 2, 8);
    pages = argument(argc, argv, 3, 8192);
    CHECK(threads >= 1 && threads <= MOST_THREADS && (pages & (pages - 1)) == 0);
    arena = map_pages(pages);
    walk_together();
    pass_letters(rounds * 40);
    churn(rounds / 4 + 1);
    return 0;
}
