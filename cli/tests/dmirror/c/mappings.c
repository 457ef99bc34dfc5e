/* What the program does to its mappings empties the device's table: nothing stale is read, and nothing is lost. */
#include "device.h"

#include <malloc.h>

enum { PAGES = 128 };

static struct setting setting;

static int local(void)
{
    return P_WRITE | (setting.coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL);
}

static void all_are(int fd, void *at, size_t pages, int wanted)
{
    unsigned char *states = malloc(pages);
    DOES(fd, SNAPSHOT, at, pages, states, 0);
    for (size_t i = 0; i < pages; i++) {
        EQUAL(states[i], wanted);
    }
    free(states);
}

static void protection(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 1);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    /* An entry for writing does not outlive the protection. */
    DOES(fd, WRITE, at, (size_t)PAGES, out, 0);
    EQUAL(mprotect(at, PAGES * PAGE, PROT_READ), 0);
    REFUSES(fd, WRITE, at, PAGES, out, EPERM);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    EQUAL(mprotect(at, PAGES * PAGE, PROT_NONE), 0);
    REFUSES(fd, READ, at, PAGES, out, EFAULT);
    EQUAL(mprotect(at, PAGES * PAGE, PROT_READ | PROT_WRITE), 0);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    holds(out, PAGES, 1);
    all_are(fd, at, PAGES, local());
    DOES(fd, WRITE, at, (size_t)PAGES, out, 0);
    holds(at, PAGES, 1);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void unmapping(int fd)
{
    unsigned char *out = buffer(PAGES);
    for (int round = 0; round < 20; round++) {
        unsigned char *at = memory(&setting, PAGES);
        fill(at, PAGES, 2);
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        EQUAL(munmap(at, PAGES * PAGE), 0);
        REFUSES(fd, READ, at, PAGES, out, EFAULT);
        /* Other memory at the address is other memory. */
        void *again = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        EXPECT(again == at);
        DOES(fd, READ, at, (size_t)PAGES, out, 1);
        for (size_t i = 0; i < PAGES * PAGE; i++) {
            EQUAL(out[i], 0);
        }
        /* Mapped over what is on the device. */
        fill(at, PAGES, 3);
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        again = mmap(at, PAGES / 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        EXPECT(again == at);
        DOES(fd, READ, at, (size_t)PAGES, out, 1);
        for (size_t i = 0; i < PAGES * PAGE; i++) {
            EQUAL(out[i], i < PAGES / 2 * PAGE ? 0 : byte(i, 3));
        }
        EQUAL(munmap(at, PAGES * PAGE), 0);
    }
    free(out);
}

/* free() gives large blocks back to the kernel by itself. */
static void unmapping_that_nobody_announces(int fd)
{
    unsigned char *out = buffer(PAGES), *before = NULL;
    EQUAL(mallopt(M_MMAP_THRESHOLD, 64 << 10), 1);
    int same = 0;
    for (int round = 0; round < 50; round++) {
        unsigned char *block = malloc((PAGES + 1) * PAGE);
        unsigned char *at = (unsigned char *)(((uintptr_t)block + PAGE - 1) & ~(PAGE - 1));
        if (at == before) {
            same++;
            DOES(fd, READ, at + PAGE, (size_t)PAGES - 1, out, 1);
            for (size_t i = 0; i < (PAGES - 1) * PAGE; i++) {
                EQUAL(out[i], 0);
            }
        }
        fill(at, PAGES, 4);
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        before = at;
        free(block);
    }
    EXPECT(same > 0);
    free(out);
}

static void dropping(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    for (int round = 0; round < 20; round++) {
        fill(at, PAGES, 5);
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        EQUAL(madvise(at, PAGES / 2 * PAGE, MADV_DONTNEED), 0);
        DOES(fd, READ, at, (size_t)PAGES, out, 1);
        for (size_t i = 0; i < PAGES * PAGE; i++) {
            EQUAL(out[i], i < PAGES / 2 * PAGE ? 0 : byte(i, 5));
        }
    }
    munmap(at, PAGES * PAGE);
    free(out);
}

static void moving(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(2 * PAGES);
    fill(at, PAGES, 6);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    /* The pages stay on the device, at their new place. */
    unsigned char *place = map(PAGES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    unsigned char *to = mremap(at, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
    EXPECT(to != MAP_FAILED);
    if (to != at) {
        REFUSES(fd, READ, at, PAGES, out, EFAULT);
    }
    DOES(fd, READ, to, (size_t)2 * PAGES, out, 1);
    holds(out, PAGES, 6);
    holds(to, PAGES, 6);
    /* A part, to a fixed place. */
    DOES(fd, TO_DEVICE, to, (size_t)PAGES, out, 0);
    EXPECT(mremap(to + 32 * PAGE, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    REFUSES(fd, READ, to + 32 * PAGE, 64, out, EFAULT);
    DOES(fd, READ, place, (size_t)64, out, 1);
    EXPECT(memcmp(out, place, 64 * PAGE) == 0);
    for (size_t i = 0; i < 64 * PAGE; i++) {
        EQUAL(out[i], byte(i + 32 * PAGE, 6));
    }
    munmap(to, 2 * PAGES * PAGE);
    munmap(place, PAGES * PAGE);
    free(out);
}

/* A mapping of which a part is on the device is one mapping to the program. */
static void moving_more_than_what_is_there(int fd)
{
    unsigned char *out = buffer(PAGES);
    for (int home = 0; home < 2; home++) {
        unsigned char *at = memory(&setting, PAGES);
        fill(at, PAGES, 7);
        DOES(fd, TO_DEVICE, at + 40 * PAGE, (size_t)10, out, 0);
        if (home) {
            EQUAL(ask(fd, TO_SYSTEM, at, PAGES, NULL, NULL), 0);
        }
        unsigned char *to = mremap(at, PAGES * PAGE, 4 * PAGES * PAGE, MREMAP_MAYMOVE);
        if (to == MAP_FAILED) {
            perror("mremap");
            _exit(1);
        }
        DOES(fd, READ, to, (size_t)PAGES, out, 1);
        holds(out, PAGES, 7);
        holds(to, PAGES, 7);
        munmap(to, 4 * PAGES * PAGE);
    }
    free(out);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    int fd = open_device(setting.first);
    protection(fd);
    unmapping(fd);
    unmapping_that_nobody_announces(fd);
    dropping(fd);
    moving(fd);
    moving_more_than_what_is_there(fd);
    return end();
}
