// A runtime that compacts: it MOVEs pages out of ordinary memory into a range that it watches by a userfaultfd of its own, and copies from there.
// What it moves is what was in the source, wherever that was.
//
// Usage: userfault_move CASE

#include "field.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

// Of Linux 6.8, for older headers.
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES ((uint64_t)1 << 1)
struct uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

enum { PAGES = 512, ROUNDS = 60 };

static int uffd = -1;
static unsigned char *source, *target;

static void open_userfaultfd(void) {
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) {
        not_here("no userfaultfd: %s", strerror(errno));
    }
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
    if (ioctl(uffd, UFFDIO_API, &api) != 0) {
        not_here("no UFFDIO_MOVE: %s", strerror(errno));
    }
}

static void prepare(void) {
    open_userfaultfd();
    use_field(1);
    source = map_pages(PAGES);
    target = map_pages(PAGES);
    // A MOVE of a part of a huge page divides it, or says EBUSY.
    CHECK(madvise(source, PAGES * PAGE, MADV_NOHUGEPAGE) == 0 && madvise(target, PAGES * PAGE, MADV_NOHUGEPAGE) == 0);
    struct uffdio_register all = {.range = {(uintptr_t)target, PAGES * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &all) == 0);
}

// Moves pages [from, from + count) to the same place in the target. Returns 0 or the error; `*done` is what was moved.
static int move_pages_to(size_t from, size_t count, uint64_t mode, size_t *done) {
    *done = 0;
    for (;;) {
        struct uffdio_move move = {
            .dst = (uintptr_t)target + (from + *done) * PAGE,
            .src = (uintptr_t)source + (from + *done) * PAGE,
            .len = (count - *done) * PAGE,
            .mode = mode,
        };
        int result = ioctl(uffd, UFFDIO_MOVE, &move), error = errno;
        if (result == 0) {
            CHECK(move.move == (int64_t)((count - *done) * PAGE));
            *done = count;
            return 0;
        }
        if (move.move > 0) {
            CHECK(move.move % (int64_t)PAGE == 0);
            *done += (size_t)move.move / PAGE;
        }
        // Anybody's change of a mapping meanwhile is a reason to try again.
        if (error != EAGAIN) {
            return error;
        }
    }
}

// Whether there is a page in the target; where there was none, zeros are now.
static bool is_there(size_t i) {
    struct uffdio_zeropage zero = {.range = {(uintptr_t)target + i * PAGE, PAGE}};
    for (;;) {
        if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0) {
            return false;
        }
        if (errno == EEXIST) {
            return true;
        }
        CHECK(errno == EAGAIN);
    }
}

static void empty_target(void) {
    CHECK(madvise(target, PAGES * PAGE, MADV_DONTNEED) == 0);
}

static void whole(void) {
    prepare();
    size_t moved = 0;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        for (size_t i = 0; i < PAGES; i++) {
            fill_page(source + i * PAGE, round * PAGES + i);
        }
        use_field(2);
        for (size_t from = 0; from < PAGES; from += 64) {
            size_t done;
            int error = move_pages_to(from, 64, 0, &done);
            if (error != 0) {
                FAIL("round %llu: page %zu was not moved: %s", (unsigned long long)round, from + done, strerror(error));
            }
            moved += done;
        }
        for (size_t i = 0; i < PAGES; i++) {
            CHECK(is_there(i));
            CHECK_PAGE(target + i * PAGE, round * PAGES + i);
            // It was moved, and not copied.
            CHECK(i % 7 != 0 || first_difference(source + i * PAGE, 0) < 0);
        }
        empty_target();
    }
    print("moved: %zu pages\n", moved);
}

static bool is_hole(uint64_t round, size_t i) {
    return mix(round * PAGES + i) % 3 == 0;
}

static void with_holes(void) {
    prepare();
    size_t holes = 0;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        CHECK(madvise(source, PAGES * PAGE, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            if (!is_hole(round, i)) {
                fill_page(source + i * PAGE, round * PAGES + i);
            }
        }
        use_field(2);
        size_t done;
        int error = move_pages_to(0, PAGES, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, &done);
        if (error != 0) {
            FAIL("round %llu: page %zu was not moved: %s", (unsigned long long)round, done, strerror(error));
        }
        for (size_t i = 0; i < PAGES; i++) {
            bool there = is_there(i);
            if (there == is_hole(round, i)) {
                FAIL("round %llu: page %zu is %s", (unsigned long long)round, i, there ? "there" : "left behind");
            }
            holes += !there;
            CHECK_PAGE(target + i * PAGE, there ? round * PAGES + i : 0);
        }
        empty_target();
    }
    print("moved around %zu holes\n", holes);
}

