// What the kernel writes when a thread ends, wherever the program wants it.
//
// Usage: thread_ends CASE

#include "field.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

// A word that the kernel clears, or writes its state to, among data of the program's on a page of its heap.
struct room {
    uint64_t before[100];
    _Atomic uint32_t word;
    uint32_t told;
    uint64_t after[400];
};

enum { ROOMS = 64, ROUNDS = 30 };

static struct room *rooms;

static void make_rooms(void) {
    rooms = aligned_alloc(PAGE, ROOMS * PAGE);
    CHECK(rooms != NULL && sizeof(struct room) <= PAGE);
    memset(rooms, 0, ROOMS * PAGE);
}

static struct room *room(size_t i) {
    return (struct room *)((char *)rooms + i % ROOMS * PAGE);
}

static void furnish(struct room *r, uint64_t seed) {
    for (size_t i = 0; i < 100; i++) {
        r->before[i] = mix(seed + i);
    }
    for (size_t i = 0; i < 400; i++) {
        r->after[i] = mix(seed + 1000 + i);
    }
}

static void check_room(const struct room *r, uint64_t seed) {
    for (size_t i = 0; i < 100; i++) {
        CHECK(r->before[i] == mix(seed + i));
    }
    for (size_t i = 0; i < 400; i++) {
        CHECK(r->after[i] == mix(seed + 1000 + i));
    }
}

static void futex_wake(_Atomic uint32_t *word) {
    CHECK(syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0) >= 0);
}

// Until the word is 0: cleared, and woken, by the kernel. The time is that of a thread that never ends.
static void await_cleared(_Atomic uint32_t *word) {
    struct timespec limit = {60, 0};
    for (uint32_t seen; (seen = atomic_load(word)) != 0;) {
        long result = syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
        CHECK(result == 0 || errno == EAGAIN || errno == EINTR);
    }
}

// Threads of a runtime's own

// Uses no variable of the C library's threads: it has those of the thread that made it.
static int run_bare(void *argument_of_body) {
    struct room *r = argument_of_body;
    uint64_t sum = 0;
    for (size_t i = 0; i < FIELD_PAGES; i++) {
        sum += field[i * PAGE];
    }
    r->told = (uint32_t)sum | 1;
    return 0;
}

static void by_clone(void) {
    enum { STACK = 1 << 16, AT_ONCE = 4 };
    make_rooms();
    unsigned char *stacks = malloc(AT_ONCE * STACK);
    CHECK(stacks != NULL);
    for (size_t round = 0; round < 2 * ROUNDS; round++) {
        use_field(1);
        for (size_t i = 0; i < AT_ONCE; i++) {
            struct room *r = room(round * 7 + i * 17);
            furnish(r, round * AT_ONCE + i);
            atomic_store(&r->word, UINT32_MAX);
            r->told = 0;
            int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                        CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
            CHECK(clone(run_bare, stacks + (i + 1) * STACK, flags, r, &r->word, NULL, &r->word) > 0);
        }
        for (size_t i = 0; i < AT_ONCE; i++) {
            struct room *r = room(round * 7 + i * 17);
            await_cleared(&r->word);
            CHECK(r->told != 0);
            check_room(r, round * AT_ONCE + i);
        }
    }
    print("ends of threads by clone: all heard of\n");
}

static void *set_address(void *argument_of_body) {
    struct room *r = argument_of_body;
    CHECK(syscall(SYS_set_tid_address, &r->word) > 0);
    atomic_store((_Atomic uint32_t *)&r->told, 1);
    futex_wake((_Atomic uint32_t *)&r->told);
    return NULL;
}

