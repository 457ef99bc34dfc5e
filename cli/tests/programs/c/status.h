// What /proc says of the threads of this process: whether any of them has more than the one that asks.

#ifndef STATUS_H
#define STATUS_H

#include "field.h"

#include <ctype.h>
#include <dirent.h>
#include <sys/syscall.h>

struct status {
    unsigned ids[8]; // real, effective, saved, of the file system: of user and group
    uint64_t effective, permitted, bounding, ambient;
    unsigned seccomp, new_privileges;
};

// Whether there still is such a thread.
static bool look(const char *thread, struct status *status) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/self/task/%.20s/status", thread);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    *status = (struct status){0};
    while (fgets(line, sizeof line, file) != NULL) {
        unsigned *u = status->ids;
        sscanf(line, "Uid: %u %u %u %u", u, u + 1, u + 2, u + 3);
        sscanf(line, "Gid: %u %u %u %u", u + 4, u + 5, u + 6, u + 7);
        sscanf(line, "CapEff: %lx", &status->effective);
        sscanf(line, "CapPrm: %lx", &status->permitted);
        sscanf(line, "CapBnd: %lx", &status->bounding);
        sscanf(line, "CapAmb: %lx", &status->ambient);
        sscanf(line, "Seccomp: %u", &status->seccomp);
        sscanf(line, "NoNewPrivs: %u", &status->new_privileges);
    }
    fclose(file);
    return true;
}

static bool has_more(const struct status *other, const struct status *own) {
    bool more = (other->effective & ~own->effective) != 0 || (other->permitted & ~own->permitted) != 0 ||
                (other->ambient & ~own->ambient) != 0 || other->seccomp < own->seccomp;
    for (int i = 0; i < 8; i++) {
        more |= other->ids[i] == 0 && own->ids[i] != 0;
    }
    return more;
}

// Says how many threads of the process have more than the calling one.
__attribute__((unused)) static void compare_threads(void) {
    char own_name[16];
    snprintf(own_name, sizeof own_name, "%d", (int)syscall(SYS_gettid));
    struct status own, other;
    CHECK(look(own_name, &own));
    int more = 0;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        if (isdigit((unsigned char)entry->d_name[0]) && look(entry->d_name, &other)) {
            more += has_more(&other, &own);
        }
    }
    CHECK(closedir(tasks) == 0);
    print("effective %#lx, seccomp %u; threads with more: %d\n", own.effective, own.seccomp, more);
}

#endif
