// A handler of a signal calls what the thread is in the middle of, or something like it, or leaves by siglongjmp.
//
// Usage: interrupted CASE

#include "field.h"

#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

enum { PAGES = 256, TIMES = 20, JUMPS = 60 };

static unsigned char *memory, *elsewhere;
static int space = -1;
static volatile sig_atomic_t handled;
static void (*volatile in_handler)(unsigned char *);
static sigjmp_buf away;
static timer_t timer;

static void reap(pid_t child) {
    if (child == 0) {
        _exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void do_mincore(unsigned char *seen) {
    CHECK(mincore(memory, PAGES * PAGE, seen) == 0);
}

static void do_fork(unsigned char *seen) {
    (void)seen;
    reap(fork());
}

static void do_bare_fork(unsigned char *seen) {
    (void)seen;
#ifdef SYS_fork
    reap((pid_t)syscall(SYS_fork));
#else
    reap((pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
#endif
}

static void do_mremap(unsigned char *seen) {
    (void)seen;
    CHECK(mremap(elsewhere, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere + 8 * PAGE) != MAP_FAILED);
    CHECK(mremap(elsewhere + 8 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) != MAP_FAILED);
}

static void do_setns(unsigned char *seen) {
    (void)seen;
    CHECK(setns(space, CLONE_NEWUTS) == 0);
}

static void do_drop(unsigned char *seen) {
    (void)seen;
    CHECK(madvise(memory, 2 * PAGE, MADV_DONTNEED) == 0);
}

static void on_timer(int signal) {
    (void)signal;
    int left = errno;
    unsigned char seen[PAGES];
    handled++;
    if (in_handler == NULL) {
        siglongjmp(away, 1);
    }
    in_handler(seen);
    errno = left;
}

// Once, and not by the timer of alarm(2), which ends a program that hangs. One that goes off again and again would have a fork that takes longer begin anew
// for ever.
static void set_timer(long microseconds) {
    struct itimerspec times = {.it_value = {0, microseconds * 1000}};
    CHECK(timer_settime(timer, 0, &times, NULL) == 0);
}

static void prepare(void) {
    struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    memory = map_pages(PAGES);
    memset(memory, 1, PAGES * PAGE);
    elsewhere = map_far(16);
    memset(elsewhere, 2, 4 * PAGE);
    use_field(2);
}

static void (*const OPS[])(unsigned char *) = {do_mincore, do_fork, do_bare_fork, do_mremap, do_drop};
enum { COUNT = sizeof OPS / sizeof *OPS };

static void interrupt(void (*outer)(unsigned char *), void (*inner)(unsigned char *)) {
    unsigned char seen[PAGES];
    in_handler = inner;
    for (int time = 1; time <= TIMES; time++) {
        int before = handled;
        set_timer(time * 97);
        while (handled == before) {
            outer(seen);
        }
    }
}

// Each in the middle of each, but for moves of what the other moves.
static void by_the_same(void) {
    prepare();
    for (size_t outer = 0; outer < COUNT; outer++) {
        for (size_t inner = 0; inner < COUNT; inner++) {
            if (OPS[outer] != do_mremap || OPS[inner] != do_mremap) {
                interrupt(OPS[outer], OPS[inner]);
            }
        }
        use_field(1);
    }
    check_field();
}

static void by_setns(void) {
    prepare();
    space = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);
    CHECK(space >= 0);
    if (setns(space, CLONE_NEWUTS) != 0) {
        not_here("setns: %s", strerror(errno));
    }
    for (size_t other = 0; other < COUNT; other++) {
        interrupt(OPS[other], do_setns);
        interrupt(do_setns, OPS[other]);
        use_field(1);
    }
    check_field();
}

static void by_a_jump(void) {
    prepare();
    in_handler = NULL;
    static volatile int jump;
    for (jump = 0; jump < JUMPS; jump++) {
        unsigned char seen[PAGES];
        if (sigsetjmp(away, 1) == 0) {
            set_timer(200 + jump * 7);
            for (;;) {
                if (jump % 2 == 0) {
                    do_mincore(seen);
                } else {
                    do_drop(seen);
                }
            }
        }
    }
    unsigned char seen[PAGES];
    do_mincore(seen);
    do_fork(seen);
    do_mremap(seen);
    use_field(2);
    check_field();
}

static const struct named CASES[] = {{"calls", by_the_same}, {"setns", by_setns}, {"jumps", by_a_jump}};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
