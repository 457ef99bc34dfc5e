// Threads that end by pthread_exit or are cancelled, in the functions that hetmem stands in front of, too: cleanup handlers and destructors of
// thread-specific data run, and who joins is told.
//
// Usage: cancel CASE

#include "field.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { ROUNDS = 20, BUFFER = 1 << 16 };

static pthread_key_t key;
static _Atomic int cleaned, destroyed;
static _Atomic pid_t thread_id;
static int sockets[2], ends[2], notices[2];
static char *buffer;
static _Atomic bool looping;

static void clean(void *argument_of_body) {
    CHECK(argument_of_body == &cleaned);
    atomic_fetch_add(&cleaned, 1);
}

static void destroy(void *value) {
    CHECK(value == buffer);
    atomic_fetch_add(&destroyed, 1);
}

static void make_ends(void) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    CHECK(pipe(ends) == 0);
}

static void close_ends(void) {
    CHECK(close(sockets[0]) == 0 && close(sockets[1]) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void call_read(void) {
    (void)!read(ends[0], buffer, BUFFER);
}

static void call_send(void) {
    (void)!send(sockets[0], buffer, BUFFER, 0);
}

static void call_sendto(void) {
    (void)!sendto(sockets[0], buffer, BUFFER, 0, NULL, 0);
}

static void call_sendmsg(void) {
    struct iovec vector = {buffer, BUFFER};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    (void)!sendmsg(sockets[0], &message, 0);
}

static void call_vmsplice(void) {
    struct iovec vector = {buffer, BUFFER};
    (void)!vmsplice(ends[1], &vector, 1, 0);
}

static int listener = -1;

// Waits until a process makes a system call that its filter asks about, which none does.
static void call_ioctl(void) {
    struct seccomp_notif notice = {0};
    (void)!ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &notice);
}

struct call {
    const char *name;
    void (*make)(void);
    long number;
};

static void *wait_for_ever(void *argument_of_body) {
    const struct call *call = argument_of_body;
    pthread_cleanup_push(clean, &cleaned);
    CHECK(pthread_setspecific(key, buffer) == 0);
    if (call->make == call_ioctl) {
        // It is no cancellation point.
        CHECK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL) == 0);
    }
    atomic_store(&thread_id, (pid_t)syscall(SYS_gettid));
    for (;;) {
        call->make();
    }
    pthread_cleanup_pop(0);
    return NULL;
}

// Until the thread sleeps in the system call. Where that can't be asked, the thread is cancelled wherever it is.
static void await_call(long number) {
    char path[64], text[32];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)atomic_load(&thread_id));
    for (;;) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
        if (file >= 0) {
            CHECK(close(file) == 0);
        }
        if (length < 0) {
            return;
        }
        text[length] = 0;
        if (text[0] >= '0' && text[0] <= '9' && strtol(text, NULL, 10) == number) {
            return;
        }
        sched_yield();
    }
}

static void cancel_in(const struct call *call) {
    buffer = malloc(BUFFER);
    CHECK(buffer != NULL && pthread_key_create(&key, destroy) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        use_field(2);
        memset(buffer, round, BUFFER);
        make_ends();
        atomic_store(&thread_id, 0);
        pthread_t thread;
        start_thread(&thread, wait_for_ever, (void *)(uintptr_t)call);
        while (atomic_load(&thread_id) == 0) {
            sched_yield();
        }
        await_call(call->number);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(join_thread(thread) == PTHREAD_CANCELED);
        close_ends();
    }
    check_field();
    print("cancelled in %s: %d cleaned up, %d destroyed\n", call->name, (int)cleaned, (int)destroyed);
}

static void in_read(void) {
    cancel_in(&(struct call){"read", call_read, SYS_read});
}

static void in_send(void) {
    cancel_in(&(struct call){"send", call_send, SYS_sendto});
}

static void in_sendto(void) {
    cancel_in(&(struct call){"sendto", call_sendto, SYS_sendto});
}

static void in_sendmsg(void) {
    cancel_in(&(struct call){"sendmsg", call_sendmsg, SYS_sendmsg});
}

static void in_vmsplice(void) {
    cancel_in(&(struct call){"vmsplice", call_vmsplice, SYS_vmsplice});
}

