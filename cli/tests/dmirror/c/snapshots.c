/* SNAPSHOT: each byte. Nothing is faulted in. */
#include "device.h"

static struct setting setting;

/* The pages have these bytes. */
static void shows(int fd, void *at, size_t pages, const int *wanted)
{
    unsigned char found[256];
    EXPECT(pages <= sizeof found);
    /* Twice: the first changes nothing. */
    for (int round = 0; round < 2; round++) {
        DOES(fd, SNAPSHOT, at, pages, found, 0);
        for (size_t i = 0; i < pages; i++) {
            if (found[i] != wanted[i]) {
                fprintf(stderr, "page %zu is %#x and not %#x\n", i, found[i], wanted[i]);
                _exit(1);
            }
        }
    }
}

static void pages_of_all_kinds(int fd, int other)
{
    int local = setting.coherent ? P_COHERENT_LOCAL : P_PRIVATE_LOCAL;
    unsigned char *at = memory(&setting, 8), *out = buffer(8);
    /* Small pages: what is shown of huge ones is below. */
    EQUAL(madvise(at, 8 * PAGE, MADV_NOHUGEPAGE), 0);
    EQUAL(munmap(at, PAGE), 0);
    EXPECT(*(volatile unsigned char *)(at + 2 * PAGE) == 0);
    fill(at + 3 * PAGE, 4, 1);
    EQUAL(mprotect(at + 3 * PAGE, PAGE, PROT_READ), 0);
    DOES(fd, TO_DEVICE, at + 5 * PAGE, (size_t)1, out, 0);
    DOES(other, TO_DEVICE, at + 6 * PAGE, (size_t)1, out, 0);
    EQUAL(mprotect(at + 7 * PAGE, PAGE, PROT_NONE), 0);
    int first[] = {P_ERROR, P_NONE, P_ZERO | P_READ, P_READ, P_WRITE, local | P_WRITE, P_NONE, P_ERROR};
    int second[] = {P_ERROR, P_NONE, P_ZERO | P_READ, P_READ, P_WRITE, P_NONE, local | P_WRITE, P_ERROR};
    if (setting.coherent) {
        first[6] = second[5] = P_COHERENT_REMOTE | P_WRITE;
    }
    shows(fd, at, 8, first);
    shows(other, at, 8, second);
    /* Protected on the device. */
    EQUAL(mprotect(at + 5 * PAGE, PAGE, PROT_READ), 0);
    first[5] = local | P_READ;
    shows(fd, at, 8, first);
    /* Exclusive pages are not there, to whoever asks. */
    DOES(fd, EXCLUSIVE, at + 4 * PAGE, (size_t)1, out, 0);
    first[4] = P_NONE;
    shows(fd, at, 8, first);
    EQUAL(at[4 * PAGE], byte(PAGE, 1));
    first[4] = P_WRITE;
    shows(fd, at, 8, first);
    munmap(at, 8 * PAGE);
    free(out);
}

static void files_and_shared_memory(int fd)
{
    int file = memfd_create("pages", 0);
    EQUAL(ftruncate(file, 2 * (off_t)PAGE), 0);
    unsigned char *shared = map(2, PROT_READ | PROT_WRITE, MAP_SHARED, file);
    unsigned char *own = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE, file);
    EXPECT(*(volatile unsigned char *)own == 0);
    own[PAGE] = 1;
    shared[0] = 1;
    shows(fd, shared, 2, (int[]){P_WRITE, P_NONE});
    shows(fd, own, 2, (int[]){P_READ, P_WRITE});
    munmap(shared, 2 * PAGE);
    munmap(own, 2 * PAGE);
    close(file);
}

static void huge_pages(int fd)
{
    size_t pages = HUGE_PAGE / PAGE;
    unsigned char *at = memory(&setting, pages), *states = malloc(pages), *out = buffer(64);
    fill(at, pages, 2);
    DOES(fd, SNAPSHOT, at, pages, states, 0);
    int huge = states[0] & P_PMD;
    if (huge == 0) {
        /* The kernel had none to give. */
        munmap(at, HUGE_PAGE);
        free(states);
        free(out);
        return;
    }
    for (size_t i = 0; i < pages; i++) {
        EQUAL(states[i], P_WRITE | P_PMD);
    }
    /* What migrates is divided. */
    DOES(fd, TO_DEVICE, at + 64 * PAGE, (size_t)64, out, 0);
    DOES(fd, SNAPSHOT, at, pages, states, 0);
    for (size_t i = 0; i < pages; i++) {
        int there = setting.coherent ? P_COHERENT_LOCAL | P_WRITE : P_PRIVATE_LOCAL | P_WRITE;
        EQUAL(states[i], i / 64 == 1 ? there : P_WRITE);
    }
    munmap(at, HUGE_PAGE);
    free(states);
    free(out);
}

static void where_the_bytes_go(int fd)
{
    unsigned char *at = memory(&setting, 100);
    unsigned char *out = map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(at, 100, 3);
    munmap(out + PAGE, PAGE);
    memset(out, 0xA5, PAGE);
    /* The second batch has no room: the first was written. */
    REFUSES(fd, SNAPSHOT, at, 100, out + PAGE - 64, EFAULT);
    EXPECT((out[PAGE - 1] & P_WRITE) && out[PAGE - 65] == 0xA5);
    REFUSES(fd, SNAPSHOT, at, 1, (void *)8, EFAULT);
    /* Beyond all memory. */
    DOES(fd, SNAPSHOT, (void *)((uintptr_t)1 << 60), (size_t)2, out, 0);
    EQUAL(out[0], P_ERROR);
    EQUAL(out[1], P_ERROR);
    munmap(at, 100 * PAGE);
    munmap(out, PAGE);
}

int main(int argc, char **argv)
{
    setting = begin(argc, argv);
    int fd = open_device(setting.first), other = open_device(setting.second);
    pages_of_all_kinds(fd, other);
    files_and_shared_memory(fd);
    if (setting.huge) {
        huge_pages(fd);
    }
    where_the_bytes_go(fd);
    return end();
}
