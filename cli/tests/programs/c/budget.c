// Processes of a run share one limit, and devices of one size. What each has in memory is asked of the kernel.
//
// Usage: budget tree|idle|device|short|forked|exec LIMIT [DEVICE], which are in MiB.
//   tree   processes that want three times the limit, all of it in use; one is killed, one stopped, all but one end
//   idle   of one that is busy and one that sleeps, the busy one has what there is but for a small part
//   device as tree, where together they have more than the limit and the device; what is away at a time is no more than that has
//   short  children that live for an instant take nothing from a parent that fills the limit
//   forked what a child had, and the parent has written no more, leaves
//   exec   what a program had that this one has executed over is given back

#include "common.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

// In seconds, more than the slowest machine needs.
enum { PATIENCE = 100, CHILDREN = 3, CHAIN = 5, SHORT = 400 };

static size_t limit;

static bool is_managed(void) {
    return getenv("HETMEM_AGENT") != NULL;
}

// How many of these pages of a process are in memory, and not on a device.
static size_t present_in(pid_t process, const unsigned char *memory, size_t pages) {
    uint64_t entries[512];
    size_t found = 0;
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/pagemap", (int)process);
    int map = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(map >= 0);
    for (size_t at = 0; at < pages; at += 512) {
        size_t some = pages - at < 512 ? pages - at : 512;
        off_t where = (off_t)(((uintptr_t)memory / PAGE + at) * 8);
        CHECK(pread(map, entries, some * 8, where) == (ssize_t)(some * 8));
        for (size_t i = 0; i < some; i++) {
            found += entries[i] >> 63;
        }
    }
    CHECK(close(map) == 0);
    return found;
}

static size_t present(const unsigned char *memory, size_t pages) {
    return present_in(getpid(), memory, pages);
}

static unsigned char *filled(size_t pages, uint64_t seed) {
    unsigned char *memory = map_pages(pages);
    CHECK(madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
    for (size_t i = 0; i < pages; i++) {
        fill_page(memory + i * PAGE, seed + i);
    }
    return memory;
}

static void check(const unsigned char *memory, size_t pages, uint64_t seed) {
    for (size_t i = 0; i < pages; i++) {
        CHECK_PAGE(memory + i * PAGE, seed + i);
    }
}

static void pause_shortly(void) {
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    nanosleep(&pause, NULL);
}

// Waits for what is true natively, or soon.
#define AWAIT(condition, ...)                                                                                          \
    do {                                                                                                               \
        time_t begin = time(NULL);                                                                                     \
        while (is_managed() && !(condition)) {                                                                         \
            if (time(NULL) - begin > PATIENCE) {                                                                       \
                FAIL(__VA_ARGS__);                                                                                     \
            }                                                                                                          \
            pause_shortly();                                                                                           \
        }                                                                                                              \
    } while (0)

// What the processes tell one another.
struct shared {
    // How many counts are wanted, and what each has counted for which.
    _Atomic uint64_t wanted;
    struct {
        _Atomic uint64_t counted, present;
    } of[CHILDREN];
    _Atomic bool end;
};

// Uses all of its memory, over and over.
_Noreturn static void child(struct shared *shared, int number, size_t pages) {
    // Not beyond its parent, however that ends.
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    uint64_t seed = 1000000 * (uint64_t)(number + 1);
    unsigned char *memory = filled(pages, seed);
    for (uint64_t turn = 0; !shared->end; turn++) {
        size_t page = mix(turn + seed) % pages;
        CHECK_PAGE(memory + page * PAGE, seed + page);
        uint64_t wanted = shared->wanted;
        if (shared->of[number].counted != wanted) {
            shared->of[number].present = present(memory, pages);
            shared->of[number].counted = wanted;
        }
    }
    check(memory, pages, seed);
    _exit(0);
}

static pid_t start_child(struct shared *shared, int number) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        child(shared, number, limit);
    }
    return pid;
}

// Starts those that use as much as the limit each.
static struct shared *with_children(pid_t *children) {
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = start_child(shared, i);
    }
    return shared;
}

static bool all_counted(struct shared *shared, const pid_t *children) {
    for (int i = 0; i < CHILDREN; i++) {
        if (children[i] > 0 && shared->of[i].counted != shared->wanted) {
            return false;
        }
    }
    return true;
}

static bool status_of_killed(pid_t child) {
    int status;
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status);
}

// What those that run have in memory now.
static size_t sum(struct shared *shared, const pid_t *children) {
    shared->wanted++;
    time_t begin = time(NULL);
    while (!all_counted(shared, children)) {
        CHECK(time(NULL) - begin <= PATIENCE);
        sched_yield();
    }
    size_t all = 0;
    for (int i = 0; i < CHILDREN; i++) {
        all += children[i] > 0 ? shared->of[i].present : 0;
    }
    return all;
}

// More may be there for an instant, until it is seen; how long that is depends on what else the machine does. Without a limit that is shared it
// would be twice as much and more.
static void stays_below(struct shared *shared, const pid_t *children, size_t most) {
    enum { LOOKS = 100 };
    size_t now, all = 0;
    AWAIT((now = sum(shared, children)) <= most, "%zu pages of %zu are still there", now, most);
    for (int i = 0; i < LOOKS && is_managed(); i++) {
        all += sum(shared, children);
        pause_shortly();
    }
    if (all / LOOKS > most + most / 8) {
        FAIL("%zu pages of %zu are there on average", all / LOOKS, most);
    }
}

