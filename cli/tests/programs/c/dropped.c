// Memory that one thread drops reads as zeros afterwards, whatever the agent does meanwhile: it leaves and comes back, as another thread calls setns.
//
// Usage: dropped CASE

#include "field.h"

#include <fcntl.h>
#include <sched.h>

enum { PAGES = 256, TURNS = 60 };

static _Atomic bool started, ended;

static void *drop_pages(void *argument_of_body) {
    unsigned char *memory = map_pages(PAGES);
    atomic_store(&started, true);
    while (!atomic_load(&ended)) {
        memset(memory, 7, PAGES * PAGE);
        CHECK(madvise(memory, PAGES * PAGE, MADV_DONTNEED) == 0);
        for (size_t page = 0; page < PAGES; page++) {
            CHECK(memory[page * PAGE] == 0);
        }
    }
    return argument_of_body;
}

// On one processor, so that threads are interrupted in the middle of what they do.
static void beside_setns(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    int space = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);
    CHECK(space >= 0);
    if (setns(space, CLONE_NEWUTS) != 0) {
        not_here("setns: %s", strerror(errno));
    }
    pthread_t thread;
    start_thread(&thread, drop_pages, NULL);
    while (!atomic_load(&started)) {
        sched_yield();
    }
    for (int turn = 0; turn < TURNS; turn++) {
        CHECK(setns(space, CLONE_NEWUTS) == 0);
        CHECK(usleep(4000) == 0);
    }
    atomic_store(&ended, true);
    CHECK(join_thread(thread) == NULL);
    use_field(2);
    check_field();
    print("dropped beside %d calls of setns\n", TURNS);
}

static const struct named CASES[] = {{"setns", beside_setns}};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
