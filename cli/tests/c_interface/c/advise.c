/* A program under `hetmem run --policy clock`, with a private device 0 and a coherent device 1, that says how it uses its memory. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "expect.h"

/* The limit is 8 MiB. */
enum { MIB = 256, PAGES = 16 * MIB };

/* hetmem's own, for measurements: where pages are. 0 is system memory, n device n - 1. */
extern int __hetmem_places(void *start, size_t length, unsigned char *places);

static char *memory;
static unsigned char places[PAGES];

static char *at(size_t page)
{
    return memory + page * HETMEM_PAGE_SIZE;
}

/* How many of the pages are in the place. */
static size_t count(size_t first, size_t pages, unsigned char place)
{
    size_t found = 0;
    EXPECT(__hetmem_places(at(first), pages * HETMEM_PAGE_SIZE, places) == 0);
    for (size_t i = 0; i < pages; i++) {
        found += places[i] == place;
    }
    return found;
}

static size_t away(size_t first, size_t pages)
{
    return pages - count(first, pages, 0);
}

static void say(size_t first, size_t pages, hetmem_advice advice, hetmem_place place)
{
    OK(hetmem_advise(NULL, at(first), pages * HETMEM_PAGE_SIZE, advice, place));
}

static void fill(size_t first, size_t pages)
{
    for (size_t i = first; i < first + pages; i++) {
        memset(at(i), (int)(i % 251 + 1), HETMEM_PAGE_SIZE);
    }
}

static void check(size_t first, size_t pages, int discarded)
{
    for (size_t i = first; i < first + pages; i++) {
        char expected = (char)(discarded ? 0 : i % 251 + 1);
        EXPECT(at(i)[0] == expected && at(i)[HETMEM_PAGE_SIZE - 1] == expected);
    }
}

/* Returns when the holds are so; the alarm ends who waits for ever. */
#define AWAIT(holds)                                                                                                   \
    while (!(holds)) {                                                                                                 \
        sched_yield();                                                                                                 \
    }

static void *discard(void *unused)
{
    (void)unused;
    for (int round = 0; round < 50; round++) {
        fill(10 * MIB, MIB);
        say(10 * MIB + round, 100, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM);
        check(10 * MIB + round, 100, 1);
        check(10 * MIB, round, 0);
        check(10 * MIB + round + 100, MIB - round - 100, 0);
    }
    return NULL;
}

int main(void)
{
    bounded();
    memory = mmap(NULL, (size_t)PAGES * HETMEM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    EXPECT(madvise(memory, (size_t)PAGES * HETMEM_PAGE_SIZE, MADV_NOHUGEPAGE) == 0);
    /* At once: nobody has looked yet what there is. */
    say(0, MIB, HETMEM_ADVICE_PIN, HETMEM_SYSTEM);
    say(MIB, MIB, HETMEM_ADVICE_PREFERRED_LOCATION, HETMEM_DEVICE(1));
    say(2 * MIB, MIB, HETMEM_ADVICE_READ_MOSTLY, HETMEM_SYSTEM);
    REFUSED(hetmem_advise(NULL, at(0), HETMEM_PAGE_SIZE, HETMEM_ADVICE_PREFERRED_LOCATION, HETMEM_DEVICE(2)),
            HETMEM_INVALID_INPUT, "there is no device 2; there are 2");
    void *file = mmap(NULL, HETMEM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(file != MAP_FAILED);
    REFUSED(hetmem_advise(NULL, file, HETMEM_PAGE_SIZE, HETMEM_ADVICE_SOON, HETMEM_SYSTEM), HETMEM_INVALID_INPUT, "not managed");
    *(volatile char *)file = 7;
    REFUSED(hetmem_advise(NULL, file, HETMEM_PAGE_SIZE, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM), HETMEM_INVALID_INPUT, "nothing was discarded");
    EXPECT(*(volatile char *)file == 7);

    /* Half of the limit: what is not needed soon stays while there is room. */
    fill(0, 4 * MIB);
    say(3 * MIB, MIB, HETMEM_ADVICE_NOT_SOON, HETMEM_SYSTEM);
    /* More than what has to leave then is there, and leaves before all else. */
    fill(4 * MIB, 4 * MIB + MIB / 4);
    AWAIT(away(3 * MIB, MIB) > 0);
    EXPECT(away(0, 3 * MIB) == 0 && away(4 * MIB, 4 * MIB + MIB / 4) == 0);

    /* All of it: three quarters have to leave. */
    fill(8 * MIB, 8 * MIB);
    AWAIT(away(0, PAGES) > 7 * MIB);
    AWAIT(count(MIB, 2 * MIB, 2) == 2 * MIB);
    EXPECT(away(0, MIB) == 0);
    AWAIT(count(3 * MIB, 13 * MIB, 1) > 0);

    /* Contents are given up, wherever they are. */
    say(5 * MIB, MIB, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM);
    EXPECT(away(5 * MIB, MIB) == 0);
    say(2 * MIB + 100, 50, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM);
    say(0, 10, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM);
    check(5 * MIB, MIB, 1);
    check(2 * MIB + 100, 50, 1);
    check(0, 10, 1);
    check(10, MIB - 10, 0);

    /* What is used soon comes, in the background. */
    say(MIB, MIB, HETMEM_ADVICE_NO_PREFERENCE, HETMEM_SYSTEM);
    say(MIB, MIB, HETMEM_ADVICE_SOON, HETMEM_SYSTEM);
    AWAIT(away(MIB, MIB) == 0);
    check(MIB, MIB, 0);

    /* A child has the advice, and its own copy of what its parent gives up. */
    int pipes[2];
    EXPECT(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        EXPECT(read(pipes[0], &byte, 1) == 1);
        check(10, MIB - 10, 0);
        fill(10, 5 * MIB);
        AWAIT(away(0, PAGES) > 7 * MIB);
        EXPECT(away(0, MIB) == 0);
        _exit(0);
    }
    say(10, 100, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM);
    check(10, 100, 1);
    EXPECT(write(pipes[1], "", 1) == 1);
    int status;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);

    /* Advice is given while another thread gives it, and pages leave and come. */
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, discard, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        fill(6 * MIB, 3 * MIB);
        say(6 * MIB, 3 * MIB, round % 2 ? HETMEM_ADVICE_SOON : HETMEM_ADVICE_NOT_SOON, HETMEM_SYSTEM);
        check(6 * MIB, 3 * MIB, 0);
    }
    EXPECT(pthread_join(thread, NULL) == 0);
    puts("ok");
    return 0;
}
