/* Opening and closing, memory of the device, and files' memory. */
#include "device.h"

enum { PAGES = 80 };

static struct setting setting;

int openat64(int, const char *, int, ...);

static void every_way_to_open(void)
{
    char path[32];
    snprintf(path, sizeof path, "/dev/hmm_dmirror%d", setting.first);
    unsigned char *at = memory(&setting, 1), *out = buffer(1);
    fill(at, 1, 1);
    int ways[] = {open(path, O_RDONLY), open(path, O_RDWR | O_CREAT, 0600), open64(path, O_RDWR), openat(AT_FDCWD, path, O_RDWR),
                  openat64(AT_FDCWD, path, O_WRONLY)};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        EXPECT(ways[i] >= 0);
        EQUAL(fcntl(ways[i], F_GETFD), 0);
        DOES(ways[i], READ, at, (size_t)1, out, 1);
        EQUAL(close(ways[i]), 0);
        EXPECT(ioctl(ways[i], REQUEST(READ), NULL) == -1 && errno == EBADF);
    }
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EXPECT(fcntl(fd, F_GETFL) & O_NONBLOCK);
    close(fd);
    EXPECT(open(path, O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
    EXPECT(open(path, O_RDONLY | O_DIRECTORY) == -1 && errno == ENOTDIR);
    /* Other paths are others'. */
    EXPECT(open("/dev/hmm_dmirror4", O_RDWR) == -1 && errno == ENOENT);
    EXPECT(open("/dev/hmm_dmirror", O_RDWR) == -1 && errno == ENOENT);
    EXPECT(open("/dev/hmm_dmirror00", O_RDWR) == -1 && errno == ENOENT);
    EXPECT(open((char *)8, O_RDWR) == -1 && errno == EFAULT);
    /* A path that ends where memory does. */
    char *edge = (char *)map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    munmap(edge + PAGE, PAGE);
    char *last = edge + PAGE - strlen(path) - 1;
    memcpy(last, path, strlen(path) + 1);
    fd = open(last, O_RDWR);
    EXPECT(fd >= 0);
    close(fd);
    last = edge + PAGE - 2;
    memcpy(last, "/", 2);
    fd = open(last, O_RDONLY);
    EXPECT(fd >= 0);
    EXPECT(ioctl(fd, REQUEST(READ), NULL) == -1 && errno != EFAULT);
    close(fd);
    munmap(edge, PAGE);
    munmap(at, PAGE);
    free(out);
}

static void an_open_file_lasts_as_long_as_its_last_descriptor(void)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES), state;
    int fd = open_device(setting.first), second = open_device(setting.second);
    fill(at, PAGES, 2);
    int copies[] = {dup(fd), fcntl(fd, F_DUPFD, 100), fcntl(fd, F_DUPFD_CLOEXEC, 200), dup3(fd, 300, O_CLOEXEC)};
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    EQUAL(close(fd), 0);
    for (size_t i = 0; i < 4; i++) {
        DOES(copies[i], READ, at, (size_t)PAGES, out, 0);
        if (i < 3) {
            EQUAL(close(copies[i]), 0);
        }
    }
    EQUAL(close_range(290, 310, 0), 0);
    DOES(second, SNAPSHOT, at, (size_t)1, &state, 0);
    EQUAL(state, P_WRITE);
    /* Two opens are two tables. */
    fd = open_device(setting.first);
    int other = open_device(setting.first);
    DOES(fd, READ, at, (size_t)PAGES, out, 1);
    DOES(other, READ, at, (size_t)PAGES, out, 1);
    DOES(fd, READ, at, (size_t)PAGES, out, 0);
    /* The device's pages are the device's: the close of either brings them home. */
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    EQUAL(close(other), 0);
    DOES(fd, SNAPSHOT, at, (size_t)1, &state, 0);
    EQUAL(state, P_WRITE);
    holds(at, PAGES, 2);
    EQUAL(close(fd), 0);
    EQUAL(close(second), 0);
    munmap(at, PAGES * PAGE);
    free(out);
}

