/* Without the privilege to be told of forks: a child, and its child, find what was on the private device, and nothing is brought home for those
   who only execute. */
#define _DEFAULT_SOURCE
#define _GNU_SOURCE
#include "expect.h"

#include <linux/capability.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PAGES = 64, ROUNDS = 40 };

static const size_t LENGTH = PAGES * HETMEM_PAGE_SIZE;

static int holds(const volatile unsigned char *bytes)
{
    for (size_t i = 0; i < LENGTH; i++) {
        if (bytes[i] != (unsigned char)(i % 251)) {
            return 0;
        }
    }
    return 1;
}

static void drop_ptrace(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    EXPECT(syscall(SYS_capget, &header, sets) == 0);
    sets[0].effective &= ~(1u << CAP_SYS_PTRACE);
    EXPECT(syscall(SYS_capset, &header, sets) == 0);
}

static hetmem_runtime *one_device(int exec_at_once)
{
    hetmem_config *config;
    hetmem_runtime *runtime;
    OK(hetmem_config_new(&config));
    OK(hetmem_config_add_device(config, "private:emulated,size=64M"));
    if (exec_at_once) {
        OK(hetmem_config_forks_exec_at_once(config));
    }
    hetmem_error *error = hetmem_runtime_new(config, &runtime);
    hetmem_config_free(config);
    if (hetmem_error_code(error) == HETMEM_HOST_REFUSES) {
        printf("missing: a runtime without CAP_SYS_PTRACE (%s)\n", hetmem_error_message(error));
        exit(0);
    }
    OK(error);
    return runtime;
}

static unsigned on_device(hetmem_runtime *runtime, const void *bytes)
{
    hetmem_place places[PAGES];
    unsigned count = 0;
    OK(hetmem_residency(runtime, bytes, LENGTH, places, PAGES));
    for (int i = 0; i < PAGES; i++) {
        count += places[i] == HETMEM_DEVICE(0);
    }
    return count;
}

static void send_away(hetmem_runtime *runtime, void *bytes)
{
    hetmem_request out = {HETMEM_DEVICE(0), 0, 0};
    OK(hetmem_migrate(runtime, bytes, LENGTH, &out, NULL, 0, NULL));
}

/* Sends pages away all the time. */
static int over;
struct work {
    hetmem_runtime *runtime;
    void *bytes;
};
static void *migrate(void *argument)
{
    struct work *work = argument;
    while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
        send_away(work->runtime, work->bytes);
    }
    return NULL;
}

static void child_ends_well(pid_t child)
{
    int status;
    EXPECT(waitpid(child, &status, 0) == child);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static unsigned char *filled(hetmem_runtime *runtime, hetmem_mapping **mapping)
{
    OK(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, mapping));
    unsigned char *bytes = hetmem_mapping_address(*mapping);
    for (size_t i = 0; i < LENGTH; i++) {
        bytes[i] = (unsigned char)(i % 251);
    }
    return bytes;
}

static void children_find_everything(void)
{
    hetmem_runtime *runtime = one_device(0);
    hetmem_mapping *mapping, *other;
    unsigned char *bytes = filled(runtime, &mapping);
    struct work work = {runtime, filled(runtime, &other)};
    pthread_t busy;
    EXPECT(pthread_create(&busy, NULL, migrate, &work) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        send_away(runtime, bytes);
        EXPECT(on_device(runtime, bytes) == PAGES);
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            bounded();
            pid_t grandchild = fork();
            EXPECT(grandchild >= 0);
            if (grandchild == 0) {
                _exit(!(holds(bytes) && holds(work.bytes)));
            }
            child_ends_well(grandchild);
            _exit(!(holds(bytes) && holds(work.bytes)));
        }
        child_ends_well(child);
        EXPECT(holds(bytes) && holds(work.bytes));
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    EXPECT(pthread_join(busy, NULL) == 0);
    hetmem_mapping_free(mapping);
    hetmem_mapping_free(other);
    hetmem_runtime_free(runtime);
}

static void who_only_executes_waits_for_nothing(void)
{
    hetmem_runtime *runtime = one_device(1);
    hetmem_mapping *mapping;
    unsigned char *bytes = filled(runtime, &mapping);
    send_away(runtime, bytes);
    pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) {
        execlp("true", "true", (char *)NULL);
        _exit(127);
    }
    child_ends_well(child);
    EXPECT(on_device(runtime, bytes) == PAGES);
    EXPECT(holds(bytes));
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
}

int main(void)
{
    bounded();
    drop_ptrace();
    who_only_executes_waits_for_nothing();
    children_find_everything();
    puts("ok");
    return 0;
}
