// Programs whose last thread is not the first, or ends otherwise than by an exit of the process: the process ends, with the status and after the handlers that it has
// without anybody else's threads in it. And children whose only thread was not their parent's first.
//
// Usage: last_thread CASE

#include "field.h"

#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static pthread_t first_thread;

static void at_exit(void) {
    check_field();
    print("at exit\n");
}

static void *outlive(void *argument_of_body) {
    CHECK(pthread_join(first_thread, NULL) == 0);
    use_field(5);
    if (argument_of_body != NULL) {
        pthread_exit(argument_of_body);
    }
    return NULL;
}

__attribute__((noreturn)) static void leave_last(bool by_exit) {
    first_thread = pthread_self();
    use_field(5);
    CHECK(atexit(at_exit) == 0);
    pthread_t worker;
    start_thread(&worker, outlive, by_exit ? field : NULL);
    CHECK(pthread_detach(worker) == 0);
    pthread_exit(NULL);
}

static void last_returns(void) {
    leave_last(false);
}

static void last_exits(void) {
    leave_last(true);
}

static void only_exits(void) {
    use_field(10);
    CHECK(atexit(at_exit) == 0);
    pthread_exit(NULL);
}

// Until the first thread is a zombie: it ends by a system call, so nobody can join it.
static void await_first(void) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)getpid());
    for (;;) {
        FILE *file = fopen(path, "re");
        CHECK(file != NULL && fgets(text, sizeof text, file) != NULL && fclose(file) == 0);
        if (strncmp(strrchr(text, ')') + 2, "Z", 1) == 0) {
            return;
        }
        sched_yield();
    }
}

static void *end_bare(void *argument_of_body) {
    (void)argument_of_body;
    await_first();
    use_field(5);
    print("the last thread ends with 5\n");
    syscall(SYS_exit, 5);
    return NULL;
}

static void last_ends_bare(void) {
    use_field(10);
    pthread_t worker;
    start_thread(&worker, end_bare, NULL);
    syscall(SYS_exit, 3);
}

static void only_ends_bare(void) {
    use_field(10);
    print("the only thread ends with 4\n");
    syscall(SYS_exit, 4);
}

// May read, write, end and return from signals from now on; the first other call kills the thread.
__attribute__((noreturn)) static void be_killed(void) {
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    use_field(2);
    (void)!write(STDOUT_FILENO, "strict\n", 7);
    syscall(SYS_getppid);
    (void)!write(STDOUT_FILENO, "not killed\n", 11);
    syscall(SYS_exit, 1);
    __builtin_unreachable();
}

static void *be_killed_last(void *argument_of_body) {
    (void)argument_of_body;
    await_first();
    be_killed();
}

static void only_is_killed(void) {
    use_field(10);
    be_killed();
}

static void last_is_killed(void) {
    use_field(10);
    pthread_t worker;
    start_thread(&worker, be_killed_last, NULL);
    syscall(SYS_exit, 3);
}

static void child_is_killed(void) {
    use_field(10);
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0) {
            end_if_hung();
            be_killed();
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        print("the child ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
}

// A child whose only thread is one that was not the first

static void tell_of_child(void) {
    print("at exit of the child\n");
}

static void *fork_and_return(void *argument_of_body) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        end_if_hung();
        use_field(2);
        CHECK(atexit(tell_of_child) == 0);
        if (argument_of_body != NULL) {
            pthread_exit(argument_of_body);
        }
        return NULL;
    }
    return (void *)(intptr_t)child;
}

static void child_returns(void) {
    for (uintptr_t round = 0; round < 6; round++) {
        use_field(4);
        pthread_t thread;
        start_thread(&thread, fork_and_return, (void *)(round % 2));
        pid_t child = (pid_t)(intptr_t)join_thread(thread);
        print("the child ended with %d\n", status_of(child));
    }
}

static const struct named CASES[] = {
    {"last-returns", last_returns},
    {"last-exits", last_exits},
    {"only-exits", only_exits},
    {"last-ends-bare", last_ends_bare},
    {"only-ends-bare", only_ends_bare},
    {"last-is-killed", last_is_killed},
    {"only-is-killed", only_is_killed},
    {"child-is-killed", child_is_killed},
    {"child-returns", child_returns},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