// The C library never hears of the ends of these threads, so they are detached.
static void by_address(void) {
    make_rooms();
    pthread_attr_t detached;
    CHECK(pthread_attr_init(&detached) == 0);
    CHECK(pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED) == 0);
    CHECK(pthread_attr_setstacksize(&detached, 1 << 16) == 0);
    for (size_t round = 0; round < 2 * ROUNDS; round++) {
        struct room *r = room(round * 5);
        furnish(r, round);
        atomic_store(&r->word, 1);
        pthread_t thread;
        CHECK(pthread_create(&thread, &detached, set_address, r) == 0);
        use_field(1);
        await_cleared(&r->word);
        CHECK(r->told == 1);
        r->told = 0;
        check_room(r, round);
    }
    print("ends told elsewhere: all heard of\n");
}

// Stacks of the program's own

enum { POOL = 4 << 20, UNIT = 1 << 16, MOST = POOL / UNIT };

struct on_pool {
    pthread_t thread;
    unsigned char *stack;
    size_t size;
    // The end is told in a word at the far end of the stack, and not to the C library.
    bool by_word;
};

static int release[2];

__attribute__((noinline)) static uint64_t descend(unsigned depth) {
    volatile unsigned char frame[1024];
    memset((void *)frame, (int)depth, sizeof frame);
    uint64_t below = depth == 0 ? 0 : descend(depth - 1);
    CHECK(frame[depth % 1024] == (unsigned char)depth && frame[1023] == (unsigned char)depth);
    return below + depth;
}

static _Atomic uint32_t *far_word(const struct on_pool *on) {
    return (_Atomic uint32_t *)(on->stack + 256);
}

static void *live_on(void *argument_of_body) {
    const struct on_pool *on = argument_of_body;
    char told;
    if (on->by_word) {
        CHECK(syscall(SYS_set_tid_address, far_word(on)) > 0);
    }
    CHECK(descend(24) == 300);
    CHECK(read(release[0], &told, 1) == 1);
    CHECK(descend(24) == 300);
    return argument_of_body;
}

static void start_on(struct on_pool *on) {
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstack(&attributes, on->stack, on->size) == 0);
    if (on->by_word) {
        CHECK(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0);
        atomic_store(far_word(on), UINT32_MAX);
    }
    CHECK(pthread_create(&on->thread, &attributes, live_on, on) == 0);
    CHECK(pthread_attr_destroy(&attributes) == 0);
}

// The pool is cut anew each round, so that a stack lies where those of several threads were, or a part of one, that have just ended.
static void cut_pool(bool by_word) {
    unsigned char *pool = aligned_alloc(PAGE, POOL);
    struct on_pool *all = malloc(MOST * sizeof *all);
    uint64_t state = 5;
    size_t ended = 0;
    CHECK(pool != NULL && all != NULL && pipe(release) == 0);
    for (size_t round = 0; round < 3 * ROUNDS; round++) {
        size_t count = 0;
        for (size_t at = next_random(&state) % 16 * PAGE; at + 2 * UNIT <= POOL && count < MOST;) {
            size_t most = round % 2 == 0 ? 20 : 6;
            size_t size = (2 + next_random(&state) % most) * UNIT + next_random(&state) % 16 * PAGE;
            size = at + size > POOL ? POOL - at : size;
            all[count] = (struct on_pool){.stack = pool + at, .size = size, .by_word = by_word};
            start_on(&all[count++]);
            at += size;
        }
        use_field(6);
        for (size_t i = 0; i < count; i++) {
            CHECK(write(release[1], "x", 1) == 1);
        }
        for (size_t i = 0; i < count; i++, ended++) {
            if (by_word) {
                await_cleared(far_word(&all[i]));
            } else {
                CHECK(join_thread(all[i].thread) == &all[i]);
            }
        }
        // Between two rounds it is the program's memory like any other.
        memset(pool, (int)round, round % 3 == 0 ? POOL : PAGE);
    }
    print("threads on a pool: %zu\n", ended);
}

static void pool_joined(void) {
    cut_pool(false);
}

static void pool_told(void) {
    cut_pool(true);
}

// Mutexes whose owner ends

enum { LOCKS = 32 };

static pthread_mutex_t *locks[LOCKS];

