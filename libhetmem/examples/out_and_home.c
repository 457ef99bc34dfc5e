/*
 * Maps memory, migrates it to a private device and touches it home again; prints where the pages are and what was counted.
 *
 *     cc out_and_home.c $(pkg-config --cflags --libs hetmem) -o out_and_home
 */
#include <hetmem.h>
#include <stdio.h>
#include <stdlib.h>

enum { PAGES = 512 };

/* Ends the program if a call was refused. */
static void check(hetmem_error *error)
{
    if (error != NULL) {
        fprintf(stderr, "out_and_home: %s\n", hetmem_error_message(error));
        hetmem_error_free(error);
        exit(1);
    }
}

static void print_residency(const hetmem_runtime *runtime, const char *when, const void *memory)
{
    hetmem_place places[PAGES];
    size_t home = 0, away = 0;
    check(hetmem_residency(runtime, memory, PAGES * HETMEM_PAGE_SIZE, places, PAGES));
    for (size_t i = 0; i < PAGES; i++) {
        home += places[i] == HETMEM_SYSTEM;
        away += places[i] == HETMEM_DEVICE(0);
    }
    printf("%-22s %3zu pages in system memory, %3zu on the device\n", when, home, away);
}

int main(void)
{
    hetmem_config *config;
    check(hetmem_config_new(&config));
    check(hetmem_config_add_device(config, "private:emulated,size=64M,name=gpu"));
    hetmem_runtime *runtime;
    check(hetmem_runtime_new(config, &runtime));
    hetmem_config_free(config);

    hetmem_mapping *mapping;
    check(hetmem_map(runtime, PAGES * HETMEM_PAGE_SIZE, HETMEM_FAULT_THREAD, &mapping));
    unsigned char *bytes = hetmem_mapping_address(mapping);
    for (size_t i = 0; i < PAGES * HETMEM_PAGE_SIZE; i++) {
        bytes[i] = (unsigned char)(i * 31 >> 8);
    }
    print_residency(runtime, "written:", bytes);

    /* Each page has an outcome: moved, or kept for a reason. */
    hetmem_request out = {HETMEM_DEVICE(0), HETMEM_SELECT_ALL, 0};
    hetmem_outcome outcomes[PAGES];
    uint64_t moved;
    check(hetmem_migrate(runtime, bytes, PAGES * HETMEM_PAGE_SIZE, &out, outcomes, PAGES, &moved));
    for (size_t i = 0; i < PAGES; i++) {
        if (outcomes[i] != HETMEM_MOVED) {
            printf("page %zu was kept: %s\n", i, hetmem_outcome_label(outcomes[i]));
        }
    }
    print_residency(runtime, "migrated to the device:", bytes);

    /* A touch brings a page home: the pointer is the same, and so are the bytes. */
    if (bytes[100 * HETMEM_PAGE_SIZE + 7] != (unsigned char)((100 * HETMEM_PAGE_SIZE + 7) * 31 >> 8)) {
        fprintf(stderr, "out_and_home: a byte is not what was written\n");
        return 1;
    }
    print_residency(runtime, "one page touched:", bytes);

    hetmem_request home = {HETMEM_SYSTEM, HETMEM_SELECT_ALL, 0};
    check(hetmem_migrate(runtime, bytes, PAGES * HETMEM_PAGE_SIZE, &home, NULL, 0, &moved));
    print_residency(runtime, "migrated home:", bytes);
    for (size_t i = 0; i < PAGES * HETMEM_PAGE_SIZE; i++) {
        if (bytes[i] != (unsigned char)(i * 31 >> 8)) {
            fprintf(stderr, "out_and_home: byte %zu is not what was written\n", i);
            return 1;
        }
    }

    hetmem_statistics counted;
    hetmem_device_statistics device;
    check(hetmem_statistics_get(runtime, &counted, sizeof counted));
    check(hetmem_device_statistics_get(runtime, 0, &device, sizeof device));
    printf("%llu pages out, %llu home, %llu faults, %llu KiB on the device at the peak\n",
           (unsigned long long)counted.pages_migrated_to_device, (unsigned long long)counted.pages_migrated_to_system,
           (unsigned long long)counted.cpu_faults, (unsigned long long)device.peak_used_bytes / 1024);

    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    return 0;
}
