// Programs that shut themselves in, as sandboxes and containers do: filters of system calls, namespaces, another root. What they may still do they do as before.
//
// Usage: sandbox CASE

#include "status.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>

// Fails with what isn't permitted here, natively as well.
static void permitted(long result, const char *what) {
    if (result < 0 && (errno == EPERM || errno == ENOSPC || errno == EACCES || errno == ENOSYS)) {
        not_here("%s is not permitted here: %s", what, strerror(errno));
    }
    if (result < 0) {
        FAIL("%s: %s", what, strerror(errno));
    }
}

// Filters

#define ALLOW(name)                                                                                                    \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

// From now on: read, write, allocate, wait, return from signals, end. Anything else is the end of the process.
static void filter(unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read),
        ALLOW(write),
        ALLOW(brk),
        ALLOW(mmap),
        ALLOW(munmap),
        ALLOW(mremap),
        ALLOW(mprotect),
        ALLOW(madvise),
        ALLOW(futex),
        ALLOW(rt_sigreturn),
        ALLOW(rt_sigprocmask),
        ALLOW(exit),
        ALLOW(exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    permitted(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program), "a seccomp filter");
}

static void work_in_sandbox(void) {
    for (size_t round = 0; round < 20; round++) {
        use_field(1);
        unsigned char *own = malloc(MIB + round * PAGE);
        CHECK(own != NULL);
        memset(own, (int)round, MIB);
        own = realloc(own, 2 * MIB);
        CHECK(own != NULL && own[0] == round && own[MIB - 1] == round);
        free(own);
        unsigned char *mapped = map_pages(64);
        fill_page(mapped + 3 * PAGE, round + 1);
        CHECK(madvise(mapped, 2 * PAGE, MADV_DONTNEED) == 0);
        mapped = mremap(mapped, 64 * PAGE, 128 * PAGE, MREMAP_MAYMOVE);
        CHECK(mapped != MAP_FAILED);
        CHECK_PAGE(mapped + 3 * PAGE, round + 1);
        CHECK(munmap(mapped, 128 * PAGE) == 0);
    }
}

static void *filtered_worker(void *argument_of_body) {
    filter(0);
    work_in_sandbox();
    return argument_of_body;
}

static void filter_of_one(void) {
    use_field(10);
    pthread_t worker;
    start_thread(&worker, filtered_worker, NULL);
    join_thread(worker);
    // This thread may do what it likes.
    CHECK(close(open("/dev/null", O_RDONLY)) == 0);
    use_field(5);
    print("a worker with a filter\n");
}

static void filter_of_first(void) {
    use_field(10);
    print("a filter of the first thread\n");
    filter(0);
    work_in_sandbox();
}

static void filter_of_all(void) {
    use_field(10);
    print("a filter of all threads\n");
    filter(SECCOMP_FILTER_FLAG_TSYNC);
    work_in_sandbox();
}

static _Atomic int step;

static void await_step(int wanted) {
    for (int now; (now = atomic_load(&step)) < wanted;) {
        syscall(SYS_futex, &step, 0, now, NULL, NULL, 0);
    }
}

static void take_step(void) {
    atomic_fetch_add(&step, 1);
    syscall(SYS_futex, &step, 1, INT32_MAX, NULL, NULL, 0);
}

static void *work_when_filtered(void *argument_of_body) {
    take_step();
    await_step(2);
    work_in_sandbox();
    return argument_of_body;
}

static void filter_of_worker(void) {
    use_field(10);
    pthread_t worker;
    start_thread(&worker, work_when_filtered, NULL);
    await_step(1);
    print("a filter of a worker, too\n");
    filter(SECCOMP_FILTER_FLAG_TSYNC);
    take_step();
    join_thread(worker);
}