static void make_locks(int robust, int protocol) {
    pthread_mutexattr_t attributes;
    CHECK(pthread_mutexattr_init(&attributes) == 0);
    CHECK(pthread_mutexattr_setrobust(&attributes, robust) == 0);
    CHECK(pthread_mutexattr_setprotocol(&attributes, protocol) == 0);
    for (size_t i = 0; i < LOCKS; i++) {
        locks[i] = aligned_alloc(PAGE, PAGE);
        CHECK(locks[i] != NULL && pthread_mutex_init(locks[i], &attributes) == 0);
    }
}

static void *hold_and_end(void *argument_of_body) {
    size_t bare = (size_t)(uintptr_t)argument_of_body;
    for (size_t i = 0; i < LOCKS; i++) {
        CHECK(pthread_mutex_lock(locks[i]) == 0);
    }
    use_field(1);
    if (bare) {
        pthread_exit(NULL);
    }
    return NULL;
}

static void *wait_for_owner(void *argument_of_body) {
    pthread_mutex_t *lock = argument_of_body;
    int result = pthread_mutex_lock(lock);
    CHECK(result == EOWNERDEAD && pthread_mutex_consistent(lock) == 0 && pthread_mutex_unlock(lock) == 0);
    return NULL;
}

static void owner_ends(int protocol, const char *name) {
    make_locks(PTHREAD_MUTEX_ROBUST, protocol);
    size_t seen = 0;
    for (size_t round = 0; round < ROUNDS; round++) {
        use_field(2);
        pthread_t owner, waiters[2];
        start_thread(&owner, hold_and_end, (void *)(round % 2));
        join_thread(owner);
        for (size_t i = 0; i < 2; i++) {
            start_thread(&waiters[i], wait_for_owner, locks[i]);
        }
        for (size_t i = 0; i < 2; i++) {
            join_thread(waiters[i]);
        }
        for (size_t i = 2; i < LOCKS; i++) {
            int result = pthread_mutex_trylock(locks[i]);
            if (result != EOWNERDEAD) {
                FAIL("round %zu, lock %zu: %s", round, i, strerror(result));
            }
            CHECK(pthread_mutex_consistent(locks[i]) == 0 && pthread_mutex_unlock(locks[i]) == 0);
            seen++;
        }
    }
    print("owners of %s mutexes that ended: %zu\n", name, seen);
}

static void robust(void) {
    owner_ends(PTHREAD_PRIO_NONE, "robust");
}

static uint64_t counts[LOCKS];

static void *contend(void *argument_of_body) {
    uint64_t state = (uint64_t)(uintptr_t)argument_of_body;
    for (int i = 0; i < 4000; i++) {
        size_t which = next_random(&state) % LOCKS;
        int result = pthread_mutex_lock(locks[which]);
        if (result != 0) {
            FAIL("lock %zu: %s", which, strerror(result));
        }
        counts[which]++;
        if (i % 16 == 0) {
            sched_yield();
        }
        result = pthread_mutex_unlock(locks[which]);
        if (result != 0) {
            FAIL("unlock %zu: %s", which, strerror(result));
        }
    }
    return NULL;
}

static void inheriting(void) {
    make_locks(PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT);
    pthread_t threads[4];
    uint64_t sum = 0;
    for (size_t i = 0; i < 4; i++) {
        start_thread(&threads[i], contend, (void *)(uintptr_t)(i + 1));
    }
    use_field(ROUNDS);
    for (size_t i = 0; i < 4; i++) {
        join_thread(threads[i]);
    }
    for (size_t i = 0; i < LOCKS; i++) {
        sum += counts[i];
    }
    print("mutexes that inherit priorities: locked %llu times\n", (unsigned long long)sum);
}

static void robust_inheriting(void) {
    owner_ends(PTHREAD_PRIO_INHERIT, "robust inheriting");
}

static const struct named CASES[] = {
    {"clone", by_clone},
    {"set-address", by_address},
    {"pool", pool_joined},
    {"pool-words", pool_told},
    {"robust", robust},
    {"inheriting", inheriting},
    {"robust-inheriting", robust_inheriting},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
