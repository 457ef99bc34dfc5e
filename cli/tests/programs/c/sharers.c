// Processes that share their parent's memory (CLONE_VM) and live longer than it does.
//
// Usage: sharers CASE

#include "field.h"

#include <sched.h>

enum { STACK_PAGES = 16 };

static int gone[2], verdict[2];

// Waits for the end of the parent, whose memory is this process's own from then on.
static int look(void *unused) {
    (void)unused;
    char byte;
    close(gone[1]);
    while (read(gone[0], &byte, 1) > 0) {
    }
    check_field();
    _exit(write(verdict[1], "r", 1) != 1);
}

static void be_parent(void) {
    use_field(30);
    unsigned char *stack = map_pages(STACK_PAGES);
    CHECK(clone(look, stack + STACK_PAGES * PAGE, CLONE_VM | SIGCHLD, NULL) > 0);
    _exit(0);
}

static void outlives(void) {
    for (int round = 0; round < 5; round++) {
        CHECK(pipe(gone) == 0 && pipe(verdict) == 0);
        pid_t parent = fork();
        if (parent == 0) {
            be_parent();
        }
        close(gone[1]);
        close(verdict[1]);
        CHECK(status_of(parent) == 0);
        char byte = 0;
        CHECK(read(verdict[0], &byte, 1) == 1 && byte == 'r');
        close(gone[0]);
        close(verdict[0]);
    }
}

static const struct named CASES[] = {{"outlives", outlives}};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
