/*
 * Manages memory that the program mapped itself: a matrix, whose even rows go to a coherent device and whose odd rows to a private one. Both are
 * used meanwhile; prints what became of each row's pages.
 *
 *     cc adopted.c $(pkg-config --cflags --libs hetmem) -o adopted
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise */
#include <hetmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { ROWS = 8, PAGES_OF_ROW = 64, COHERENT = 0, PRIVATE = 1 };

#define ROW_BYTES (PAGES_OF_ROW * HETMEM_PAGE_SIZE)
#define COLUMNS (ROW_BYTES / sizeof(double))

/* Ends the program if a call was refused. */
static void check(hetmem_error *error)
{
    if (error != NULL) {
        fprintf(stderr, "adopted: %s\n", hetmem_error_message(error));
        hetmem_error_free(error);
        exit(1);
    }
}

static hetmem_runtime *start(void)
{
    hetmem_config *config;
    hetmem_runtime *runtime;
    check(hetmem_config_new(&config));
    check(hetmem_config_add_device(config, "coherent:emulated,size=16M,name=near"));
    check(hetmem_config_add_device(config, "private:emulated,size=16M,name=far"));
    check(hetmem_runtime_new(config, &runtime));
    hetmem_config_free(config);
    return runtime;
}

static void print_devices(const hetmem_runtime *runtime)
{
    for (size_t i = 0; i < hetmem_device_count(runtime); i++) {
        hetmem_device_info info;
        hetmem_device_statistics counted;
        check(hetmem_device_get(runtime, (uint32_t)i, &info));
        check(hetmem_device_statistics_get(runtime, (uint32_t)i, &counted, sizeof counted));
        printf("%-4s %-8s %llu of %llu KiB used\n", info.name,
               info.memory_type == HETMEM_DEVICE_COHERENT ? "coherent" : "private",
               (unsigned long long)counted.used_bytes / 1024, (unsigned long long)info.capacity_bytes / 1024);
    }
}

/* Sends every other row, from `first` on, to a device. */
static void send_rows(hetmem_runtime *runtime, double *matrix, size_t first, uint32_t device)
{
    hetmem_range ranges[ROWS / 2];
    hetmem_outcome outcomes[ROWS / 2 * PAGES_OF_ROW];
    hetmem_request request = {HETMEM_DEVICE(device), HETMEM_SELECT_ALL, 0};
    for (size_t i = 0; i < ROWS / 2; i++) {
        ranges[i].address = matrix + (first + 2 * i) * COLUMNS;
        ranges[i].length = ROW_BYTES;
    }
    check(hetmem_migrate_all(runtime, ranges, ROWS / 2, &request, outcomes, ROWS / 2 * PAGES_OF_ROW, NULL));
    for (size_t i = 0; i < ROWS / 2; i++) {
        size_t counts[256] = {0};
        for (size_t page = 0; page < PAGES_OF_ROW; page++) {
            counts[outcomes[i * PAGES_OF_ROW + page]]++;
        }
        printf("row %zu to device %u:", first + 2 * i, (unsigned)device);
        for (size_t outcome = 0; outcome < 256; outcome++) {
            if (counts[outcome] > 0) {
                printf(" %zu %s", counts[outcome], hetmem_outcome_label((hetmem_outcome)outcome));
            }
        }
        printf("\n");
    }
}

int main(void)
{
    size_t length = ROWS * ROW_BYTES;
    double *matrix = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (matrix == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    /* The last quarter of each row stays unwritten: those pages are holes. Huge pages would fill them. */
    madvise(matrix, length, MADV_NOHUGEPAGE);
    for (size_t row = 0; row < ROWS; row++) {
        for (size_t column = 0; column < COLUMNS / 4 * 3; column++) {
            matrix[row * COLUMNS + column] = (double)(row + column);
        }
    }
    hetmem_runtime *runtime = start();
    check(hetmem_adopt(runtime, matrix, length, HETMEM_FAULT_THREAD));
    /* Row 0 stays where it is. */
    check(hetmem_advise(runtime, matrix, ROW_BYTES, HETMEM_ADVICE_PIN, HETMEM_SYSTEM));

    send_rows(runtime, matrix, 0, COHERENT);
    send_rows(runtime, matrix, 1, PRIVATE);
    print_devices(runtime);

    double sum = 0;
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        sum += matrix[i];
    }
    printf("the sum is %.0f\n", sum);
    print_devices(runtime);

    /* Everything comes home; the memory is the program's alone again. */
    check(hetmem_release(runtime, matrix, length));
    hetmem_runtime_free(runtime);
    printf("the first of the last row is %.0f\n", matrix[(ROWS - 1) * COLUMNS]);
    munmap(matrix, length);
    return 0;
}