// Without leave to meet holes a MOVE stops at the first, and says how far it came.
static void to_a_hole(void) {
    prepare();
    size_t moved = 0;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        size_t hole = 1 + mix(round) % (PAGES - 1);
        CHECK(madvise(source, PAGES * PAGE, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            if (i != hole) {
                fill_page(source + i * PAGE, round * PAGES + i);
            }
        }
        use_field(2);
        size_t done;
        int error = move_pages_to(0, PAGES, 0, &done);
        if (error != ENOENT || done != hole) {
            FAIL("round %llu: %zu pages before a hole at %zu, and %s", (unsigned long long)round, done, hole, strerror(error));
        }
        moved += done;
        for (size_t i = 0; i < hole; i++) {
            CHECK_PAGE(target + i * PAGE, round * PAGES + i);
        }
        for (size_t i = hole + 1; i < PAGES; i++) {
            CHECK_PAGE(source + i * PAGE, round * PAGES + i);
        }
        empty_target();
    }
    print("moved up to a hole: %zu pages\n", moved);
}

static void copied(void) {
    prepare();
    size_t copies = 0;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        for (size_t i = 0; i < PAGES; i++) {
            fill_page(source + i * PAGE, round * PAGES + i);
        }
        use_field(2);
        for (size_t i = 0; i < PAGES;) {
            size_t count = i + 16 <= PAGES ? 16 : PAGES - i;
            struct uffdio_copy copy = {
                .dst = (uintptr_t)target + i * PAGE, .src = (uintptr_t)source + i * PAGE, .len = count * PAGE};
            if (ioctl(uffd, UFFDIO_COPY, &copy) == 0) {
                i += count;
                continue;
            }
            CHECK(errno == EAGAIN);
            i += copy.copy > 0 ? (size_t)copy.copy / PAGE : 0;
        }
        for (size_t i = 0; i < PAGES; i++) {
            CHECK_PAGE(target + i * PAGE, round * PAGES + i);
            CHECK_PAGE(source + i * PAGE, round * PAGES + i);
            copies++;
        }
        empty_target();
    }
    print("copied: %zu pages\n", copies);
}

// Each page makes the way several times, and the range is given back in the end.
static void there_and_back(void) {
    prepare();
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        size_t done;
        for (size_t i = 0; i < PAGES; i++) {
            fill_page(source + i * PAGE, round * PAGES + i);
        }
        CHECK(move_pages_to(0, PAGES, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, &done) == 0);
        // Back by copying, as the source is not watched.
        for (size_t i = 0; i < PAGES; i++) {
            CHECK_PAGE(target + i * PAGE, round * PAGES + i);
            memcpy(source + i * PAGE, target + i * PAGE, PAGE);
        }
        empty_target();
        use_field(2);
        CHECK(move_pages_to(0, PAGES, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, &done) == 0);
        for (size_t i = 0; i < PAGES; i++) {
            CHECK_PAGE(target + i * PAGE, round * PAGES + i);
        }
        empty_target();
    }
    // The range is ordinary memory again.
    struct uffdio_range all = {(uintptr_t)target, PAGES * PAGE};
    CHECK(ioctl(uffd, UFFDIO_UNREGISTER, &all) == 0 && close(uffd) == 0);
    for (size_t i = 0; i < PAGES; i++) {
        CHECK_PAGE(target + i * PAGE, 0);
        fill_page(target + i * PAGE, i + 1);
    }
    use_field(2);
    for (size_t i = 0; i < PAGES; i++) {
        CHECK_PAGE(target + i * PAGE, i + 1);
    }
    print("there and back\n");
}

static const struct named CASES[] = {
    {"whole", whole}, {"holes", with_holes}, {"to-a-hole", to_a_hole}, {"copied", copied}, {"back", there_and_back},
};

int main(int argc, char **argv) {
    return RUN_CASE(CASES, argc, argv);
}
