// Bad pointers, addresses and descriptors given to functions that hetmem stands in front of. Each gets the answer that the kernel gives, and the program
// goes on.
//
// Usage: bad_pointers

#include "field.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif

static void told(const char *what, long result) {
    print("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "done");
}

#define TELL(call) told(#call, (long)(call))

static void *low, *unreadable, *read_only, *end_of_mapping, *unmapped;

static void prepare(void) {
    low = (void *)(uintptr_t)0x10;
    unreadable = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // Where nobody who doesn't ask for it gets a mapping.
    unsigned char *three = mmap((void *)(uintptr_t)0x10000000, 3 * PAGE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(unreadable != MAP_FAILED && read_only != MAP_FAILED && three != MAP_FAILED);
    memset(three, 1, 3 * PAGE);
    CHECK(munmap(three + PAGE, 2 * PAGE) == 0);
    end_of_mapping = three + PAGE - 8;
    unmapped = three + PAGE;
}

static void splices(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    int out = ends[1], in = ends[0];
    struct iovec bad = {low, 4096}, none = {unreadable, 4096}, far = {unmapped, 4096}, good = {field, 4096};
    TELL(vmsplice(out, low, 1, 0));
    TELL(vmsplice(out, unreadable, 1, 0));
    TELL(vmsplice(out, end_of_mapping, 1, 0));
    TELL(vmsplice(out, &bad, 1, 0));
    TELL(vmsplice(out, &none, 1, SPLICE_F_GIFT));
    TELL(vmsplice(out, &far, 1, 0));
    TELL(vmsplice(out, &good, SIZE_MAX, 0));
    TELL(vmsplice(out, &good, 2000, 0));
    TELL(vmsplice(out, &good, 1, ~0u));
    TELL(vmsplice(-1, &good, 1, 0));
    TELL(vmsplice(-1, low, 1, 0));
    TELL(vmsplice(in, low, 1, 0));
    TELL(vmsplice(out, low, 0, 0));
    CHECK(close(in) == 0 && close(out) == 0);
}

static void sends_by(int s, int flags) {
    struct iovec bad = {low, 4096}, none = {unreadable, 4096}, good = {field, 64};
    struct msghdr bad_vector = {.msg_iov = low, .msg_iovlen = 1}, bad_bytes = {.msg_iov = &bad, .msg_iovlen = 1},
                  no_bytes = {.msg_iov = &none, .msg_iovlen = 1}, many = {.msg_iov = &good, .msg_iovlen = SIZE_MAX},
                  bad_name = {.msg_name = low, .msg_namelen = 16, .msg_iov = &good, .msg_iovlen = 1},
                  bad_control = {.msg_iov = &good, .msg_iovlen = 1, .msg_control = low, .msg_controllen = 64};
    TELL(send(s, low, 4096, flags));
    TELL(send(s, unreadable, 4096, flags));
    TELL(send(s, unmapped, 4096, flags));
    TELL(sendto(s, low, 4096, flags, NULL, 0));
    TELL(sendto(s, unreadable, 4096, flags, NULL, 0));
    TELL(sendto(s, field, 64, flags, low, 16));
    TELL(sendmsg(s, low, flags));
    TELL(sendmsg(s, unreadable, flags));
    TELL(sendmsg(s, end_of_mapping, flags));
    TELL(sendmsg(s, &bad_vector, flags));
    TELL(sendmsg(s, &bad_bytes, flags));
    TELL(sendmsg(s, &no_bytes, flags));
    TELL(sendmsg(s, &many, flags));
    TELL(sendmsg(s, &bad_name, flags));
    TELL(sendmsg(s, &bad_control, flags));
    struct mmsghdr bad_message = {.msg_hdr = bad_vector};
    TELL(sendmmsg(s, low, 1, flags));
    TELL(sendmmsg(s, unreadable, 1, flags));
    TELL(sendmmsg(s, end_of_mapping, 1, flags));
    TELL(sendmmsg(s, &bad_message, 1, flags));
    TELL(sendmmsg(s, low, 0, flags));
    TELL(sendmmsg(-1, low, 1, flags));
    TELL(send(-1, low, 4096, flags));
    TELL(sendmsg(-1, low, flags));
}

static void sends(void) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    sends_by(pair[0], MSG_ZEROCOPY | MSG_DONTWAIT);
    // A connection within this machine, which does send by reference.
    int listener = socket(AF_INET, SOCK_STREAM, 0), sender = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 1) == 0 &&
        getsockname(listener, (void *)&address, &length) == 0 && connect(sender, (void *)&address, sizeof address) == 0 &&
        setsockopt(sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0) {
        sends_by(sender, MSG_ZEROCOPY | MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    CHECK(close(listener) == 0 && close(sender) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
}

static void controls_by(int fd) {
    TELL(ioctl(fd, UFFDIO_API, low));
    TELL(ioctl(fd, UFFDIO_REGISTER, low));
    TELL(ioctl(fd, UFFDIO_REGISTER, unreadable));
    TELL(ioctl(fd, UFFDIO_REGISTER, end_of_mapping));
    TELL(ioctl(fd, UFFDIO_REGISTER, unmapped));
    TELL(ioctl(fd, UFFDIO_REGISTER, NULL));
    TELL(ioctl(fd, UFFDIO_UNREGISTER, low));
    TELL(ioctl(fd, UFFDIO_WAKE, unreadable));
    TELL(ioctl(fd, UFFDIO_COPY, low));
    TELL(ioctl(fd, UFFDIO_ZEROPAGE, unmapped));
    TELL(ioctl(fd, UFFDIO_WRITEPROTECT, low));
    TELL(ioctl(fd, _IOWR(UFFDIO, 0x05, uint64_t[5]), low));
}

static void controls(void) {
    int ends[2], waiting;
    CHECK(pipe(ends) == 0);
    controls_by(ends[0]);
    controls_by(-1);
    TELL(ioctl(ends[0], FIONREAD, low));
    TELL(ioctl(ends[0], FIONREAD, read_only));
    TELL(ioctl(ends[0], FIONREAD, &waiting));
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return;
    }
    struct uffdio_api api = {.api = UFFD_API};
    CHECK(ioctl(fd, UFFDIO_API, &api) == 0);
    controls_by(fd);
    struct uffdio_register ranges[] = {
        {.range = {(uintptr_t)field + 1, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING},
        {.range = {(uintptr_t)field, PAGE + 1}, .mode = UFFDIO_REGISTER_MODE_MISSING},
        {.range = {(uintptr_t)field, 0}, .mode = UFFDIO_REGISTER_MODE_MISSING},
        {.range = {(uintptr_t)unmapped, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING},
        {.range = {(uintptr_t)field, PAGE}, .mode = 0},
        {.range = {(uintptr_t)field, PAGE}, .mode = (uint64_t)1 << 40},
        {.range = {UINT64_MAX - PAGE + 1, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING},
        {.range = {(uintptr_t)field, UINT64_MAX - PAGE + 1}, .mode = UFFDIO_REGISTER_MODE_MISSING},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        TELL(ioctl(fd, UFFDIO_REGISTER, &ranges[i]));
    }
    CHECK(close(fd) == 0);
}

static void mappings(void) {
    unsigned char *at = field, states[8];
    TELL(madvise(at + 1, PAGE, MADV_DONTNEED));
    TELL(madvise(unmapped, PAGE, MADV_DONTNEED));
    TELL(madvise(at, SIZE_MAX, MADV_DONTNEED));
    TELL(madvise(at, PAGE, 12345));
    TELL(madvise(at, 0, MADV_DONTNEED));
    TELL(madvise(unmapped, 0, MADV_DONTNEED));
    TELL(madvise(read_only, PAGE, MADV_DONTNEED));
    TELL(madvise(low, PAGE, MADV_DONTNEED));
    TELL((intptr_t)mremap(unmapped, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    TELL((intptr_t)mremap(at + 1, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    TELL((intptr_t)mremap(at, PAGE, 0, MREMAP_MAYMOVE));
    TELL((intptr_t)mremap(at, PAGE, PAGE, MREMAP_FIXED, read_only));
    TELL((intptr_t)mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 1));
    TELL((intptr_t)mremap(at, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + PAGE));
    TELL((intptr_t)mremap(at, PAGE, PAGE, 1 << 20));
    TELL((intptr_t)mremap(at, FIELD_PAGES * PAGE, SIZE_MAX / 2, MREMAP_MAYMOVE));
    TELL((intptr_t)mremap(low, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, read_only));
    TELL(mincore(at + 1, PAGE, states));
    TELL(mincore(unmapped, PAGE, states));
    TELL(mincore(at, PAGE, low));
    TELL(mincore(at, PAGE, unreadable));
    TELL(mincore(at, PAGE, read_only));
    TELL(mincore(at, SIZE_MAX, states));
    TELL(mincore(at, 0, states));
    TELL(munmap(at + 1, PAGE));
    TELL(munmap(at, 0));
    TELL(mprotect(unmapped, PAGE, PROT_READ));
}

int main(void) {
    end_if_hung();
    prepare();
    use_field(100);
    for (int round = 0; round < 3; round++) {
        splices();
        sends();
        controls();
        mappings();
        use_field(20);
    }
    print("done\n");
    return 0;
}
