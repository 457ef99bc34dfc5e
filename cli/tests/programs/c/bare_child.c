// Children made by a bare system call, of which no handler of the C library hears, and what they then do by the C library.
//
// Usage: bare_child CASE

#include "field.h"

#include <sched.h>
#include <sys/syscall.h>

static void *be_a_thread(void *argument_of_body) {
    return argument_of_body;
}

static void do_fork(void) {
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        if (child == 0) {
            check_field();
            _exit(i);
        }
        CHECK(status_of(child) == i);
    }
}

static void do_thread(void) {
    for (uintptr_t i = 0; i < 10; i++) {
        pthread_t thread;
        start_thread(&thread, be_a_thread, (void *)i);
        CHECK(join_thread(thread) == (void *)i);
    }
}

static void do_mremap(void) {
    for (uint64_t i = 1; i <= 20; i++) {
        unsigned char *from = map_pages(4), *to = map_pages(4);
        for (size_t page = 0; page < 4; page++) {
            fill_page(from + page * PAGE, i + page);
        }
        CHECK(mremap(from, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        for (size_t page = 0; page < 4; page++) {
            CHECK_PAGE(to + page * PAGE, i + page);
        }
        CHECK(munmap(to, 4 * PAGE) == 0);
    }
    // And of what it has from its parent.
    unsigned char *to = map_pages(FIELD_PAGES);
    CHECK(mremap(field, FIELD_PAGES * PAGE, FIELD_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    field = to;
}

static void do_system(void) {
    int status = system("exit 5");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

static void do_popen(void) {
    char line[32];
    FILE *pipe_end = popen("echo heard", "r");
    CHECK(pipe_end != NULL && fgets(line, sizeof line, pipe_end) != NULL);
    CHECK(strcmp(line, "heard\n") == 0 && pclose(pipe_end) == 0);
}

static void do_malloc(void) {
    unsigned char *blocks[200];
    for (size_t round = 0; round < 20; round++) {
        for (size_t i = 0; i < 200; i++) {
            blocks[i] = malloc(10000 + i * 100);
            CHECK(blocks[i] != NULL);
            memset(blocks[i], (int)(i + round), 10000);
        }
        for (size_t i = 0; i < 200; i++) {
            CHECK(blocks[i][0] == (unsigned char)(i + round) && blocks[i][9999] == (unsigned char)(i + round));
            free(blocks[i]);
        }
    }
}

static void do_madvise(void) {
    unsigned char *own = map_pages(64);
    for (size_t round = 1; round <= 10; round++) {
        for (size_t i = 0; i < 64; i++) {
            fill_page(own + i * PAGE, round + i);
        }
        CHECK(madvise(own, 32 * PAGE, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < 64; i++) {
            CHECK_PAGE(own + i * PAGE, i < 32 ? 0 : round + i);
        }
    }
    CHECK(madvise(field, FIELD_PAGES / 2 * PAGE, MADV_DONTNEED) == 0);
    for (size_t i = 0; i < FIELD_PAGES; i++) {
        CHECK_PAGE(field + i * PAGE, i < FIELD_PAGES / 2 ? 0 : field_round + i);
    }
    exit(17);
}

static void do_exec(void) {
    execl("/bin/sh", "sh", "-c", "exit 17", (char *)NULL);
    FAIL("exec");
}

static void (*what)(void);

__attribute__((noreturn)) static void be_a_child(void) {
    end_if_hung();
    check_field();
    what();
    use_field(1);
    exit(17);
}

static int be_a_child_on_a_stack(void *argument_of_body) {
    (void)argument_of_body;
    be_a_child();
}

// By system calls that the program makes by the C library's `syscall`, and by its `clone`.
static void make_children(void (*act)(void), const char *name) {
    enum { STACK = 1 << 18 };
    what = act;
    unsigned char *stack = malloc(STACK);
    CHECK(stack != NULL);
    for (int round = 0; round < 3; round++) {
        use_field(10);
        pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (child == 0) {
            be_a_child();
        }
        CHECK(status_of(child) == 17);
        uint64_t arguments[8] = {[4] = SIGCHLD};
        child = (pid_t)syscall(SYS_clone3, arguments, sizeof arguments);
        if (child == 0) {
            be_a_child();
        }
        CHECK(status_of(child) == 17);
#ifdef SYS_fork
        child = (pid_t)syscall(SYS_fork);
        if (child == 0) {
            be_a_child();
        }
        CHECK(status_of(child) == 17);
#endif
        CHECK(status_of(clone(be_a_child_on_a_stack, stack + STACK, SIGCHLD, NULL)) == 17);
    }
    print("bare children: %s\n", name);
}

#define BARE(function)                                                                                                 \
    static void bare_##function(void) {                                                                                \
        make_children(do_##function, #function);                                                                       \
    }

BARE(fork)
BARE(thread)
BARE(mremap)
BARE(system)
BARE(popen)
BARE(malloc)
BARE(madvise)
BARE(exec)

static const struct named CASES[] = {
    {"fork", bare_fork},   {"thread", bare_thread}, {"mremap", bare_mremap},   {"system", bare_system},
    {"popen", bare_popen}, {"malloc", bare_malloc}, {"madvise", bare_madvise}, {"exec", bare_exec},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
