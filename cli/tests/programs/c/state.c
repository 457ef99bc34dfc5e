// What each thread has of its own and programs change for themselves: ids and capabilities. Whatever it was before, no thread of the process has more
// afterwards than the one that gave it up.
//
// Usage: state CASE

#include "status.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

enum { NOBODY = 65534, THREADS = 4 };

static void need_root(void) {
    if (geteuid() != 0 || prctl(PR_CAPBSET_READ, CAP_SETUID) != 1 || prctl(PR_CAPBSET_READ, CAP_SETGID) != 1) {
        not_here("only root can change ids");
    }
}

struct capabilities {
    struct __user_cap_header_struct header;
    struct __user_cap_data_struct data[2];
};

static struct capabilities capabilities(void) {
    struct capabilities now = {.header = {_LINUX_CAPABILITY_VERSION_3, 0}};
    CHECK(syscall(SYS_capget, &now.header, now.data) == 0);
    return now;
}

static void set_capabilities(struct capabilities *wanted) {
    CHECK(syscall(SYS_capset, &wanted->header, wanted->data) == 0);
}

static uint64_t effective(void) {
    struct capabilities now = capabilities();
    return now.data[0].effective | (uint64_t)now.data[1].effective << 32;
}

static uint64_t allowed(void) {
    struct capabilities now = capabilities();
    return now.data[0].permitted | (uint64_t)now.data[1].permitted << 32;
}

// Ids and capabilities

static void nobody(void) {
    CHECK(setgroups(0, NULL) == 0);
    CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0);
    CHECK(setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

// As daemons do that bind a port first: keep capabilities over the change of ids, raise one when it is needed, then drop it.
static void keep_capabilities(void) {
    need_root();
    use_field(10);
    CHECK(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0) == 1);
    nobody();
    print("kept: %d, effective %#lx\n", allowed() != 0, effective());
    uint64_t one = allowed() & -allowed();
    for (int round = 0; round < 10; round++) {
        struct capabilities now = capabilities();
        now.data[0].effective = (uint32_t)one;
        now.data[1].effective = (uint32_t)(one >> 32);
        set_capabilities(&now);
        CHECK(effective() == one);
        use_field(2);
        now.data[0].effective = now.data[1].effective = 0;
        set_capabilities(&now);
        CHECK(effective() == 0);
    }
    // Whose capabilities were kept may become somebody else.
    struct capabilities now = capabilities();
    now.data[0].effective = now.data[0].permitted & ((1u << CAP_SETUID) | (1u << CAP_SETGID));
    set_capabilities(&now);
    CHECK(setgroups(0, NULL) == 0 && setresgid(NOBODY - 1, NOBODY - 1, NOBODY - 1) == 0);
    CHECK(setresuid(NOBODY - 1, NOBODY - 1, NOBODY - 1) == 0);
    print("uid %u, gid %u\n", geteuid(), getegid());
    use_field(5);
    now = capabilities();
    now.data[0].effective = now.data[1].effective = 0;
    set_capabilities(&now);
    CHECK(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) == 0);
    // Ids that are all of one who is not root are changed again, by nobody who may not.
    CHECK(setresuid(0, 0, 0) == -1 && errno == EPERM);
    struct capabilities none = {.header = {_LINUX_CAPABILITY_VERSION_3, 0}};
    set_capabilities(&none);
    use_field(5);
    compare_threads();
}

static void nothing_left(void) {
    use_field(10);
    struct capabilities none = {.header = {_LINUX_CAPABILITY_VERSION_3, 0}};
    set_capabilities(&none);
    use_field(10);
    CHECK(effective() == 0 && allowed() == 0);
    compare_threads();
}

static void other_ids(void) {
    need_root();
    use_field(10);
    nobody();
    use_field(10);
    print("uid %u, gid %u\n", geteuid(), getegid());
    compare_threads();
}

