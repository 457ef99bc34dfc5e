/* EXCLUSIVE and CHECK_EXCLUSIVE. */
#include "device.h"

enum { PAGES = 150 };

static struct setting setting;

static void until_a_touch(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 1);
    EQUAL(ask(fd, CHECK_EXCLUSIVE, at, PAGES, NULL, NULL), 0);
    DOES(fd, EXCLUSIVE, at, (size_t)PAGES, out, 0);
    holds(out, PAGES, 1);
    REFUSES(fd, CHECK_EXCLUSIVE, at, PAGES, NULL, EPERM);
    /* The device uses them meanwhile. */
    fill(out, PAGES, 2);
    DOES(fd, WRITE, at, (size_t)PAGES, out, 0);
    REFUSES(fd, CHECK_EXCLUSIVE, at, PAGES, NULL, EPERM);
    /* A touch ends it for its page, a reading one too. */
    for (size_t i = 0; i < PAGES; i++) {
        REFUSES(fd, CHECK_EXCLUSIVE, at + i * PAGE, 1, NULL, EPERM);
        EQUAL(at[i * PAGE], byte(i * PAGE, 2));
        EQUAL(ask(fd, CHECK_EXCLUSIVE, at + i * PAGE, 1, NULL, NULL), 0);
    }
    holds(at, PAGES, 2);
    struct command done;
    EQUAL(ask(fd, CHECK_EXCLUSIVE, at, PAGES, NULL, &done), 0);
    EQUAL(done.cpages, 0);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void holes_and_device_pages(int fd, int other)
{
    unsigned char *at = memory(&setting, 8), *out = buffer(8);
    DOES(fd, EXCLUSIVE, at, (size_t)8, out, 0);
    for (size_t i = 0; i < 8 * PAGE; i++) {
        EQUAL(out[i], 0);
    }
    REFUSES(fd, CHECK_EXCLUSIVE, at + 7 * PAGE, 1, NULL, EPERM);
    fill(at, 8, 3);
    DOES(fd, TO_DEVICE, at, (size_t)4, out, 0);
    DOES(other, TO_DEVICE, at + 4 * PAGE, (size_t)4, out, 0);
    DOES(fd, EXCLUSIVE, at, (size_t)8, out, 0);
    holds(out, 8, 3);
    for (size_t i = 0; i < 8; i++) {
        REFUSES(fd, CHECK_EXCLUSIVE, at + i * PAGE, 1, NULL, EPERM);
    }
    /* Not of another device; whoever takes it ends it. */
    EQUAL(ask(other, CHECK_EXCLUSIVE, at, 8, NULL, NULL), 0);
    DOES(other, READ, at, (size_t)4, out, 1);
    EQUAL(ask(fd, CHECK_EXCLUSIVE, at, 4, NULL, NULL), 0);
    DOES(other, EXCLUSIVE, at + 4 * PAGE, (size_t)4, out, 0);
    EQUAL(ask(fd, CHECK_EXCLUSIVE, at, 8, NULL, NULL), 0);
    holds(at, 8, 3);
    /* What is exclusive is not migrated, and is read back from the table. */
    DOES(fd, EXCLUSIVE, at, (size_t)2, out, 0);
    DOES(fd, TO_DEVICE, at, (size_t)2, out, 0);
    REFUSES(fd, CHECK_EXCLUSIVE, at, 2, NULL, EPERM);
    struct command done;
    EQUAL(ask(fd, TO_SYSTEM, at, 2, NULL, &done), 0);
    EQUAL(done.cpages, 0);
    REFUSES(fd, CHECK_EXCLUSIVE, at, 2, NULL, EPERM);
    munmap(at, 8 * PAGE);
    free(out);
}

static void what_ends_it_besides(int fd)
{
    unsigned char *at = memory(&setting, 8), *out = buffer(8);
    fill(at, 8, 4);
    DOES(fd, EXCLUSIVE, at, (size_t)8, out, 0);
    EQUAL(mprotect(at, 4 * PAGE, PROT_READ), 0);
    EQUAL(ask(fd, CHECK_EXCLUSIVE, at, 4, NULL, NULL), 0);
    REFUSES(fd, WRITE, at, 4, out, EPERM);
    DOES(fd, READ, at, (size_t)4, out, 1);
    holds(out, 4, 4);
    EQUAL(munmap(at + 4 * PAGE, PAGE), 0);
    EQUAL(ask(fd, CHECK_EXCLUSIVE, at + 4 * PAGE, 1, NULL, NULL), 0);
    REFUSES(fd, CHECK_EXCLUSIVE, at, 8, NULL, EPERM);
    EQUAL(ask(fd, RELEASE, at, 8, NULL, NULL), 0);
    munmap(at, 8 * PAGE);
    free(out);
}

static void refusals(int fd)
{
    unsigned char *at = memory(&setting, 100), *out = buffer(100);
    fill(at, 100, 5);
    EQUAL(mprotect(at + 80 * PAGE, PAGE, PROT_READ), 0);
    REFUSES(fd, EXCLUSIVE, at, 100, out, EBUSY);
    EQUAL(out[0], 0xA5);
    REFUSES(fd, CHECK_EXCLUSIVE, at, 64, NULL, EPERM);
    EQUAL(munmap(at + 80 * PAGE, PAGE), 0);
    REFUSES(fd, EXCLUSIVE, at, 100, out, EBUSY);
    munmap(at, 100 * PAGE);
    at = map(2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    fill(at, 2, 5);
    REFUSES(fd, EXCLUSIVE, at, 2, out, EBUSY);
    munmap(at, 2 * PAGE);
    at = memory(&setting, 2);
    fill(at, 2, 5);
    REFUSES(fd, EXCLUSIVE, at, 2, (void *)8, EFAULT);
    munmap(at, 2 * PAGE);
    free(out);
}

static void the_last_close_ends_it(void)
{
    unsigned char *at = memory(&setting, 8), *out = buffer(8);
    int fd = open_device(setting.first);
    fill(at, 8, 6);
    DOES(fd, EXCLUSIVE, at, (size_t)8, out, 0);
    EQUAL(close(fd), 0);
    holds(at, 8, 6);
    munmap(at, 8 * PAGE);
    free(out);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    the_last_close_ends_it();
    int fd = open_device(setting.first), other = open_device(setting.second);
    until_a_touch(fd);
    holes_and_device_pages(fd, other);
    what_ends_it_besides(fd);
    refusals(fd);
    the_last_close_ends_it();
    return end();
}
