// Threads map files, do to the mappings what can be done, fork, and read, while another process writes the files, makes them anew and deletes them: each
// page is of a version that the file may have just then.
//
// Usage: files_race MILLISECONDS [SEED]

#include "common.h"

#include <fcntl.h>
#include <time.h>

enum { FILES = 4, PAGES = 900, THREADS = 3, MAPPINGS = 6 };

// What the processes share: between which versions the content of a file is, and how often it was made anew.
struct shared {
    struct {
        atomic_ulong from, to;
    } of[FILES];
    atomic_int ends;
    atomic_ulong reads, forks;
};

static struct shared *shared;

static uint64_t next(uint64_t *state) {
    return mix((*state)++);
}

static uint64_t word_of(unsigned file, size_t page) {
    return mix(((uint64_t)file << 32 | page) + 1) & ~0xffffffffull;
}

static void fill(int fd, unsigned file, uint64_t version) {
    uint64_t page[WORDS];
    memset(page, 0x5a, sizeof page);
    for (size_t i = 0; i < PAGES; i++) {
        page[0] = page[WORDS - 1] = word_of(file, i) | version;
        CHECK(pwrite(fd, page, sizeof page, (off_t)(i * PAGE)) == (ssize_t)sizeof page);
    }
}

static void name_of(unsigned file, char name[16]) {
    snprintf(name, 16, "race%u", file);
}

static void write_anew(unsigned file, uint64_t version) {
    char name[16];
    name_of(file, name);
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    fill(fd, file, version);
    CHECK(close(fd) == 0);
}

// Writes files until it is to end. The last file has one content, under names that come and go.
static void writer(uint64_t seed) {
    char name[16];
    uint64_t state = seed;
    for (uint64_t version = 1; atomic_load(&shared->ends) == 0; version++) {
        unsigned file = (unsigned)(next(&state) % FILES);
        name_of(file, name);
        if (file == FILES - 1) {
            int fd = open("other", O_RDWR | O_CREAT | O_TRUNC, 0600);
            CHECK(fd >= 0);
            fill(fd, file, 0);
            CHECK(close(fd) == 0 && rename("other", name) == 0);
        } else {
            atomic_store(&shared->of[file].to, version);
            write_anew(file, version);
            atomic_store(&shared->of[file].from, version);
        }
        usleep((useconds_t)(next(&state) % 30000));
    }
    _exit(0);
}

struct mapping {
    unsigned char *at;
    size_t pages, skip;
    unsigned file;
    int flags;
};

static void check_page(const struct mapping *of, size_t page) {
    uint64_t from = atomic_load(&shared->of[of->file].from);
    const volatile uint64_t *words = (const volatile uint64_t *)(of->at + page * PAGE);
    uint64_t found[2] = {words[0], words[WORDS - 1]};
    uint64_t to = atomic_load(&shared->of[of->file].to);
    for (int i = 0; i < 2; i++) {
        uint64_t version = found[i] ^ word_of(of->file, page + of->skip);
        if (version < from || version > to) {
            FAIL("page %zu of file %u is of version %lx, not of %lx to %lx", page + of->skip, of->file, version, from, to);
        }
    }
}

static void look(const struct mapping *of, uint64_t *state, int times) {
    for (int i = 0; i < times; i++) {
        check_page(of, next(state) % of->pages);
    }
    atomic_fetch_add(&shared->reads, (unsigned long)times);
}

static void map(struct mapping *of, uint64_t *state) {
    char name[16];
    of->file = (unsigned)(next(state) % FILES);
    of->skip = next(state) % 3 == 0 ? next(state) % 300 : 0;
    of->pages = next(state) % 4 == 0 ? 16 + next(state) % 200 : PAGES - of->skip;
    of->flags = next(state) % 2 == 0 ? MAP_SHARED : MAP_PRIVATE;
    name_of(of->file, name);
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0);
    of->at = mmap(NULL, of->pages * PAGE, PROT_READ, of->flags | (next(state) % 8 == 0 ? MAP_POPULATE : 0), fd, (off_t)(of->skip * PAGE));
    CHECK(of->at != MAP_FAILED && close(fd) == 0);
}

static void unmap(struct mapping *of) {
    CHECK(munmap(of->at, of->pages * PAGE) == 0);
    of->at = NULL;
}