static int tree(void) {
    pid_t children[CHILDREN];
    struct shared *shared = with_children(children);
    stays_below(shared, children, limit);
    int status;
    // One is killed: the others have its share.
    CHECK(kill(children[0], SIGKILL) == 0 && waitpid(children[0], &status, 0) == children[0]);
    children[0] = 0;
    size_t now;
    AWAIT((now = sum(shared, children)) > limit * 5 / 8, "only %zu pages are there", now);
    stays_below(shared, children, limit);
    // One is stopped: what it has is counted still, and it is not waited for.
    pid_t stopped = children[1];
    CHECK(kill(stopped, SIGSTOP) == 0 && waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status));
    shared->wanted++;
    size_t kept = shared->of[1].present;
    children[1] = 0;
    stays_below(shared, children, limit - kept / 2);
    children[1] = stopped;
    CHECK(kill(stopped, SIGCONT) == 0);
    stays_below(shared, children, limit);
    // All but one end.
    CHECK(kill(stopped, SIGKILL) == 0 && waitpid(stopped, &status, 0) == stopped);
    children[1] = 0;
    AWAIT((now = sum(shared, children)) > limit / 2, "only %zu pages are there", now);
    shared->end = true;
    CHECK(waitpid(children[2], &status, 0) == children[2] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

static int idle(void) {
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int sleeps[2], wakes[2];
    CHECK(shared != MAP_FAILED && pipe(sleeps) == 0 && pipe(wakes) == 0);
    unsigned char *memory = NULL;
    pid_t sleeper = fork();
    CHECK(sleeper >= 0);
    if (sleeper == 0) {
        char byte;
        CHECK(close(wakes[1]) == 0);
        memory = filled(limit, 7);
        CHECK(write(sleeps[1], &memory, sizeof memory) == sizeof memory && read(wakes[0], &byte, 1) == 0);
        check(memory, limit, 7);
        _exit(0);
    }
    CHECK(read(sleeps[0], &memory, sizeof memory) == sizeof memory);
    pid_t children[CHILDREN] = {fork()};
    CHECK(children[0] >= 0);
    if (children[0] == 0) {
        child(shared, 0, limit);
    }
    size_t busy, asleep;
    AWAIT((busy = sum(shared, children)) > limit * 11 / 16 && (asleep = present_in(sleeper, memory, limit)) < limit / 4,
          "the busy one has %zu pages in memory, the other %zu", busy, asleep = present_in(sleeper, memory, limit));
    shared->end = true;
    CHECK(status_of(children[0]) == 0 && close(wakes[1]) == 0 && status_of(sleeper) == 0);
    return 0;
}

static int device(size_t frames) {
    pid_t children[CHILDREN];
    struct shared *shared = with_children(children);
    size_t now;
    AWAIT((now = CHILDREN * limit - sum(shared, children)) > frames * 3 / 4, "only %zu pages are away", now);
    for (int i = 0; i < 200 && is_managed(); i++) {
        now = CHILDREN * limit - sum(shared, children);
        // Some are on their way.
        if (now > frames + CHILDREN * 1024) {
            FAIL("%zu pages are away, where the device has %zu", now, frames);
        }
        if (i == 100) {
            // What one had others can have.
            CHECK(kill(children[0], SIGKILL) == 0 && status_of_killed(children[0]));
            children[0] = start_child(shared, 0);
        }
    }
    shared->end = true;
    for (int i = 0; i < CHILDREN; i++) {
        CHECK(status_of(children[i]) == 0);
    }
    return 0;
}

static int shortly(void) {
    size_t pages = limit * 3 / 4;
    unsigned char *memory = filled(pages, 7);
    for (int i = 0; i < SHORT; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            // With the stock all of it fits, and heaps and stacks besides.
            check(filled(limit / 16, 9), limit / 16, 9);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        size_t now = present(memory, pages);
        if (now < pages) {
            FAIL("after %d children %zu pages of %zu are there", i + 1, now, pages);
        }
    }
    check(memory, pages, 7);
    return 0;
}

static int forked(void) {
    size_t pages = 2 * limit, now;
    unsigned char *memory = filled(pages, 7);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        check(memory, pages, 7);
        _exit(0);
    }
    CHECK(status_of(child) == 0);
    AWAIT((now = present(memory, pages)) <= limit, "%zu pages of %zu are still there", now, limit);
    check(memory, pages, 7);
    return 0;
}

static int execute(int argc, char **argv) {
    size_t at = argument(argc, argv, 3, 0), pages = limit * 3 / 4;
    unsigned char *memory = filled(pages, at);
    check(memory, pages, at);
    // Long enough for what the last one had to be in the way.
    for (int i = 0; i < 60; i++) {
        pause_shortly();
        size_t now = present(memory, pages);
        if (now < pages) {
            FAIL("in link %zu of the chain %zu pages of %zu are there", at, now, pages);
        }
    }
    if (at < CHAIN) {
        char next[8];
        snprintf(next, sizeof next, "%zu", at + 1);
        execl("/proc/self/exe", argv[0], "exec", argv[2], next, (char *)NULL);
        FAIL("it is not executed");
    }
    return 0;
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    limit = argument(argc, argv, 2, 0) * MIB / PAGE;
    int failed = strcmp(argv[1], "tree") == 0     ? tree()
                 : strcmp(argv[1], "idle") == 0   ? idle()
                 : strcmp(argv[1], "device") == 0 ? device(argument(argc, argv, 3, 0) * MIB / PAGE)
                 : strcmp(argv[1], "short") == 0  ? shortly()
                 : strcmp(argv[1], "forked") == 0 ? forked()
                 : strcmp(argv[1], "exec") == 0   ? execute(argc, argv)
                                                  : 2;
    printf("%s %zu\n", argv[1], limit);
    return failed;
}
