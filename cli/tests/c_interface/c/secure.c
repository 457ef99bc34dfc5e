/* How many threads it has, and whether it was started with more privilege than its user has. */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <dirent.h>
#include <sys/auxv.h>

int main(void)
{
    int threads = 0;
    DIR *tasks = opendir("/proc/self/task");
    EXPECT(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        threads += task->d_name[0] != '.';
    }
    /* So that the library is needed. */
    EXPECT(hetmem_version() != 0);
    printf("%lu %d\n", getauxval(AT_SECURE), threads);
    return 0;
}
