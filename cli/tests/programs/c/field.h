// Memory that is written and read back, so that pages move, and have reason to, while a program does what it is about.

#ifndef FIELD_H
#define FIELD_H

#include "common.h"

enum { FIELD_PAGES = 1024 };

static unsigned char *field;
static uint64_t field_round;

__attribute__((unused)) static void check_field(void) {
    for (uint64_t i = 0; i < FIELD_PAGES; i++) {
        CHECK_PAGE(field + i * PAGE, field_round == 0 ? 0 : field_round + i);
    }
}

// Reads and writes all of it, `rounds` times.
__attribute__((unused)) static void use_field(unsigned rounds) {
    if (field == NULL) {
        field = map_pages(FIELD_PAGES);
    }
    for (; rounds > 0; rounds--) {
        check_field();
        field_round++;
        for (uint64_t i = 0; i < FIELD_PAGES; i++) {
            fill_page(field + i * PAGE, field_round + i);
        }
    }
}

// Exit status of what can't be tried on this host; the last line that was printed says why.
enum { NOT_HERE = 77 };

__attribute__((format(printf, 1, 2), noreturn, unused)) static void not_here(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    _exit(NOT_HERE);
}

// A program that hangs is ended by a signal: each of its processes asks for it.
__attribute__((unused)) static void end_if_hung(void) {
    alarm(100);
}

__attribute__((unused)) static void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Prints at once, so that nothing is left in a buffer that a child would have, too.
__attribute__((unused)) static void print(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    CHECK(fflush(stdout) == 0);
}

// One of the cases of a program, by name.
struct named {
    const char *name;
    void (*run)(void);
};

__attribute__((unused)) static int run_case(const struct named *cases, size_t count, int argc, char **argv) {
    CHECK(argc >= 2);
    end_if_hung();
    for (size_t i = 0; i < count; i++) {
        if (strcmp(cases[i].name, argv[1]) == 0) {
            cases[i].run();
            print("done: %s\n", argv[1]);
            return 0;
        }
    }
    FAIL("no case %s", argv[1]);
}

#define RUN_CASE(cases, argc, argv) run_case((cases), sizeof(cases) / sizeof *(cases), (argc), (argv))

#endif