static void memory_of_the_device(int fd)
{
    unsigned char *out = buffer(PAGES), states[PAGES];
    unsigned char *shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    unsigned char *own = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    /* Zeroed, and all there; each mapping has its own. */
    DOES(fd, SNAPSHOT, shared, (size_t)PAGES, states, 0);
    for (size_t i = 0; i < PAGES; i++) {
        EQUAL(states[i], P_WRITE);
    }
    DOES(fd, SNAPSHOT, own, (size_t)PAGES, states, 0);
    for (size_t i = 0; i < PAGES; i++) {
        EQUAL(states[i], P_READ);
    }
    for (size_t i = 0; i < PAGES * PAGE; i++) {
        EXPECT(shared[i] == 0 && own[i] == 0);
    }
    fill(shared, PAGES, 3);
    EQUAL(own[5], 0);
    own[0] = 1;
    DOES(fd, SNAPSHOT, own, (size_t)1, states, 0);
    EQUAL(states[0], P_WRITE);
    DOES(fd, READ, shared, (size_t)PAGES, out, 1);
    holds(out, PAGES, 3);
    /* It is none that migrates, nor to be held exclusively. */
    REFUSES(fd, TO_DEVICE, shared, PAGES, out, EINVAL);
    REFUSES(fd, TO_SYSTEM, own, PAGES, out, EINVAL);
    REFUSES(fd, EXCLUSIVE, shared, PAGES, out, EBUSY);
    pid_t child = fork();
    if (child == 0) {
        holds(shared, PAGES, 3);
        fill(shared, PAGES, 4);
        EXPECT(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
        _exit(0);
    }
    child_is_well(child);
    holds(shared, PAGES, 4);
    munmap(shared, PAGES * PAGE);
    munmap(own, PAGES * PAGE);
    /* Any size and offset; at a fixed place. */
    unsigned char *place = map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(place, 4, 5);
    EXPECT(mmap(place + PAGE, 5000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 1 << 20) == place + PAGE);
    EXPECT(place[PAGE] == 0 && place[3 * PAGE - 1] == 0 && place[3 * PAGE] == byte(3 * PAGE, 5));
    munmap(place, 4 * PAGE);
    EXPECT(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
    free(out);
}

static void memory_of_files(int fd)
{
    unsigned char *out = buffer(PAGES), states[PAGES], *in = buffer(PAGES);
    char name[] = "/tmp/hmm_dmirror_test_XXXXXX";
    int file = mkstemp(name);
    EXPECT(file >= 0);
    unlink(name);
    fill(in, PAGES, 6);
    EQUAL(write(file, in, PAGES * PAGE), PAGES * PAGE);
    unsigned char *own = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file);
    DOES(fd, READ, own, (size_t)PAGES, out, 1);
    holds(out, PAGES, 6);
    REFUSES(fd, TO_DEVICE, own + PAGE, 0, out, EINVAL);
    /* The table has them from the READ. */
    DOES(fd, TO_DEVICE, own, (size_t)PAGES, out, 0);
    DOES(fd, SNAPSHOT, own, (size_t)PAGES, states, 0);
    EQUAL(states[0], P_READ);
    /* A write by the device copies, as the program's does; the file keeps what it has. */
    fill(in, PAGES, 7);
    DOES(fd, WRITE, own, (size_t)PAGES, in, 1);
    holds(own, PAGES, 7);
    DOES(fd, SNAPSHOT, own, (size_t)PAGES, states, 0);
    EQUAL(states[0], P_WRITE);
    EQUAL(pread(file, out, PAGES * PAGE, 0), PAGES * PAGE);
    holds(out, PAGES, 6);
    munmap(own, PAGES * PAGE);
    unsigned char *shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, file);
    REFUSES(fd, TO_DEVICE, shared, PAGES, out, ENOENT);
    DOES(fd, WRITE, shared, (size_t)PAGES, in, 1);
    EQUAL(pread(file, out, PAGES * PAGE, 0), PAGES * PAGE);
    holds(out, PAGES, 7);
    /* Beyond the file's end a touch is SIGBUS, to the device an error. */
    EQUAL(ftruncate(file, PAGE), 0);
    REFUSES(fd, READ, shared, PAGES, out, EFAULT);
    DOES(fd, READ, shared, (size_t)1, out, 0);
    munmap(shared, PAGES * PAGE);
    close(file);
    free(in);
    free(out);
}

/* Memory beside a file's is memory like any other. */
static void memory_beside_a_file(int fd)
{
    unsigned char *out = buffer(PAGES);
    int file = memfd_create("beside", 0);
    EQUAL(ftruncate(file, PAGE), 0);
    unsigned char *at = map(PAGES + 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    EXPECT(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == at);
    EXPECT(mmap(at + (PAGES + 1) * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == at + (PAGES + 1) * PAGE);
    EQUAL(mprotect(at + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE), 0);
    fill(at + PAGE, PAGES, 8);
    DOES(fd, TO_DEVICE, at + PAGE, (size_t)PAGES, out, 0);
    holds(out, PAGES, 8);
    /* With the file's it does not, as that has no page of its own. */
    EXPECT(*(volatile unsigned char *)at == 0);
    REFUSES(fd, TO_DEVICE, at, PAGES + 1, out, ENOENT);
    holds(at + PAGE, PAGES, 8);
    munmap(at, (PAGES + 2) * PAGE);
    close(file);
    free(out);
}

/* Variables of the program. */
static unsigned char variables[64 * 4096] __attribute__((aligned(4096)));

static void variables_migrate(int fd)
{
    unsigned char *out = buffer(64), states[64];
    fill(variables, 64, 9);
    DOES(fd, TO_DEVICE, variables, (size_t)64, out, 0);
    holds(out, 64, 9);
    DOES(fd, SNAPSHOT, variables, (size_t)64, states, 0);
    EQUAL(states[63], P_WRITE | (setting.coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL));
    holds(variables, 64, 9);
    EQUAL(ask(fd, TO_SYSTEM, variables, 64, NULL, NULL), 0);
    free(out);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    every_way_to_open();
    an_open_file_lasts_as_long_as_its_last_descriptor();
    int fd = open_device(setting.first);
    memory_of_the_device(fd);
    memory_of_files(fd);
    memory_beside_a_file(fd);
    variables_migrate(fd);
    return end();
}