// One that allows everything: what it tells is that each thread has it.
static void filtered_threads(void) {
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    use_field(10);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    permitted(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "a seccomp filter");
    use_field(10);
    compare_threads();
    pid_t child = fork();
    if (child == 0) {
        use_field(2);
        compare_threads();
        _exit(0);
    }
    CHECK(status_of(child) == 0);
}

// Namespaces

static void goes_on(const char *what) {
    use_field(10);
    pid_t child = fork();
    if (child == 0) {
        check_field();
        _exit(3);
    }
    CHECK(status_of(child) == 3);
    use_field(5);
    print("goes on after %s\n", what);
}

static void new_user(void) {
    use_field(10);
    permitted(unshare(CLONE_NEWUSER), "a user namespace");
    print("uid %u\n", geteuid());
    goes_on("unshare(CLONE_NEWUSER)");
}

static void new_user_and_more(void) {
    use_field(10);
    permitted(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWUTS), "a user namespace");
    goes_on("unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWUTS)");
}

static void new_mounts(void) {
    use_field(10);
    permitted(unshare(CLONE_NEWNS), "a mount namespace");
    CHECK(unshare(CLONE_FS | CLONE_FILES) == 0);
    goes_on("unshare(CLONE_NEWNS)");
}

// The namespace of a child, which has one of its own and lives until it is told.
static void join_child(int flag, const char *file, const char *what) {
    int tells[2], ends[2];
    CHECK(pipe(tells) == 0 && pipe(ends) == 0);
    use_field(10);
    pid_t child = fork();
    if (child == 0) {
        end_if_hung();
        char made = unshare(flag) == 0;
        CHECK(write(tells[1], &made, 1) == 1 && close(ends[1]) == 0);
        (void)!read(ends[0], &made, 1);
        _exit(0);
    }
    char made, path[64];
    CHECK(read(tells[0], &made, 1) == 1);
    if (!made) {
        not_here("%s is not permitted here", what);
    }
    snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)child, file);
    int namespace = open(path, O_RDONLY | O_CLOEXEC);
    permitted(namespace, "the child's namespace");
    permitted(setns(namespace, flag), "setns");
    CHECK(close(ends[1]) == 0 && status_of(child) == 0);
    goes_on(what);
}

static void join_mounts(void) {
    join_child(CLONE_NEWNS, "mnt", "setns to a mount namespace");
}

static void join_user(void) {
    join_child(CLONE_NEWUSER, "user", "setns to a user namespace");
}

static void *live_in_new_root(void *argument_of_body) {
    struct stat found;
    CHECK(stat("/proc", &found) == -1 && errno == ENOENT);
    check_field();
    return argument_of_body;
}

static void new_root(void) {
    use_field(10);
    CHECK(mkdir("root", 0755) == 0);
    permitted(chroot("root"), "chroot");
    CHECK(chdir("/") == 0 && open("/proc/self/maps", O_RDONLY) == -1);
    for (int round = 0; round < 10; round++) {
        use_field(2);
        pthread_t thread;
        start_thread(&thread, live_in_new_root, NULL);
        join_thread(thread);
        unsigned char *own = map_pages(256);
        for (size_t i = 0; i < 256; i++) {
            fill_page(own + i * PAGE, i + 1);
        }
        // What was given back does not come back.
        CHECK(madvise(own, 128 * PAGE, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < 256; i++) {
            CHECK_PAGE(own + i * PAGE, i < 128 ? 0 : i + 1);
        }
        CHECK(munmap(own, 256 * PAGE) == 0);
    }
    goes_on("chroot");
}

static const struct named CASES[] = {
    {"filter-worker", filter_of_one},
    {"filter-first", filter_of_first},
    {"filter-all", filter_of_all},
    {"filter-all-worker", filter_of_worker},
    {"filter-threads", filtered_threads},
    {"unshare-user", new_user},
    {"unshare-user-mount", new_user_and_more},
    {"unshare-mount", new_mounts},
    {"setns-mount", join_mounts},
    {"setns-user", join_user},
    {"chroot", new_root},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
