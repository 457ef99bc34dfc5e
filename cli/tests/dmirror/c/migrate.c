/* MIGRATE_TO_DEV, MIGRATE_TO_SYS, CPU faults, RELEASE and the last close. */
#include "device.h"

enum { PAGES = 256 };

static struct setting setting;

/* The byte of a snapshot that a page on the first device has for it. */
static int local(int access)
{
    return (setting.coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL) | access;
}

static int snapshot(int fd, void *page)
{
    unsigned char byte;
    DOES(fd, SNAPSHOT, page, (size_t)1, &byte, 0);
    return byte;
}

static void count(int fd, void *at, size_t pages, int wanted, size_t expected)
{
    unsigned char *bytes = malloc(pages);
    size_t found = 0;
    DOES(fd, SNAPSHOT, at, pages, bytes, 0);
    for (size_t i = 0; i < pages; i++) {
        found += bytes[i] == wanted;
    }
    EQUAL(found, expected);
    free(bytes);
}

static void out_and_home(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    struct command done;
    fill(at, PAGES, 1);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    holds(out, PAGES, 1);
    count(fd, at, PAGES, local(P_WRITE), PAGES);
    /* Those that are there are in the table. */
    DOES(fd, READ, at, (size_t)PAGES, out, 0);
    EQUAL(ask(fd, TO_SYSTEM, at, PAGES, NULL, &done), 0);
    EQUAL(done.cpages, PAGES);
    EQUAL(done.faults, 0);
    count(fd, at, PAGES, local(P_WRITE), 0);
    holds(at, PAGES, 1);
    /* Nothing is left to migrate, and that is no error. */
    EQUAL(ask(fd, TO_SYSTEM, at, PAGES, NULL, &done), 0);
    EQUAL(done.cpages, 0);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void a_touch_brings_one_page_home(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 2);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    for (size_t i = 0; i < 8; i++) {
        EQUAL(at[i * PAGE], byte(i * PAGE, 2));
    }
    count(fd, at, PAGES, local(P_WRITE), setting.coherent ? PAGES : PAGES - 8);
    /* What was not touched is in the table still. */
    DOES(fd, READ, at + 8 * PAGE, (size_t)PAGES - 8, out, 0);
    DOES(fd, READ, at, (size_t)PAGES, out, setting.coherent ? 0 : 1);
    holds(out, PAGES, 2);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void holes_get_device_pages(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    static const unsigned char zeros[PAGES * PAGE];
    at[0] = 1;
    EXPECT(*(volatile unsigned char *)(at + 100 * PAGE) == 0);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    EQUAL(out[0], 1);
    EXPECT(memcmp(out + 1, zeros + 1, PAGES * PAGE - 1) == 0);
    count(fd, at, PAGES, local(P_WRITE), PAGES);
    EXPECT(memcmp(at + 1, zeros + 1, PAGES * PAGE - 1) == 0);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void read_only_memory_migrates(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 3);
    EQUAL(mprotect(at, PAGES * PAGE, PROT_READ), 0);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    holds(out, PAGES, 3);
    count(fd, at, PAGES, local(P_READ), PAGES);
    REFUSES(fd, WRITE, at, PAGES, out, EPERM);
    holds(at, PAGES, 3);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void what_does_not_migrate(int fd)
{
    unsigned char *out = buffer(PAGES);
    unsigned char *at = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    fill(at, PAGES, 4);
    REFUSES(fd, TO_DEVICE, at, PAGES, out, ENOENT);
    EQUAL(out[0], 0xA5);
    /* What the table has from before is read back. */
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    memset(out, 0, PAGES * PAGE);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    holds(out, PAGES, 4);
    munmap(at, PAGES * PAGE);
    /* A range with a gap, and with a part that can't be read. */
    at = memory(&setting, PAGES);
    fill(at, PAGES, 5);
    EQUAL(mprotect(at + 128 * PAGE, PAGE, PROT_NONE), 0);
    REFUSES(fd, TO_DEVICE, at, PAGES, out, EINVAL);
    count(fd, at, 128, local(P_WRITE), 128);
    REFUSES(fd, TO_SYSTEM, at, PAGES, out, EINVAL);
    count(fd, at, 128, local(P_WRITE), 0);
    EQUAL(munmap(at + 128 * PAGE, PAGE), 0);
    REFUSES(fd, TO_DEVICE, at, PAGES, out, EINVAL);
    REFUSES(fd, TO_SYSTEM, at, PAGES, out, EINVAL);
    /* Already there, and the table was emptied: not entered anew. */
    DOES(fd, TO_DEVICE, at, (size_t)64, out, 0);
    DOES(fd, TO_DEVICE, at, (size_t)64, out, 0);
    EQUAL(mprotect(at, 64 * PAGE, PROT_READ), 0);
    EQUAL(mprotect(at, 64 * PAGE, PROT_READ | PROT_WRITE), 0);
    REFUSES(fd, TO_DEVICE, at, 64, out, ENOENT);
    DOES(fd, READ, at, (size_t)64, out, 1);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void two_devices(int fd, int other)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    struct command done;
    fill(at, PAGES, 6);
    DOES(other, READ, at, (size_t)PAGES, out, 1);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    EQUAL(snapshot(other, at), setting.coherent ? P_COHERENT_REMOTE | P_WRITE : P_NONE);
    /* Pages of another device do not go to this one, and not home by it. */
    REFUSES(other, TO_DEVICE, at, PAGES, out, ENOENT);
    EQUAL(ask(other, TO_SYSTEM, at, PAGES, NULL, &done), 0);
    EQUAL(done.cpages, 0);
    count(fd, at, PAGES, local(P_WRITE), PAGES);
    /* It reads them, which brings private ones home. */
    DOES(other, READ, at, (size_t)PAGES, out, 1);
    holds(out, PAGES, 6);
    count(fd, at, PAGES, local(P_WRITE), setting.coherent ? PAGES : 0);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void release(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    struct command done;
    fill(at, PAGES, 7);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    EQUAL(ask(fd, RELEASE, at, PAGES, NULL, &done), 0);
    EQUAL(done.cpages, 0);
    count(fd, at, PAGES, local(P_WRITE), 0);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    holds(out, PAGES, 7);
    /* And it takes pages again. */
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    count(fd, at, PAGES, local(P_WRITE), PAGES);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void the_last_close_brings_pages_home(int other)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    int fd = open_device(setting.first), copy = dup(fd);
    fill(at, PAGES, 8);
    EXPECT(copy > fd);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    EQUAL(close(fd), 0);
    count(copy, at, PAGES, local(P_WRITE), PAGES);
    DOES(copy, READ, at, (size_t)PAGES, out, 0);
    /* Onto a descriptor that is the device's last. */
    EXPECT(dup2(0, copy) == copy);
    count(other, at, PAGES, P_WRITE, PAGES);
    holds(at, PAGES, 8);
    EXPECT(ioctl(copy, REQUEST(READ), NULL) < 0 && errno != EFAULT);
    close(copy);
    munmap(at, PAGES * PAGE);
    free(out);
}

/* A coherent device has one chunk of 256 MiB. */
static void what_does_not_fit_stays(int fd)
{
    size_t fits = ((size_t)256 << 20) / PAGE, pages = fits + 100;
    unsigned char *at = memory(&setting, pages), *out = malloc(pages * PAGE), *states = malloc(pages);
    for (size_t i = 0; i < pages; i++) {
        at[i * PAGE] = byte(i, 9);
    }
    REFUSES(fd, TO_DEVICE, at, pages, out, ENOENT);
    DOES(fd, SNAPSHOT, at, pages, states, 0);
    size_t there = 0;
    for (size_t i = 0; i < pages; i++) {
        there += (states[i] & ~P_WRITE) == P_COHERENT_LOCAL;
    }
    EQUAL(there, fits);
    DOES(fd, READ, at, pages, out, 1);
    for (size_t i = 0; i < pages; i++) {
        EQUAL(out[i * PAGE], byte(i, 9));
        EQUAL(at[i * PAGE], byte(i, 9));
    }
    munmap(at, pages * PAGE);
    free(out);
    free(states);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    int fd = open_device(setting.first), other = open_device(setting.second);
    out_and_home(fd);
    a_touch_brings_one_page_home(fd);
    holes_get_device_pages(fd);
    read_only_memory_migrates(fd);
    what_does_not_migrate(fd);
    two_devices(fd, other);
    release(fd);
    if (setting.coherent) {
        what_does_not_fit_stays(fd);
    }
    EQUAL(close(fd), 0);
    the_last_close_brings_pages_home(other);
    return end();
}
