/* What every command begins with; READ and WRITE. */
#include "device.h"

enum { PAGES = 200 };

static struct setting setting;

static void every_command_begins_with_the_same_checks(int fd)
{
    unsigned char *at = memory(&setting, 4), *out = buffer(4);
    struct command sent = {(uintptr_t)at, (uintptr_t)out, 1, 77, 88}, command = sent;
    fill(at, 4, 1);
    for (int number = READ; number <= RELEASE + 1; number++) {
        EXPECT(ioctl(fd, REQUEST(number), (void *)8) == -1 && errno == EFAULT);
        EXPECT(ioctl(fd, REQUEST(number), NULL) == -1 && errno == EFAULT);
        REFUSES(fd, number, at + 1, 1, out, EINVAL);
        REFUSES(fd, number, at, 0, out, EINVAL);
        REFUSES(fd, number, at, ~(size_t)0, out, EINVAL);
        REFUSES(fd, number, (void *)~(uintptr_t)(PAGE - 1), 1, out, EINVAL);
    }
    /* The number of pages is multiplied in 64 bits. */
    REFUSES(fd, READ, at, (size_t)1 << 52, out, EINVAL);
    DOES(fd, READ, at, (size_t)1, out, 1);
    struct command wrapped = {(uintptr_t)at, (uintptr_t)out, ((uint64_t)1 << 52) + 2, 0, 0};
    EQUAL(ioctl(fd, REQUEST(READ), &wrapped), 0);
    EQUAL(wrapped.cpages, 2);
    /* No such command. Of the request only 32 bits count. */
    EXPECT(ioctl(fd, REQUEST(RELEASE + 1), &command) == -1 && errno == EINVAL);
    EXPECT(ioctl(fd, _IO('H', READ), &command) == -1 && errno == EINVAL);
    EXPECT(ioctl(fd, _IOWR('G', READ, struct command), &command) == -1 && errno == EINVAL);
    EXPECT(memcmp(&command, &sent, sizeof sent) == 0);
    EQUAL(ioctl(fd, REQUEST(READ) | (unsigned long)1 << 40, &command), 0);
    EQUAL(command.cpages, 1);
    EQUAL(command.faults, 0);
    /* Nothing is written back after an error. */
    command = sent;
    command.addr = 0;
    EXPECT(ioctl(fd, REQUEST(READ), &command) == -1 && errno == EFAULT);
    EQUAL(command.cpages, 77);
    EQUAL(command.faults, 88);
    /* A struct that can be read and not written. */
    struct command *fixed = (void *)map(1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    *fixed = sent;
    EQUAL(mprotect(fixed, PAGE, PROT_READ), 0);
    EXPECT(ioctl(fd, REQUEST(READ), fixed) == -1 && errno == EFAULT);
    munmap(fixed, PAGE);
    /* At the very end of a mapping, and across it. */
    unsigned char *edge = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    munmap(edge + PAGE, PAGE);
    memcpy(edge + PAGE - sizeof sent, &sent, sizeof sent);
    EQUAL(ioctl(fd, REQUEST(READ), edge + PAGE - sizeof sent), 0);
    EXPECT(ioctl(fd, REQUEST(READ), edge + PAGE - sizeof sent + 8) == -1 && errno == EFAULT);
    munmap(edge, PAGE);
    munmap(at, 4 * PAGE);
    free(out);
}

static void requests_of_every_file_are_answered(int fd)
{
    EQUAL(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
    EQUAL(ioctl(fd, FIOCLEX), 0);
    EXPECT(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    EQUAL(ioctl(fd, FIONCLEX), 0);
    EQUAL(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
}

static void reads(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    fill(at, PAGES, 2);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    holds(out, PAGES, 2);
    /* What the table has needs no fault; what it has not, one for all that is left. */
    DOES(fd, READ, at, (size_t)PAGES, out, 0);
    EQUAL(mprotect(at + 10 * PAGE, PAGE, PROT_READ), 0);
    EQUAL(mprotect(at + 100 * PAGE, PAGE, PROT_READ), 0);
    memset(out, 0, PAGES * PAGE);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    holds(out, PAGES, 2);
    /* The program's writes are seen. */
    at[50 * PAGE + 3] ^= 0xFF;
    DOES(fd, READ, at, (size_t)PAGES, out, 0);
    EQUAL(out[50 * PAGE + 3], at[50 * PAGE + 3]);
    munmap(at, PAGES * PAGE);
    /* Holes read as zeros. */
    at = memory(&setting, PAGES);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    for (size_t i = 0; i < PAGES * PAGE; i++) {
        EQUAL(out[i], 0);
    }
    munmap(at, PAGES * PAGE);
    free(out);
}

static void writes(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *in = buffer(PAGES), *out = buffer(PAGES);
    fill(in, PAGES, 3);
    DOES(fd, WRITE, at, (size_t)PAGES, in, 1);
    holds(at, PAGES, 3);
    DOES(fd, WRITE, at, (size_t)PAGES, in, 0);
    DOES(fd, READ, at, (size_t)PAGES, out, 0);
    holds(out, PAGES, 3);
    /* An entry for reading does not allow it: those of zero pages. */
    munmap(at, PAGES * PAGE);
    at = memory(&setting, PAGES);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    DOES(fd, WRITE, at, (size_t)PAGES, in, 1);
    holds(at, PAGES, 3);
    munmap(at, PAGES * PAGE);
    free(in);
    free(out);
}

static void device_pages_are_read_and_written_where_they_are(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *in = buffer(PAGES), *out = buffer(PAGES), states[PAGES];
    fill(at, PAGES, 4);
    fill(in, PAGES, 5);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    DOES(fd, WRITE, at, (size_t)PAGES, in, 0);
    DOES(fd, READ, at, (size_t)PAGES, out, 0);
    holds(out, PAGES, 5);
    DOES(fd, SNAPSHOT, at, (size_t)PAGES, states, 0);
    for (size_t i = 0; i < PAGES; i++) {
        EQUAL(states[i], P_WRITE | (setting.coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL));
    }
    holds(at, PAGES, 5);
    munmap(at, PAGES * PAGE);
    free(in);
    free(out);
}

static void refusals(int fd)
{
    unsigned char *at = memory(&setting, PAGES), *in = buffer(PAGES), *out = buffer(PAGES);
    fill(in, PAGES, 6);
    fill(at, PAGES, 7);
    /* A protected page in the third batch: what comes before is written, and in the table. */
    EQUAL(mprotect(at + 150 * PAGE, PAGE, PROT_READ), 0);
    REFUSES(fd, WRITE, at, PAGES, in, EPERM);
    DOES(fd, WRITE, at, (size_t)128, in, 0);
    holds(at, 128, 6);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    REFUSES(fd, WRITE, at + 150 * PAGE, 1, in, EPERM);
    /* One that can't be read. */
    EQUAL(mprotect(at + 150 * PAGE, PAGE, PROT_NONE), 0);
    memset(out, 0xA5, PAGES * PAGE);
    REFUSES(fd, READ, at, PAGES, out, EFAULT);
    EQUAL(out[0], 0xA5);
    REFUSES(fd, WRITE, at, PAGES, in, EFAULT);
    /* A gap. */
    EQUAL(munmap(at + 150 * PAGE, PAGE), 0);
    REFUSES(fd, READ, at, PAGES, out, EFAULT);
    REFUSES(fd, WRITE, at, PAGES, in, EFAULT);
    DOES(fd, READ, at, (size_t)150, out, 0);
    REFUSES(fd, READ, (void *)(16 * PAGE), 1, out, EFAULT);
    REFUSES(fd, READ, (void *)((uintptr_t)1 << 60), 1, out, EFAULT);
    /* Buffers that can't be used; nothing else is wrong. */
    REFUSES(fd, READ, at, 100, (void *)8, EFAULT);
    REFUSES(fd, WRITE, at, 100, (void *)8, EFAULT);
    REFUSES(fd, READ, at, 4, (void *)((uintptr_t)-PAGE), EFAULT);
    /* More than the machine has. */
    REFUSES(fd, READ, at, (size_t)1 << 34, out, ENOMEM);
    REFUSES(fd, WRITE, at, (size_t)1 << 34, in, ENOMEM);
    munmap(at, PAGES * PAGE);
    free(in);
    free(out);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    int fd = open_device(setting.first);
    every_command_begins_with_the_same_checks(fd);
    requests_of_every_file_are_answered(fd);
    reads(fd);
    writes(fd);
    device_pages_are_read_and_written_where_they_are(fd);
    refusals(fd);
    return end();
}
