/*
 * A device's table of where the program's pages are: filled under the notifier rule, and emptied by a callback before pages change.
 *
 *     cc -pthread mirror.c $(pkg-config --cflags --libs hetmem) -o mirror
 */
#include <hetmem.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES = 16 };

/* The device's table; an entry without HETMEM_PAGE_VALID is none. */
static struct {
    pthread_mutex_t lock;
    char *start;
    hetmem_mirror_page entries[PAGES];
} table = {PTHREAD_MUTEX_INITIALIZER, NULL, {{0, 0, 0, 0}}};

/* Ends the program if a call was refused. */
static void check(hetmem_error *error)
{
    if (error != NULL) {
        fprintf(stderr, "mirror: %s\n", hetmem_error_message(error));
        hetmem_error_free(error);
        exit(1);
    }
}

static void erase(const hetmem_notice *notice, void *user)
{
    (void)user;
    pthread_mutex_lock(&table.lock);
    hetmem_notice_set_seq(notice);
    size_t first = (size_t)((char *)hetmem_notice_address(notice) - table.start) / HETMEM_PAGE_SIZE;
    size_t count = hetmem_notice_length(notice) / HETMEM_PAGE_SIZE;
    memset(&table.entries[first], 0, count * sizeof table.entries[0]);
    pthread_mutex_unlock(&table.lock);
}

static void fill(hetmem_runtime *runtime, const hetmem_subscription *subscription)
{
    hetmem_mirror_page pages[PAGES];
    int filled = 0;
    while (!filled) {
        hetmem_fault_request request = {HETMEM_WANT_READ, 0, HETMEM_DEVICE(0), subscription, 0, NULL};
        request.seq = hetmem_read_begin(subscription);
        hetmem_error *error =
            hetmem_range_fault(runtime, table.start, PAGES * HETMEM_PAGE_SIZE, &request, pages, PAGES);
        if (hetmem_error_code(error) == HETMEM_CHANGED) {
            hetmem_error_free(error);
            continue;
        }
        check(error);
        pthread_mutex_lock(&table.lock);
        if (!hetmem_read_retry(subscription, request.seq)) {
            memcpy(table.entries, pages, sizeof pages);
            filled = 1;
        }
        pthread_mutex_unlock(&table.lock);
    }
}

static size_t entries(hetmem_place place)
{
    size_t count = 0;
    for (size_t i = 0; i < PAGES; i++) {
        count += (table.entries[i].flags & HETMEM_PAGE_VALID) && table.entries[i].place == place;
    }
    return count;
}

/* With the lock, as the callback may run in the runtime's thread. */
static void print(const char *when)
{
    pthread_mutex_lock(&table.lock);
    printf("%-9s %zu entries in system memory, %zu on the device, the sixth page has %s\n", when, entries(HETMEM_SYSTEM),
           entries(HETMEM_DEVICE(0)), table.entries[5].flags & HETMEM_PAGE_VALID ? "one" : "none");
    pthread_mutex_unlock(&table.lock);
}

int main(void)
{
    hetmem_config *config;
    hetmem_runtime *runtime;
    hetmem_mapping *mapping;
    hetmem_subscription *subscription;
    check(hetmem_config_new(&config));
    check(hetmem_config_add_device(config, "private:emulated,size=16M"));
    check(hetmem_runtime_new(config, &runtime));
    hetmem_config_free(config);
    check(hetmem_map(runtime, PAGES * HETMEM_PAGE_SIZE, HETMEM_FAULT_THREAD, &mapping));
    table.start = hetmem_mapping_address(mapping);
    memset(table.start, 3, PAGES * HETMEM_PAGE_SIZE);
    check(hetmem_subscribe(runtime, table.start, PAGES * HETMEM_PAGE_SIZE, erase, NULL, &subscription));

    fill(runtime, subscription);
    print("filled:");
    hetmem_request out = {HETMEM_DEVICE(0), HETMEM_SELECT_ALL, 0};
    check(hetmem_migrate(runtime, table.start, PAGES * HETMEM_PAGE_SIZE, &out, NULL, 0, NULL));
    print("migrated:");
    fill(runtime, subscription);
    print("filled:");
    if (table.start[5 * HETMEM_PAGE_SIZE] != 3) {
        fprintf(stderr, "mirror: a byte is not what was written\n");
        return 1;
    }
    /* Neighbours may have come home with it. */
    pthread_mutex_lock(&table.lock);
    int is_gone = !(table.entries[5].flags & HETMEM_PAGE_VALID);
    pthread_mutex_unlock(&table.lock);
    printf("touched:  the sixth page has %s\n", is_gone ? "none" : "one");

    hetmem_subscription_free(subscription);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    return 0;
}
