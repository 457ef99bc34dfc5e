// A program that moves its vDSO away, as those do that restore others from a checkpoint, and goes on without.
//
// Usage: vdso

#include "field.h"

#include <sys/syscall.h>

static uintptr_t from, to;

static void find(const char *name) {
    char line[4096];
    from = to = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long a, b;
        if (strstr(line, name) != NULL && sscanf(line, "%lx-%lx", &a, &b) == 2) {
            from = a;
            to = b;
        }
    }
    CHECK(fclose(maps) == 0);
}

int main(void) {
    end_if_hung();
#ifndef __x86_64__
    not_here("the vDSO of x86-64 is moved");
#endif
    use_field(10);
    find("[vdso]");
    if (from == 0) {
        not_here("there is no vDSO");
    }
    size_t length = to - from;
    unsigned char *place = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    CHECK((void *)syscall(SYS_mremap, from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    // Whoever still looks for it where it was finds nothing that is a function.
    unsigned char *bare = mmap((void *)from, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(bare == (void *)from);
    print("moved\n");
    use_field(60);
    unsigned char *own = map_pages(256);
    for (uint64_t round = 1; round <= 20; round++) {
        for (size_t i = 0; i < 256; i++) {
            CHECK_PAGE(own + i * PAGE, round == 1 ? 0 : round + i);
            fill_page(own + i * PAGE, round + i + 1);
        }
        CHECK(madvise(own, 256 * PAGE, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < 256; i++) {
            CHECK_PAGE(own + i * PAGE, 0);
            fill_page(own + i * PAGE, round + i + 1);
        }
    }
    check_field();
    print("done\n");
    return 0;
}
