/* Copy on write after a fork: what a parent writes while its child shares it is the system's, and what nobody shares any more stays on the device. */
#include "device.h"

enum { PAGES = 64 };

static struct setting setting;

static void shown(int fd, unsigned char *at, size_t from, size_t to, unsigned char as)
{
    unsigned char *out = buffer(1);
    DOES(fd, SNAPSHOT, at, (size_t)PAGES, out, 0);
    for (size_t i = from; i < to; i++) {
        EQUAL(out[i], as);
    }
    free(out);
}

/* A child that waits until it is told, and then finds what was there when it was forked. */
static pid_t waiting_child(const unsigned char *at, int *tell)
{
    int ends[2];
    EQUAL(pipe(ends), 0);
    pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) {
        char go;
        alarm(60);
        close(ends[1]);
        EQUAL(read(ends[0], &go, 1), 0);
        holds(at, PAGES, 1);
        _exit(0);
    }
    close(ends[0]);
    *tell = ends[1];
    return child;
}

static void what_is_written_while_it_is_shared_is_the_systems(int fd, unsigned char on_device)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    int tell;
    fill(at, PAGES, 1);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES, out, 0);
    shown(fd, at, 0, PAGES, P_WRITE | (setting.coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL));
    pid_t child = waiting_child(at, &tell);
    shown(fd, at, 0, PAGES, on_device);
    for (size_t i = 0; i < PAGES / 2; i++) {
        at[i * PAGE] = (unsigned char)~at[i * PAGE];
    }
    shown(fd, at, 0, PAGES / 2, P_WRITE);
    shown(fd, at, PAGES / 2, PAGES, on_device);
    close(tell);
    child_is_well(child);
    /* Nobody shares the rest any more: a write makes no copy. */
    for (size_t i = 0; i < PAGES; i++) {
        at[i * PAGE] = byte(i * PAGE, 1);
    }
    shown(fd, at, 0, PAGES / 2, P_WRITE);
    shown(fd, at, PAGES / 2, PAGES, on_device);
    holds(at, PAGES, 1);
    /* And what was copied goes there again. */
    DOES(fd, TO_DEVICE, at, (size_t)PAGES / 2, out, 0);
    holds(at, PAGES, 1);
    munmap(at, PAGES * PAGE);
    free(out);
}

/* A migration in between does not make the device forget what is shared. */
static void what_is_shared_is_known_after_a_migration(int fd, unsigned char on_device)
{
    unsigned char *at = memory(&setting, PAGES), *out = buffer(PAGES);
    int tell;
    fill(at, PAGES, 1);
    DOES(fd, TO_DEVICE, at, (size_t)PAGES / 2, out, 0);
    pid_t child = waiting_child(at, &tell);
    DOES(fd, TO_DEVICE, at + PAGES / 2 * PAGE, (size_t)PAGES / 2, out, 0);
    at[0] = (unsigned char)~at[0];
    shown(fd, at, 0, 1, P_WRITE);
    shown(fd, at, 1, PAGES / 2, on_device);
    close(tell);
    child_is_well(child);
    munmap(at, PAGES * PAGE);
    free(out);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    int fd = open_device(setting.first);
    /* Private pages come home before a fork. */
    unsigned char on_device = setting.coherent ? P_WRITE | P_COHERENT_LOCAL : P_WRITE;
    what_is_written_while_it_is_shared_is_the_systems(fd, on_device);
    what_is_shared_is_known_after_a_migration(fd, on_device);
    return end();
}