// A child that has a filter, whose listener it sends; it lives until the pipe ends.
static pid_t start_filtered(int lives, int to) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) {
        return child;
    }
    end_if_hung();
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    int told = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    char one = told >= 0;
    struct iovec vector = {&one, 1};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (told >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        control.header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &told, sizeof told);
    }
    CHECK(sendmsg(to, &message, 0) == 1);
    (void)!read(lives, &one, 1);
    _exit(0);
}

static void in_ioctl(void) {
    int lives[2], pair[2];
    CHECK(pipe(lives) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = start_filtered(lives[0], pair[1]);
    char one;
    struct iovec vector = {&one, 1};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    CHECK(recvmsg(pair[0], &message, 0) == 1);
    if (!one) {
        not_here("no listener of a seccomp filter is to be had here");
    }
    memcpy(&listener, CMSG_DATA(&control.header), sizeof listener);
    cancel_in(&(struct call){"ioctl", call_ioctl, SYS_ioctl});
    CHECK(close(lives[1]) == 0 && close(lives[0]) == 0);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

// Calls of functions that hetmem stands in front of, none of which holds anything of the C library's.
static void *call_without_end(void *argument_of_body) {
    pthread_cleanup_push(clean, &cleaned);
    CHECK(pthread_setspecific(key, argument_of_body) == 0);
    unsigned char *own = map_pages(16);
    CHECK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL) == 0);
    atomic_store(&looping, true);
    for (unsigned char turn = 1;; turn++) {
        int waiting;
        own[PAGE] = turn;
        ioctl(ends[0], FIONREAD, &waiting);
        send(sockets[0], buffer, 64, MSG_DONTWAIT);
        madvise(own, 16 * PAGE, MADV_DONTNEED);
        own[2 * PAGE] = turn;
        mremap(own, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
    }
    pthread_cleanup_pop(0);
    return NULL;
}

static void asynchronously(void) {
    buffer = malloc(BUFFER);
    CHECK(buffer != NULL && pthread_key_create(&key, destroy) == 0);
    memset(buffer, 1, BUFFER);
    make_ends();
    for (int round = 0; round < 10 * ROUNDS; round++) {
        atomic_store(&looping, false);
        pthread_t thread;
        start_thread(&thread, call_without_end, buffer);
        while (!atomic_load(&looping)) {
            sched_yield();
        }
        use_field(round % 4 == 0);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(join_thread(thread) == PTHREAD_CANCELED);
    }
    close_ends();
    check_field();
    print("cancelled anywhere: %d cleaned up, %d destroyed\n", (int)cleaned, (int)destroyed);
}

static void *return_at_once(void *argument_of_body) {
    return argument_of_body;
}

// A thread that has been cancelled, and goes on until a function of the C library's that is a cancellation point: none of these is. What hetmem does in
// them may call some.
static void *call_with_one_pending(void *argument_of_body) {
    pthread_cleanup_push(clean, &cleaned);
    CHECK(pthread_setspecific(key, argument_of_body) == 0);
    CHECK(pthread_cancel(pthread_self()) == 0);
    unsigned char *own = map_far(16), *place = map_far(16);
    pthread_attr_t detached;
    CHECK(pthread_attr_init(&detached) == 0);
    CHECK(pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED) == 0);
    pthread_mutexattr_t robust;
    CHECK(pthread_mutexattr_init(&robust) == 0);
    CHECK(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
    pthread_mutex_t *mutex = (pthread_mutex_t *)(own + 8 * PAGE);
    for (unsigned char turn = 1; turn <= 4; turn++) {
        unsigned char seen[16];
        pthread_t thread;
        memset(own, turn, 16 * PAGE);
        CHECK(mincore(own, 16 * PAGE, seen) == 0);
        CHECK(madvise(own, PAGE, MADV_DONTNEED) == 0);
        madvise(own + PAGE, PAGE, 102 /* MADV_GUARD_INSTALL */);
        madvise(own + PAGE, PAGE, 103 /* MADV_GUARD_REMOVE */);
        CHECK(pthread_mutex_init(mutex, &robust) == 0 && pthread_mutex_destroy(mutex) == 0);
        CHECK(mremap(own, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
        CHECK(mremap(place, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, own) == own);
        CHECK(setns(-1, 0) == -1 && errno == EBADF);
        CHECK(unshare(CLONE_FS) == 0);
        CHECK(syscall(SYS_mincore, own, 16 * PAGE, seen) == 0);
        CHECK(pthread_create(&thread, &detached, return_at_once, NULL) == 0);
        pid_t child = fork();
        if (child == 0) {
            _exit(own[15 * PAGE] == turn ? 0 : 1);
        }
        CHECK(child > 0);
    }
    atomic_store(&looping, true);
    pthread_testcancel();
    pthread_cleanup_pop(0);
    return NULL;
}

static void with_one_pending(void) {
    buffer = malloc(BUFFER);
    CHECK(buffer != NULL && pthread_key_create(&key, destroy) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t thread;
        use_field(1);
        atomic_store(&looping, false);
        start_thread(&thread, call_with_one_pending, buffer);
        CHECK(join_thread(thread) == PTHREAD_CANCELED && atomic_load(&looping));
        for (int child = 0; child < 4; child++) {
            int status;
            CHECK(waitpid(-1, &status, 0) > 0 && status == 0);
        }
    }
    check_field();
    print("cancelled after all: %d cleaned up, %d destroyed\n", (int)cleaned, (int)destroyed);
}

// Ends the thread from the depth of a function that the C library calls.
static int compare_and_leave(const void *a, const void *b) {
    if (*(const unsigned char *)a == *(const unsigned char *)b) {
        pthread_exit(buffer);
    }
    return *(const unsigned char *)a - *(const unsigned char *)b;
}

static void *leave(void *argument_of_body) {
    pthread_cleanup_push(clean, &cleaned);
    CHECK(pthread_setspecific(key, buffer) == 0);
    unsigned char bytes[4] = {3, 1, 1, 2};
    if (argument_of_body == NULL) {
        pthread_exit(buffer);
    }
    qsort(bytes, sizeof bytes, 1, compare_and_leave);
    pthread_cleanup_pop(0);
    return NULL;
}

static void by_exit(void) {
    buffer = malloc(BUFFER);
    CHECK(buffer != NULL && pthread_key_create(&key, destroy) == 0);
    for (uintptr_t round = 0; round < 2 * ROUNDS; round++) {
        use_field(1);
        pthread_t thread;
        start_thread(&thread, leave, (void *)(round % 2));
        CHECK(join_thread(thread) == buffer);
    }
    print("ended by pthread_exit: %d cleaned up, %d destroyed\n", (int)cleaned, (int)destroyed);
}

static void *tell_and_wait(void *argument_of_body) {
    CHECK(write(notices[1], "x", 1) == 1);
    return wait_for_ever(argument_of_body);
}

static void at_exit(void) {
    check_field();
    print("at exit: %d cleaned up\n", (int)cleaned);
}

// The program ends while threads wait and others run: none of their handlers runs.
static void alive_at_exit(void) {
    static struct call calls[] = {{"read", call_read, SYS_read}, {"send", call_send, SYS_sendto}};
    buffer = malloc(BUFFER);
    CHECK(buffer != NULL && pthread_key_create(&key, destroy) == 0);
    memset(buffer, 1, BUFFER);
    CHECK(pipe(notices) == 0);
    make_ends();
    use_field(ROUNDS);
    pthread_attr_t detached;
    CHECK(pthread_attr_init(&detached) == 0);
    CHECK(pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED) == 0);
    for (int i = 0; i < 6; i++) {
        pthread_t thread;
        char told;
        if (i % 3 == 2) {
            CHECK(pthread_create(&thread, &detached, call_without_end, buffer) == 0);
            continue;
        }
        CHECK(pthread_create(&thread, &detached, tell_and_wait, &calls[i % 3]) == 0);
        CHECK(read(notices[0], &told, 1) == 1);
    }
    CHECK(atexit(at_exit) == 0);
    exit(23);
}

static const struct named CASES[] = {
    {"exit", by_exit},         {"read", in_read},   {"send", in_send},        {"sendto", in_sendto},   {"sendmsg", in_sendmsg},
    {"vmsplice", in_vmsplice}, {"ioctl", in_ioctl}, {"async", asynchronously}, {"alive", alive_at_exit},
    {"pending", with_one_pending},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
