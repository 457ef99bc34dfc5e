// Uses its memory until half of it is on another node, where somebody else has moved it, and then until the kernel's NUMA balancing has
// gone through all of the program's mappings many times. Says how many of those pages have left the node. With `default` it takes
// the policy that programs have by default, and whose memory the kernel balances.
//
// Usage: balanced PAGES NODE [default]

#include "common.h"

#include <sys/syscall.h>

static size_t pages;
static unsigned char *memory;

static void use(void) {
    for (size_t i = 0; i < pages; i++) {
        CHECK_PAGE(memory + i * PAGE, i + 1);
    }
}

// How often the kernel has gone through the mappings.
static long scans(void) {
    FILE *file = fopen("/proc/self/sched", "r");
    CHECK(file != NULL);
    char line[256];
    long count = -1;
    while (fgets(line, sizeof line, file) != NULL) {
        const char *value = strchr(line, ':');
        if (strstr(line, "numa_scan_seq") != NULL && value != NULL) {
            count = strtol(value + 1, NULL, 10);
        }
    }
    CHECK(fclose(file) == 0);
    CHECK(count >= 0);
    return count;
}

// The node of each page, by move_pages(2).
static void ask(int *nodes) {
    void **list = malloc(pages * sizeof *list);
    CHECK(list != NULL);
    for (size_t i = 0; i < pages; i++) {
        list[i] = memory + i * PAGE;
    }
    CHECK(syscall(SYS_move_pages, 0, pages, list, NULL, nodes, 0) == 0);
    free(list);
}

int main(int argc, char **argv) {
    pages = argument(argc, argv, 1, 2048);
    int node = (int)argument(argc, argv, 2, 1);
    if (argc > 3) {
        CHECK(strcmp(argv[3], "default") == 0);
        CHECK(syscall(SYS_set_mempolicy, 0, NULL, 0) == 0);
    }
    memory = map_pages(pages);
    for (size_t i = 0; i < pages; i++) {
        fill_page(memory + i * PAGE, i + 1);
    }
    int *before = malloc(pages * sizeof *before);
    int *after = malloc(pages * sizeof *after);
    CHECK(before != NULL && after != NULL);
    size_t there;
    do {
        use();
        ask(before);
        there = 0;
        for (size_t i = 0; i < pages; i++) {
            there += before[i] == node;
        }
    } while (there < pages / 2);
    long begun = scans();
    // A mapping that was seen unused is passed over, but not more often than the program has threads.
    while (scans() < begun + 16) {
        use();
    }
    ask(after);
    size_t left = 0;
    for (size_t i = 0; i < pages; i++) {
        left += before[i] == node && after[i] != node;
    }
    printf("left: %zu\n", left);
    return 0;
}
