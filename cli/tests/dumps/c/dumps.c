// Dies in the way that its argument names, with memory of a pattern of which a part is away. Before, it prints where the pattern is, where it will die
// (the program counters between which a dump must show it), and the address that it will fail to reach.
//
// A number as a second argument: waits until as many pages of what it has written are away.

#include "../../programs/c/common.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>

#define BYTES (16 * MIB)

static uint64_t *pattern;
static uint64_t *secret;
static size_t wanted_away;
extern char **environ;

// Instructions with a name each, in functions that are one.
extern char segv_at[], trap_at[], ill_at[], read_at[], quit_at[];
void segv(void), trap(void), ill(void), wait_for_signal(void);
#ifdef __x86_64__
__asm__(".text\n"
        ".globl segv, segv_at, trap, trap_at, ill, ill_at, wait_for_signal, read_at, quit_at\n"
        "segv:\n xor %eax, %eax\n segv_at: movl $1, 0x10(%rax)\n ret\n"
        "trap:\n int3\n trap_at: ret\n"
        "ill:\n ill_at: ud2\n"
        // read(0, stack, 1), again and again.
        "wait_for_signal:\n push %rax\n read_at: xor %eax, %eax\n xor %edi, %edi\n mov %rsp, %rsi\n mov $1, %edx\n syscall\n quit_at: jmp read_at\n");
#else
__asm__(".text\n"
        ".globl segv, segv_at, trap, trap_at, ill, ill_at, wait_for_signal, read_at, quit_at\n"
        "segv:\n mov x0, #0\n segv_at: str x0, [x0, #16]\n ret\n"
        "trap:\n trap_at: brk #0\n ret\n"
        "ill:\n ill_at: udf #0\n"
        "wait_for_signal:\n sub sp, sp, #16\n read_at: mov x8, #63\n mov x0, #0\n mov x1, sp\n mov x2, #1\n svc #0\n quit_at: b read_at\n");
#endif

static void fill(void) {
    for (size_t i = 0; i < BYTES / sizeof *pattern; i++) {
        pattern[i] = mix(i);
        secret[i] = mix(~i);
    }
}

// Whether the kernel has enough of the pattern and the secret nowhere.
static bool is_away(void) {
    static uint64_t entries[2 * BYTES / PAGE];
    int fd = open("/proc/self/pagemap", O_RDONLY);
    CHECK(fd >= 0);
    CHECK(pread(fd, entries, sizeof entries, (off_t)((uintptr_t)pattern / PAGE * 8)) == sizeof entries);
    close(fd);
    size_t absent = 0;
    for (size_t i = 0; i < 2 * BYTES / PAGE; i++) {
        absent += !(entries[i] >> 62);
    }
    return absent >= wanted_away;
}

static void wait_away(void) {
    while (wanted_away > 0 && !is_away()) {
        usleep(1000);
    }
}

// The memory, where to look, and what the signal must say.
static void announce(void *from, void *to, uintptr_t address) {
    wait_away();
    printf("%p %zu %p %p %lx %d\n", (void *)pattern, BYTES, from, to, (unsigned long)address, (int)getpid());
    fflush(stdout);
    wait_away();
}

static void anywhere(void) {
    announce(NULL, (void *)-1, 0);
}

static void die_by_segv(void) {
    announce(segv_at, segv_at, 0x10);
    segv();
}

static void *die_in_thread(void *arg) {
    (void)arg;
    die_by_segv();
    return NULL;
}

static void reset_and_raise(int number) {
    CHECK(signal(number, SIG_DFL) != SIG_ERR);
    raise(number);
}

static void count(int number) {
    static int called;
    CHECK(called++ == 0);
    CHECK(signal(SIGILL, SIG_DFL) == SIG_DFL && number == SIGSEGV);
}

static void raise_on(int number) {
    raise(number);
}

static struct sigaction before;

static void restore_and_return(int number) {
    CHECK(sigaction(number, &before, NULL) == 0);
}

static void handle(int number, void (*handler)(int), int flags) {
    struct sigaction new = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(number, &new, &before) == 0);
    CHECK(before.sa_handler == SIG_DFL);
}

static volatile int depth;

__attribute__((noinline)) static int overflow(int n) {
    volatile char room[4096];
    memset((char *)room, n, sizeof room);
    depth = n;
    return overflow(n + 1) + room[n % 4096];
}

static pthread_barrier_t both;

static void *one_of_two(void *arg) {
    pthread_barrier_wait(&both);
    if (arg != NULL) {
        segv();
    }
    ill();
    return NULL;
}

static void two_at_once(void) {
    pthread_t threads[2];
    anywhere();
    pthread_barrier_init(&both, NULL, 2);
    for (long i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, one_of_two, (void *)i) == 0);
    }
    pthread_join(threads[0], NULL);
}

