/* Forks: a child finds what its parent had, opens devices of its own, and neither disturbs the other. */
#include "device.h"

#include <pthread.h>
#include <sched.h>

enum { PAGES = 100 };

static struct setting setting;

static void in_child(int inherited, unsigned char *at, int rounds)
{
    unsigned char *out = buffer(PAGES);
    alarm(60);
    holds(at, PAGES, 1);
    REFUSES(inherited, READ, at, 1, out, ENODEV);
    REFUSES(inherited, TO_DEVICE, at, 1, out, ENODEV);
    EQUAL(close(inherited), 0);
    for (int round = 0; round < rounds; round++) {
        int fd = open_device(round % 2 ? setting.first : setting.second);
        fill(at, PAGES, 2);
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        holds(out, PAGES, 2);
        fill(out, PAGES, 3);
        DOES(fd, WRITE, at, (size_t)PAGES, out, 0);
        holds(at, PAGES, 3);
        DOES(fd, EXCLUSIVE, at, (size_t)PAGES, out, 0);
        holds(out, PAGES, 3);
        EQUAL(close(fd), 0);
        holds(at, PAGES, 3);
    }
    _exit(0);
}

static void a_child_has_what_its_parent_had(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 1);
    for (int round = 0; round < 10; round++) {
        /* Pages on the device, some of them exclusively. */
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        DOES(fd, EXCLUSIVE, at, (size_t)PAGES / 2, out, 0);
        pid_t child = round % 2 ? _Fork() : fork();
        if (child == 0) {
            in_child(fd, at, 2);
        }
        /* Nothing of before the fork is in the table. */
        EQUAL(ask(fd, CHECK_EXCLUSIVE, at, PAGES, NULL, NULL), 0);
        DOES(fd, READ, at, (size_t)PAGES, out, 1);
        holds(out, PAGES, 1);
        child_is_well(child);
        holds(at, PAGES, 1);
    }
    munmap(at, PAGES * PAGE);
    free(out);
}

/* What the child writes is the child's; shared memory is both's. */
static void writes_by_the_childs_device(int fd)
{
    unsigned char *own = memory(&setting, PAGES), *out = buffer(PAGES);
    unsigned char *shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    fill(own, PAGES, 4);
    fill(shared, PAGES, 4);
    DOES(fd, TO_DEVICE, own, (size_t)PAGES, out, 0);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        int device = open_device(setting.first);
        fill(out, PAGES, 5);
        DOES(device, WRITE, own, (size_t)PAGES, out, 1);
        DOES(device, WRITE, shared, (size_t)PAGES, out, 1);
        holds(own, PAGES, 5);
        _exit(0);
    }
    child_is_well(child);
    holds(own, PAGES, 4);
    DOES(fd, READ, own, (size_t)PAGES, out, 1);
    holds(out, PAGES, 4);
    DOES(fd, READ, shared, (size_t)PAGES, out, 1);
    holds(out, PAGES, 5);
    /* What a child shares becomes the device's own copy by a write, and by a migration. */
    DOES(fd, TO_DEVICE, own, (size_t)PAGES, out, 0);
    holds(own, PAGES, 4);
    munmap(own, PAGES * PAGE);
    munmap(shared, PAGES * PAGE);
    free(out);
}

/* Both at once, each with its own pages at the same addresses. */
static void two_processes_at_once(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 6);
    pid_t child = fork();
    int device = child == 0 ? open_device(setting.first) : fd;
    unsigned seed = child == 0 ? 7 : 8;
    for (int round = 0; round < 30; round++) {
        fill(at, PAGES, seed + (unsigned)round * 2);
        DOES(device, TO_DEVICE, at, (size_t)PAGES, out, 0);
        holds(out, PAGES, seed + (unsigned)round * 2);
        EQUAL(ask(device, RELEASE, at, 1, NULL, NULL), 0);
        holds(at, PAGES, seed + (unsigned)round * 2);
    }
    if (child == 0) {
        _exit(0);
    }
    child_is_well(child);
    munmap(at, PAGES * PAGE);
    free(out);
}

/* Threads that use the device while another forks. */
static int over;

static void *busy(void *argument)
{
    int fd = *(int *)argument;
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    for (unsigned seed = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); seed++) {
        fill(at, PAGES, seed);
        int migrated = ask(fd, TO_DEVICE, at, PAGES, out, NULL);
        /* A fork in the middle empties the table. */
        EXPECT(migrated == 0 || migrated == ENOENT);
        EQUAL(ask(fd, READ, at, PAGES, out, NULL), 0);
        holds(out, PAGES, seed);
        holds(at, PAGES, seed);
    }
    return NULL;
}

static void while_others_use_the_device(int fd)
{
    pthread_t threads[3];
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    for (int i = 0; i < 3; i++) {
        EQUAL(pthread_create(&threads[i], NULL, busy, &fd), 0);
    }
    fill(at, PAGES, 1);
    for (int round = 0; round < 20; round++) {
        DOES(fd, WRITE, at, (size_t)1, at, 1);
        /* What is on the device still is not asked to go there. */
        EQUAL(ask(fd, TO_SYSTEM, at, PAGES, NULL, NULL), 0);
        DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
        pid_t child = fork();
        if (child == 0) {
            in_child(fd, at, 1);
        }
        child_is_well(child);
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++) {
        EQUAL(pthread_join(threads[i], NULL), 0);
    }
    munmap(at, PAGES * PAGE);
    free(out);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    int fd = open_device(setting.first);
    a_child_has_what_its_parent_had(fd);
    writes_by_the_childs_device(fd);
    two_processes_at_once(fd);
    while_others_use_the_device(fd);
    return end();
}
