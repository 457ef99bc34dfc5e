// Children that unmap everything: themselves, their stack, and hetmem. The next instruction is not there, and they get their SIGSEGV.
//
// Usage: unmap_all CASE

#include "field.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

enum { MOST = 4096, CHILDREN = 8 };

static struct {
    uintptr_t from, to;
} mappings[MOST];
static size_t count;

static void look(void) {
    static char line[4096];
    count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL);
    while (count < MOST && fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        // What is above the program's addresses is the kernel's.
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && strstr(line, "[vsyscall]") == NULL) {
            mappings[count].from = from;
            mappings[count++].to = to;
        }
    }
    CHECK(fclose(maps) == 0);
}

static void at_once(void) {
    munmap(NULL, mappings[count - 1].to);
}

static void one_by_one(void) {
    for (size_t i = 0; i < count; i++) {
        syscall(SYS_munmap, mappings[i].from, mappings[i].to - mappings[i].from);
    }
}

// All but what runs and where it keeps its variables: the C library, and hetmem's library, are gone, and the program is not.
static void others(void) {
    uintptr_t here = (uintptr_t)others, data = (uintptr_t)mappings, stack = (uintptr_t)__builtin_frame_address(0);
    uintptr_t keep[] = {here, data, stack, (uintptr_t)syscall, (uintptr_t)&count};
    for (size_t i = 0; i < count; i++) {
        bool kept = false;
        for (size_t k = 0; k < sizeof keep / sizeof *keep; k++) {
            kept |= keep[k] >= mappings[i].from && keep[k] < mappings[i].to;
        }
        if (!kept) {
            syscall(SYS_munmap, mappings[i].from, mappings[i].to - mappings[i].from);
        }
    }
    *(volatile char *)field = 1;
}

static void children(void (*unmap)(void), bool at_first) {
    for (int i = 0; i < CHILDREN; i++) {
        use_field(8);
        look();
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            if (!at_first) {
                end_if_hung();
                use_field(2);
                look();
            }
            unmap();
            // Not reached: this is not there any more.
            _exit(7);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        print("the child ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
    check_field();
}

static void all_at_once(void) {
    children(at_once, false);
}

static void each_by_itself(void) {
    children(one_by_one, false);
}

static void all_others(void) {
    children(others, false);
}

// Before anything else is done in the child.
static void at_first(void) {
    children(at_once, true);
}

// Who traces the child sees its one thread stop by the signal before that ends it: nobody else's thread comes first.
static void traced(void) {
    for (int i = 0; i < CHILDREN; i++) {
        use_field(2);
        look();
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
                _exit(NOT_HERE);
            }
            raise(SIGSTOP);
            at_once();
            _exit(7);
        }
        int status;
        while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
            int signal = WSTOPSIG(status);
            print("the child stops by signal %d\n", signal);
            CHECK(ptrace(PTRACE_CONT, child, NULL, (void *)(intptr_t)(signal == SIGSTOP ? 0 : signal)) == 0);
        }
        if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_HERE) {
            not_here("children can't be traced here");
        }
        print("the child ended by signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
}

static void by_itself(void) {
    use_field(8);
    look();
    at_once();
}

static const struct named CASES[] = {
    {"at-once", all_at_once}, {"at-first", at_first}, {"one-by-one", each_by_itself},
    {"others", all_others},   {"traced", traced},     {"parent", by_itself},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