static void *fork_on(void *arg) {
    (void)arg;
    for (;;) {
        pid_t child = fork();
        if (child == 0) {
            _exit(pattern[12345] != mix(12345));
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
}

static void *change_on(void *arg) {
    for (size_t i = (size_t)arg;; i = (i + 4099) % (BYTES / sizeof *pattern)) {
        CHECK(pattern[i] == mix(i));
        void *fresh = mmap(NULL, 64 * KIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(fresh != MAP_FAILED);
        memset(fresh, 1, 64 * KIB);
        fresh = mremap(fresh, 64 * KIB, 128 * KIB, MREMAP_MAYMOVE);
        CHECK(fresh != MAP_FAILED);
        munmap(fresh, 128 * KIB);
        CHECK(signal(SIGTRAP, SIG_DFL) == SIG_DFL);
    }
}

static void storm(void) {
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, i < 2 ? fork_on : change_on, (void *)i) == 0);
    }
    two_at_once();
}

static void in_child(void (*die)(void)) {
    pid_t child = fork();
    if (child == 0) {
        // What it shares with its parent stays where it is.
        fill();
        die();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

// The kernel's calls by number, at once or by the C library.
static void in_bare_child(void) {
    anywhere();
    long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        segv();
    }
    int status;
    CHECK(waitpid((pid_t)child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

static void in_vfork_child(void) {
    pid_t child = vfork();
    if (child == 0) {
        segv();
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    // What a child sets is the child's.
    child = vfork();
    if (child == 0) {
        struct sigaction fresh = {.sa_handler = SIG_DFL};
        sigaction(SIGSEGV, &fresh, NULL);
        signal(SIGABRT, SIG_DFL);
        execl("/bin/true", "true", NULL);
        _exit(9);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    char *words[] = {"true", NULL};
    CHECK(posix_spawn(&child, "/bin/true", NULL, NULL, words, environ) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

// A filter that nobody hears of: set by an instruction, it refuses what a handler would send the signal again by.
static void refuse(void) {
#define REFUSE(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), REFUSE(SYS_rt_sigaction), REFUSE(SYS_rt_tgsigqueueinfo), REFUSE(SYS_tgkill),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
#ifdef __x86_64__
    long result = SYS_seccomp;
    __asm__ volatile("syscall" : "+a"(result) : "D"(SECCOMP_SET_MODE_FILTER), "S"(0), "d"(&program) : "rcx", "r11", "memory");
#else
    register long number __asm__("x8") = SYS_seccomp;
    register long result __asm__("x0") = SECCOMP_SET_MODE_FILTER;
    register long flags __asm__("x1") = 0;
    register struct sock_fprog *third __asm__("x2") = &program;
    __asm__ volatile("svc #0" : "+r"(result) : "r"(number), "r"(flags), "r"(third) : "memory");
#endif
    CHECK(result == 0);
}

static void nothing(int number) {
    (void)number;
}

struct kernel_action {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

static void say(const char *what, int number, const struct sigaction *action) {
    uint64_t mask;
    memcpy(&mask, &action->sa_mask, sizeof mask);
    const char *name = action->sa_handler == SIG_DFL ? "default" : action->sa_handler == SIG_IGN ? "ignore" : action->sa_handler == nothing ? "nothing" : "other";
    printf("%s %d: %s, flags %x, mask %lx, restorer %d\n", what, number, name, (unsigned)action->sa_flags, (unsigned long)mask, action->sa_restorer != NULL);
}

static void ask(const char *what, int number) {
    struct sigaction now;
    memset(&now, 0, sizeof now);
    CHECK(sigaction(number, NULL, &now) == 0);
    say(what, number, &now);
    struct kernel_action word;
    CHECK(syscall(SYS_rt_sigaction, number, NULL, &word, 8) == 0);
    printf("  %d %lx %lx\n", word.handler == SIG_DFL, word.flags, (unsigned long)word.mask);
}

static const char *named(void (*handler)(int)) {
    return handler == SIG_DFL ? "default" : handler == SIG_ERR ? "error" : handler == SIG_HOLD ? "hold" : "other";
}

extern void (*sysv_signal(int, void (*)(int)))(int);
extern void (*bsd_signal(int, void (*)(int)))(int);
extern int __sigaction(int, const struct sigaction *, struct sigaction *);

// What is told of dispositions, whoever sets them in whatever way.
static void queries(void) {
    for (int number = 1; number < 32; number++) {
        if (number == SIGKILL || number == SIGSTOP) {
            continue;
        }
        ask("at first", number);
        struct sigaction new = {.sa_handler = SIG_DFL, .sa_flags = SA_RESTART | SA_NODEFER}, old;
        memset(&old, 0, sizeof old);
        sigaddset(&new.sa_mask, SIGUSR1);
        sigaddset(&new.sa_mask, SIGKILL);
        CHECK(sigaction(number, &new, &old) == 0);
        say("set", number, &old);
        ask("default", number);
        new.sa_handler = nothing;
        CHECK(__sigaction(number, &new, &old) == 0);
        say("nothing", number, &old);
        printf("%s\n", named(signal(number, SIG_DFL)));
        ask("signal", number);
        printf("%s\n", named(signal(number, nothing)));
        ask("signal", number);
        printf("%s\n", named(sysv_signal(number, SIG_DFL)));
        ask("sysv_signal", number);
        printf("%s\n", named(bsd_signal(number, SIG_DFL)));
        CHECK(siginterrupt(number, 1) == 0);
        printf("%s\n", named(signal(number, SIG_DFL)));
        ask("siginterrupt", number);
        printf("%s\n", named(sigset(number, SIG_DFL)));
        printf("%s\n", named(sigset(number, SIG_HOLD)));
        printf("%s\n", named(sigset(number, SIG_DFL)));
        ask("sigset", number);
        struct kernel_action word = {.handler = SIG_DFL, .flags = SA_ONSTACK, .mask = 1};
        struct kernel_action was;
        CHECK(syscall(SYS_rt_sigaction, number, &word, &was, 8) == 0);
        printf("  %d %lx %lx\n", was.handler == SIG_DFL, was.flags, (unsigned long)was.mask);
        ask("by number", number);
        printf("%s\n", named(sysv_signal(number, nothing)));
        ask("once", number);
        raise(number);
        ask("called", number);
        new.sa_flags = SA_RESETHAND | SA_SIGINFO;
        CHECK(sigaction(number, &new, NULL) == 0);
        CHECK(sigaction(number, &new, &old) == 0);
        say("once", number, &old);
        CHECK(signal(number, SIG_IGN) == nothing);
        CHECK(signal(number, SIG_DFL) == SIG_IGN);
        CHECK(signal(number, SIG_IGN) == SIG_DFL);
        raise(number);
        CHECK(signal(number, nothing) == SIG_IGN);
        raise(number);
        ask("at last", number);
        CHECK(signal(number, SIG_DFL) == nothing);
    }
    CHECK(sigaction(0, NULL, NULL) == -1 && errno == EINVAL);
    CHECK(signal(SIGKILL, SIG_DFL) == SIG_ERR && errno == EINVAL);
    CHECK(syscall(SYS_rt_sigaction, SIGSEGV, NULL, NULL, 1) == -1 && errno == EINVAL);
}

int main(int argc, char **argv) {
    CHECK(argc > 1);
    const char *way = argv[1];
    wanted_away = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
#define IS(name) (strcmp(way, name) == 0)
    if (IS("queries")) {
        queries();
        return 0;
    }
    if (IS("exec")) {
        execl("/proc/self/exe", argv[0], "segv", argv[2], NULL);
    }
    pattern = mmap(NULL, 2 * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pattern != MAP_FAILED);
    secret = pattern + BYTES / sizeof *pattern;
    CHECK(madvise(secret, BYTES, MADV_DONTDUMP) == 0);
    fill();
    if (IS("segv") || IS("no-dump")) {
        die_by_segv();
    } else if (IS("trap")) {
        announce(trap_at, trap_at, 0);
        trap();
    } else if (IS("ill")) {
        announce(ill_at, ill_at, (uintptr_t)ill_at);
        ill();
    } else if (IS("abort")) {
        anywhere();
        abort();
    } else if (IS("quit")) {
        announce(quit_at, quit_at, 0);
        wait_for_signal();
    } else if (IS("reset")) {
        handle(SIGSEGV, reset_and_raise, SA_NODEFER);
        anywhere();
        segv();
    } else if (IS("restore")) {
        handle(SIGSEGV, restore_and_return, 0);
        die_by_segv();
    } else if (IS("once")) {
        handle(SIGSEGV, raise_on, SA_RESETHAND | SA_NODEFER);
        anywhere();
        segv();
    } else if (IS("once-returns")) {
        handle(SIGSEGV, count, SA_RESETHAND);
        die_by_segv();
    } else if (IS("overflow")) {
        anywhere();
        overflow(0);
    } else if (IS("overflow-alternate")) {
        stack_t stack = {.ss_sp = malloc(64 * KIB), .ss_size = 64 * KIB};
        CHECK(sigaltstack(&stack, NULL) == 0);
        anywhere();
        overflow(0);
    } else if (IS("small-alternate")) {
        stack_t stack = {.ss_sp = malloc(8 * KIB), .ss_size = 8 * KIB};
        CHECK(sigaltstack(&stack, NULL) == 0);
        die_by_segv();
    } else if (IS("thread")) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, die_in_thread, NULL) == 0);
        pthread_join(thread, NULL);
    } else if (IS("blocked")) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        die_by_segv();
    } else if (IS("child")) {
        in_child(die_by_segv);
    } else if (IS("bare-child")) {
        in_bare_child();
    } else if (IS("vfork-child")) {
        in_vfork_child();
        die_by_segv();
    } else if (IS("two")) {
        two_at_once();
    } else if (IS("storm")) {
        storm();
    } else if (IS("refused")) {
        anywhere();
        refuse();
        segv();
    } else if (IS("strict")) {
        anywhere();
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
        segv();
    } else {
        FAIL("no such way: %s", way);
    }
    return 0;
}
