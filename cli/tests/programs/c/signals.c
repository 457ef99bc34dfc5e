// Signals all the time: timers, handlers on alternate stacks that read and write the heap, signals sent between threads and
// processes, jumps out of handlers. The kernel writes each signal frame to memory that may be away.
//
// Usage: signals [SIGNALS]

#include "common.h"

#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

enum { HEAP_PAGES = 1024, THREADS = 2, STACK_BYTES = 64 * 1024 };

static unsigned char *heap;
static _Atomic uint64_t ticks;

// Each tick checks a page and stamps the next pattern on it; handlers of one thread don't nest, as the signal is masked.
static uint64_t stamp[HEAP_PAGES];

static void on_tick(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)info;
    (void)context;
    volatile unsigned char deep[8192];
    for (size_t i = 0; i < sizeof deep; i += 512) {
        deep[i] = (unsigned char)i;
    }
    uint64_t tick = atomic_fetch_add(&ticks, 1);
    for (uint64_t i = 0; i < 4; i++) {
        size_t page = (size_t)(mix(tick * 4 + i) % HEAP_PAGES);
        CHECK_PAGE(heap + page * PAGE, stamp[page]);
        stamp[page] = tick * 4 + i + 1;
        fill_page(heap + page * PAGE, stamp[page]);
    }
    for (size_t i = 0; i < sizeof deep; i += 512) {
        CHECK(deep[i] == (unsigned char)i);
    }
}

static void use_alternate_stack(void) {
    stack_t stack = {.ss_sp = malloc(STACK_BYTES), .ss_size = STACK_BYTES};
    CHECK(stack.ss_sp != NULL && sigaltstack(&stack, NULL) == 0);
}

static void handle(int number, void (*body)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = body, .sa_flags = SA_SIGINFO | flags};
    CHECK(sigaction(number, &action, NULL) == 0);
}

// A timer interrupts the computation, which must come to the same result.
static void tick_while_computing(uint64_t signals) {
    struct itimerval every = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    uint64_t *work = malloc(64 * PAGE);
    CHECK(work != NULL);
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    uint64_t loops = 0;
    while (atomic_load(&ticks) < signals) {
        for (size_t i = 0; i < 64 * WORDS; i++) {
            work[i] = mix(loops + i);
        }
        for (size_t i = 0; i < 64 * WORDS; i++) {
            CHECK(work[i] == mix(loops + i));
        }
        loops++;
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    free(work);
    for (size_t i = 0; i < HEAP_PAGES; i++) {
        CHECK_PAGE(heap + i * PAGE, stamp[i]);
    }
    printf("ticks: ok\n");
}

static uint64_t received[THREADS];
static sem_t answered;
static _Thread_local size_t own_index;
static _Atomic bool stop;

static void on_call(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    CHECK(info->si_code == SI_TKILL);
    received[own_index]++;
    CHECK(sem_post(&answered) == 0);
}

static void *be_called(void *argument_of_body) {
    own_index = (size_t)(uintptr_t)argument_of_body;
    use_alternate_stack();
    unsigned char *own = map_pages(64);
    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        unsigned char *page = own + i % 64 * PAGE;
        CHECK_PAGE(page, i < 64 ? 0 : i - 64 + 1);
        fill_page(page, i + 1);
    }
    CHECK(munmap(own, 64 * PAGE) == 0);
    return NULL;
}

static void call_threads(uint64_t signals) {
    pthread_t ids[THREADS];
    CHECK(sem_init(&answered, 0, 0) == 0);
    for (size_t i = 0; i < THREADS; i++) {
        start_thread(&ids[i], be_called, (void *)(uintptr_t)i);
    }
    for (uint64_t i = 0; i < signals; i++) {
        size_t whom = i % THREADS;
        CHECK(pthread_kill(ids[whom], SIGUSR1) == 0);
        while (sem_wait(&answered) != 0) {
            CHECK(errno == EINTR);
        }
    }
    atomic_store(&stop, true);
    uint64_t sum = 0;
    for (size_t i = 0; i < THREADS; i++) {
        join_thread(ids[i]);
        sum += received[i];
    }
    printf("calls: %llu\n", (unsigned long long)sum);
}

// Values queued by a child arrive in order.
static void queue_values(int count) {
    sigset_t wanted, old;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGRTMIN);
    CHECK(sigprocmask(SIG_BLOCK, &wanted, &old) == 0);
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < count; i++) {
            union sigval value = {.sival_int = i};
            while (sigqueue(parent, SIGRTMIN, value) != 0) {
                CHECK(errno == EAGAIN);
                CHECK(sched_yield() == 0);
            }
        }
        _exit(0);
    }
    for (int i = 0; i < count; i++) {
        siginfo_t *info = malloc(sizeof *info);
        CHECK(info != NULL);
        while (sigwaitinfo(&wanted, info) < 0) {
            CHECK(errno == EINTR);
        }
        CHECK(info->si_value.sival_int == i);
        free(info);
    }
    CHECK(status_of(child) == 0);
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    printf("values: %d\n", count);
}

static sigjmp_buf back;

static void jump_back(int number, siginfo_t *info, void *context) {
    (void)context;
    siglongjmp(back, number == SIGSEGV ? info->si_code : -1);
}

static void jump_out_of_handlers(size_t count) {
    unsigned char *guarded = map_pages(count);
    for (size_t i = 0; i < count; i++) {
        fill_page(guarded + i * PAGE, i + 1);
    }
    for (size_t i = 0; i < count; i++) {
        unsigned char *page = guarded + i * PAGE;
        CHECK(mprotect(page, PAGE, PROT_NONE) == 0);
        int code = sigsetjmp(back, 1);
        if (code == 0) {
            *(volatile unsigned char *)page = 1;
            FAIL("a write to a page without access went through");
        }
        CHECK(code == SEGV_ACCERR);
        CHECK(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
        CHECK_PAGE(page, i + 1);
    }
    CHECK(munmap(guarded, count * PAGE) == 0);
    printf("jumps: %zu\n", count);
}

int main(int argc, char **argv) {
    uint64_t signals = argument(argc, argv, 1, 2000);
    heap = map_pages(HEAP_PAGES);
    use_alternate_stack();
    handle(SIGALRM, on_tick, SA_ONSTACK | SA_RESTART);
    handle(SIGUSR1, on_call, SA_ONSTACK | SA_RESTART);
    handle(SIGSEGV, jump_back, SA_ONSTACK);
    tick_while_computing(signals);
    call_threads(signals / 2);
    queue_values((int)signals);
    jump_out_of_handlers(signals / 4 + 1);
    return 0;
}
