/* Many threads use the device, and the memory, at once: nothing stale is read, nothing is torn or lost, and everybody comes to an end. */
#include "device.h"

#include <pthread.h>

enum { PAGES = 64, THREADS = 3, ROUNDS = 150 };

static struct setting setting;
static int over;

static int goes_on(void)
{
    return !__atomic_load_n(&over, __ATOMIC_RELAXED);
}

static void together(void *(*work)(void *), void *argument, void (*meanwhile)(void *))
{
    pthread_t threads[THREADS];
    __atomic_store_n(&over, 0, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++) {
        EQUAL(pthread_create(&threads[i], NULL, work, argument), 0);
    }
    meanwhile(argument);
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++) {
        EQUAL(pthread_join(threads[i], NULL), 0);
    }
}

struct shared {
    int fd, other;
    unsigned char *at;
    /* The pages hold this number throughout, or the next. */
    uint64_t number;
};

static void fill_numbers(uint64_t *words, uint64_t number)
{
    for (size_t i = 0; i < PAGES * PAGE / 8; i++) {
        __atomic_store_n(&words[i], number, __ATOMIC_RELAXED);
    }
}

/* Devices read while one thread counts up: no number is older than what was there when the read began. */
static void *reads(void *argument)
{
    struct shared *shared = argument;
    uint64_t *out = (uint64_t *)buffer(PAGES);
    for (unsigned turn = 0; goes_on(); turn++) {
        uint64_t before = __atomic_load_n(&shared->number, __ATOMIC_ACQUIRE);
        EQUAL(ask(turn % 2 ? shared->fd : shared->other, READ, shared->at, PAGES, out, NULL), 0);
        for (size_t i = 0; i < PAGES * PAGE / 8; i++) {
            EXPECT(out[i] >= before);
        }
    }
    free(out);
    return NULL;
}

static void counts_up(void *argument)
{
    struct shared *shared = argument;
    uint64_t *out = (uint64_t *)buffer(PAGES);
    for (uint64_t number = 1; number <= ROUNDS; number++) {
        if (number % 2) {
            fill_numbers((uint64_t *)shared->at, number);
        } else {
            fill_numbers(out, number);
            EQUAL(ask(shared->fd, WRITE, shared->at, PAGES, out, NULL), 0);
        }
        __atomic_store_n(&shared->number, number, __ATOMIC_RELEASE);
        int fd = number % 4 < 2 ? shared->fd : shared->other;
        int migrated = ask(fd, TO_DEVICE, shared->at, PAGES, out, NULL);
        EXPECT(migrated == 0 || migrated == ENOENT);
        if (number % 3 == 0) {
            EQUAL(ask(fd, TO_SYSTEM, shared->at, PAGES, NULL, NULL), 0);
        }
        if (number % 5 == 0) {
            EQUAL(mprotect(shared->at, PAGES * PAGE, PROT_READ), 0);
            EQUAL(mprotect(shared->at, PAGES * PAGE, PROT_READ | PROT_WRITE), 0);
        }
        if (number % 7 == 0) {
            int exclusive = ask(shared->fd, EXCLUSIVE, shared->at, PAGES, out, NULL);
            EXPECT(exclusive == 0 || exclusive == EBUSY || exclusive == ENOENT);
        }
        if (number % 11 == 0) {
            EQUAL(ask(fd, RELEASE, shared->at, 1, NULL, NULL), 0);
        }
        if (number % 25 == 0) {
            pid_t child = fork();
            if (child == 0) {
                for (size_t i = 0; i < PAGES * PAGE / 8; i++) {
                    EQUAL(((uint64_t *)shared->at)[i], number);
                }
                _exit(0);
            }
            child_is_well(child);
        }
        for (size_t i = 0; i < PAGES * PAGE / 8; i++) {
            EQUAL(((uint64_t *)shared->at)[i], number);
        }
    }
    free(out);
}

/* Devices fault and migrate while the memory comes and goes. */
static void *uses(void *argument)
{
    struct shared *shared = argument;
    unsigned char *out = buffer(PAGES);
    static int number;
    int own = __atomic_fetch_add(&number, 1, __ATOMIC_RELAXED), first = own % 2 ? shared->fd : shared->other;
    while (goes_on()) {
        for (int what = READ; what <= CHECK_EXCLUSIVE; what++) {
            uint64_t before = __atomic_load_n(&shared->number, __ATOMIC_ACQUIRE);
            int result = what == WRITE ? 0 : ask(first, what, shared->at, PAGES, out, NULL);
            EXPECT(result == 0 || result == EFAULT || result == EINVAL || result == ENOENT || result == EBUSY ||
                   result == EPERM);
            /* The memory is zeros, and then one number in each byte: of no round that was over when the read began. */
            uint64_t after = __atomic_load_n(&shared->number, __ATOMIC_ACQUIRE);
            for (size_t i = 0; result == 0 && what == READ && i < PAGES * PAGE; i++) {
                EXPECT(out[i] == 0 || (out[i] >= before && out[i] <= after));
            }
        }
    }
    free(out);
    return NULL;
}

static void comes_and_goes(void *argument)
{
    struct shared *shared = argument;
    uint64_t *out = (uint64_t *)buffer(PAGES);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        uint64_t number = round * 0x0101010101010101;
        EQUAL(munmap(shared->at, PAGES * PAGE), 0);
        EXPECT(mmap(shared->at, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == shared->at);
        if (setting.huge) {
            madvise(shared->at, PAGES * PAGE, MADV_HUGEPAGE);
        }
        /* Whatever was on a device is gone. */
        EQUAL(ask(shared->fd, READ, shared->at, PAGES, out, NULL), 0);
        for (size_t i = 0; i < PAGES * PAGE / 8; i++) {
            EQUAL(out[i], 0);
        }
        __atomic_store_n(&shared->number, round, __ATOMIC_RELEASE);
        fill_numbers((uint64_t *)shared->at, number);
        EQUAL(ask(shared->other, READ, shared->at, PAGES, out, NULL), 0);
        for (size_t i = 0; i < PAGES * PAGE / 8; i++) {
            EQUAL(out[i], number);
            EQUAL(((uint64_t *)shared->at)[i], number);
        }
    }
    free(out);
}

/* Opening and closing while others use what is open. */
static void *opens(void *argument)
{
    struct shared *shared = argument;
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    for (unsigned seed = 0; goes_on(); seed++) {
        int fd = open_device((seed % 2 ? setting.first : setting.second));
        fill(at, PAGES, seed);
        int migrated = ask(fd, TO_DEVICE, at, PAGES, out, NULL);
        /* Another's close brings the device's pages home. */
        EXPECT(migrated == 0 || migrated == ENOENT);
        EQUAL(close(fd), 0);
        holds(at, PAGES, seed);
    }
    (void)shared;
    munmap(at, PAGES * PAGE);
    free(out);
    return NULL;
}

static void closes(void *argument)
{
    (void)argument;
    for (int round = 0; round < ROUNDS / 2; round++) {
        int fd = open_device(setting.first);
        EQUAL(close(fd), 0);
    }
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    together(opens, NULL, closes);
    struct shared shared = {open_device(setting.first), open_device(setting.second), memory(&setting, PAGES), 0};
    fill_numbers((uint64_t *)shared.at, 0);
    together(reads, &shared, counts_up);
    fill_numbers((uint64_t *)shared.at, 0);
    shared.number = 0;
    together(uses, &shared, comes_and_goes);
    return end();
}
