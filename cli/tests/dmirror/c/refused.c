/* The device can't be opened: program ERRNO */
#include "device.h"

int main(int argc, char **argv)
{
    EXPECT(argc == 2);
    EQUAL(open("/dev/hmm_dmirror0", O_RDWR), -1);
    EQUAL(errno, atoi(argv[1]));
    /* The rest of the program is none of its business. */
    int file = open("/dev/null", O_RDONLY);
    EXPECT(file >= 0);
    EXPECT(ioctl(file, REQUEST(READ), NULL) == -1 && errno == ENOTTY);
    EQUAL(close(file), 0);
    return end();
}