static void bounded(void) {
    need_root();
    use_field(10);
    CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0);
    use_field(10);
    print("bounding: %d, securebits %#x\n", prctl(PR_CAPBSET_READ, CAP_SYS_PTRACE), prctl(PR_GET_SECUREBITS));
    nobody();
    print("kept: %d\n", allowed() != 0);
    use_field(5);
    compare_threads();
}

static pthread_barrier_t dropped;

static void *try_to_get_back(void *argument_of_body) {
    (void)argument_of_body;
    pthread_barrier_wait(&dropped);
    gid_t groups[8];
    CHECK(geteuid() == NOBODY && getegid() == NOBODY && getgroups(8, groups) == 0);
    CHECK(setuid(0) == -1 && errno == EPERM);
    CHECK(seteuid(0) == -1 && errno == EPERM);
    CHECK(setgid(0) == -1 && errno == EPERM);
    CHECK(setgroups(1, groups) == -1 && errno == EPERM);
    CHECK(effective() == 0);
    check_field();
    return NULL;
}

static void in_threads(void) {
    need_root();
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&dropped, NULL, THREADS + 1) == 0);
    use_field(10);
    for (int i = 0; i < THREADS; i++) {
        start_thread(&threads[i], try_to_get_back, NULL);
    }
    CHECK(setgroups(0, NULL) == 0 && setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
    pthread_barrier_wait(&dropped);
    for (int i = 0; i < THREADS; i++) {
        join_thread(threads[i]);
    }
    use_field(10);
    pthread_t late;
    CHECK(pthread_barrier_init(&dropped, NULL, 1) == 0);
    start_thread(&late, try_to_get_back, NULL);
    join_thread(late);
    compare_threads();
}

// There and back, as servers do that work for their clients.
static void back_and_forth(void) {
    need_root();
    for (int round = 0; round < 20; round++) {
        use_field(1);
        CHECK(setegid(NOBODY) == 0 && seteuid(NOBODY) == 0 && geteuid() == NOBODY);
        use_field(1);
        pid_t child = fork();
        if (child == 0) {
            check_field();
            _exit(geteuid() == NOBODY ? 3 : 4);
        }
        CHECK(status_of(child) == 3);
        CHECK(seteuid(0) == 0 && setegid(0) == 0 && geteuid() == 0);
    }
    print("effective ids changed\n");
}

static void then_execute(void) {
    need_root();
    use_field(10);
    CHECK(chdir("/") == 0);
    nobody();
    use_field(5);
    CHECK(fflush(stdout) == 0);
    execl("/bin/sh", "sh", "-c", "echo \"executed by $(id -u):$(id -g)\"; exit 3", (char *)NULL);
    FAIL("exec");
}

static void children_execute(void) {
    need_root();
    CHECK(chdir("/") == 0);
    for (int round = 0; round < 5; round++) {
        use_field(4);
        pid_t child = fork();
        if (child == 0) {
            nobody();
            execl("/bin/sh", "sh", "-c", "exit 3", (char *)NULL);
            _exit(9);
        }
        CHECK(status_of(child) == 3);
    }
    print("children executed\n");
}

static void dumpable(void) {
    use_field(10);
    print("dumpable: %d\n", prctl(PR_GET_DUMPABLE));
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
    use_field(10);
    print("dumpable: %d\n", prctl(PR_GET_DUMPABLE));
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
    use_field(10);
    print("dumpable: %d\n", prctl(PR_GET_DUMPABLE));
    if (geteuid() == 0) {
        nobody();
        use_field(5);
        print("dumpable: %d\n", prctl(PR_GET_DUMPABLE) == 1);
    }
}

static const struct named CASES[] = {
    {"keepcaps", keep_capabilities},
    {"no-capabilities", nothing_left},
    {"ids", other_ids},
    {"bounded", bounded},
    {"ids-in-threads", in_threads},
    {"effective-ids", back_and_forth},
    {"ids-exec", then_execute},
    {"children-exec", children_execute},
    {"dumpable", dumpable},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