// Something that a program may do to its mapping. What is read of it must be of the file still, or it is unmapped.
static void change(struct mapping *of, uint64_t *state) {
    size_t first = next(state) % of->pages, count = 1 + next(state) % (of->pages - first);
    unsigned char *at = of->at + first * PAGE, *place;
    unsigned char resident[PAGES];
    switch (next(state) % 14) {
    case 0:
        CHECK(mprotect(at, count * PAGE, PROT_NONE) == 0 && mprotect(at, count * PAGE, PROT_READ) == 0);
        break;
    case 1:
        if (of->flags == MAP_PRIVATE) {
            CHECK(mprotect(at, count * PAGE, PROT_READ | PROT_WRITE) == 0);
            memset(at, 7, count * PAGE);
            look(of, state, 0);
            for (size_t i = 0; i < count * PAGE; i += 1000) {
                CHECK(at[i] == 7);
            }
            unmap(of);
        } else {
            CHECK(mprotect(at, count * PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
        }
        break;
    case 2:
        place = mmap(NULL, of->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(place != MAP_FAILED);
        CHECK(mremap(of->at, of->pages * PAGE, of->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
        of->at = place;
        break;
    case 3:
        CHECK(mmap(at, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        CHECK(at[0] == 0 && at[count * PAGE - 1] == 0);
        unmap(of);
        break;
    case 4:
        CHECK(madvise(at, count * PAGE, MADV_DONTNEED) == 0);
        break;
    case 5:
        CHECK(madvise(at, count * PAGE, next(state) % 2 == 0 ? MADV_WILLNEED : MADV_RANDOM) == 0);
        break;
    case 6:
        CHECK(mincore(at, count * PAGE, resident) == 0);
        break;
    case 7:
        CHECK(msync(at, count * PAGE, MS_SYNC) == 0);
        break;
    case 8:
        if (mlock(at, count * PAGE) == 0) {
            CHECK(munlock(at, count * PAGE) == 0);
        }
        break;
    case 9:
        // The end of it goes, and what is left shrinks.
        if (first > 0) {
            CHECK(munmap(of->at + first * PAGE, (of->pages - first) * PAGE) == 0);
            of->pages = first;
        }
        break;
    default:
        break;
    }
}

static void *reader(void *argument) {
    uint64_t state = mix((uint64_t)(uintptr_t)argument);
    struct mapping mappings[MAPPINGS] = {{0}};
    while (atomic_load(&shared->ends) == 0) {
        struct mapping *of = &mappings[next(&state) % MAPPINGS];
        if (of->at == NULL) {
            map(of, &state);
        }
        look(of, &state, 200);
        unsigned what = (unsigned)(next(&state) % 40);
        if (what < 4) {
            change(of, &state);
        } else if (what == 4) {
            unmap(of);
        } else if (what == 5) {
            // A child has what its parent has, and may map more.
            pid_t child = fork();
            if (child == 0) {
                look(of, &state, 100);
                struct mapping own;
                map(&own, &state);
                look(&own, &state, 100);
                unmap(&own);
                _exit(0);
            }
            int status;
            CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
            atomic_fetch_add(&shared->forks, 1);
        } else if (what == 6) {
            pid_t child = vfork();
            if (child == 0) {
                _exit(0);
            }
            CHECK(child > 0 && waitpid(child, NULL, 0) == child);
        }
    }
    for (int i = 0; i < MAPPINGS; i++) {
        if (mappings[i].at != NULL) {
            unmap(&mappings[i]);
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count >= 2);
    needs_linux(6, 11);
    long milliseconds = strtol(arguments[1], NULL, 10);
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 0) : 1;
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    for (unsigned file = 0; file < FILES; file++) {
        write_anew(file, 0);
    }
    pid_t child = fork();
    if (child == 0) {
        writer(seed);
    }
    pthread_t readers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&readers[i], NULL, reader, (void *)(uintptr_t)(seed + i + 1)) == 0);
    }
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    CHECK(nanosleep(&time, NULL) == 0);
    atomic_store(&shared->ends, 1);
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_join(readers[i], NULL) == 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    if (count > 3) {
        fprintf(stderr, "%lu reads, %lu forks\n", atomic_load(&shared->reads), atomic_load(&shared->forks));
    }
    CHECK(atomic_load(&shared->reads) > 0);
    puts("what was read is what the files had");
    return 0;
}
