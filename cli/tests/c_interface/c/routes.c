/* Contents survive every route, on both fault paths; handles may be freed in any order; ranges may be as large as the address space. */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <fcntl.h>
#include <sys/mman.h>

enum { PAGES = 1024, PRIVATE = 0, COHERENT = 1 };

static const size_t LENGTH = PAGES * HETMEM_PAGE_SIZE;

static void fill(uint64_t *words, uint64_t seed)
{
    for (size_t i = 0; i < LENGTH / 8; i++) {
        words[i] = i * UINT64_C(0x9e3779b97f4a7c15) + seed;
    }
}

static void verify(const volatile uint64_t *words, uint64_t seed)
{
    for (size_t i = 0; i < LENGTH / 8; i++) {
        EXPECT(words[i] == i * UINT64_C(0x9e3779b97f4a7c15) + seed);
    }
}

/* Moves all pages to `target`, and sees them there. */
static void move(hetmem_runtime *runtime, void *memory, hetmem_place target)
{
    static hetmem_outcome outcomes[PAGES];
    static hetmem_place places[PAGES];
    hetmem_request request = {target, HETMEM_SELECT_ALL, 0};
    uint64_t moved, counted = 0;
    OK(hetmem_migrate(runtime, memory, LENGTH, &request, outcomes, PAGES, &moved));
    OK(hetmem_residency(runtime, memory, LENGTH, places, PAGES));
    for (size_t i = 0; i < PAGES; i++) {
        EXPECT(outcomes[i] == HETMEM_MOVED || outcomes[i] == HETMEM_KEPT_ALREADY_THERE);
        EXPECT(places[i] == target);
        counted += outcomes[i] == HETMEM_MOVED;
    }
    EXPECT(counted == moved);
}

static void routes(hetmem_runtime *runtime, uint64_t *words)
{
    static const hetmem_place targets[] = {HETMEM_DEVICE(PRIVATE), HETMEM_DEVICE(COHERENT), HETMEM_DEVICE(PRIVATE),
                                           HETMEM_SYSTEM, HETMEM_DEVICE(COHERENT), HETMEM_SYSTEM};
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        fill(words, i);
        move(runtime, words, targets[i]);
        verify(words, i);
    }
    /* From device to device without coming home. */
    fill(words, 77);
    move(runtime, words, HETMEM_DEVICE(PRIVATE));
    move(runtime, words, HETMEM_DEVICE(COHERENT));
    move(runtime, words, HETMEM_DEVICE(PRIVATE));
    verify(words, 77);
}

static void selection_and_owner(hetmem_runtime *runtime, char *memory)
{
    hetmem_outcome outcomes[PAGES];
    uint64_t moved;
    memset(memory, 5, LENGTH);
    move(runtime, memory, HETMEM_DEVICE(PRIVATE));
    hetmem_request request = {HETMEM_SYSTEM, HETMEM_SELECT_DEVICE_COHERENT, 0};
    OK(hetmem_migrate(runtime, memory, LENGTH, &request, outcomes, PAGES, &moved));
    EXPECT(moved == 0 && outcomes[0] == HETMEM_KEPT_NOT_SELECTED && outcomes[PAGES - 1] == HETMEM_KEPT_NOT_SELECTED);
    request.select = HETMEM_SELECT_SYSTEM + HETMEM_SELECT_DEVICE_PRIVATE;
    request.owner = HETMEM_DEVICE(COHERENT);
    OK(hetmem_migrate(runtime, memory, LENGTH, &request, outcomes, PAGES, &moved));
    EXPECT(moved == 0 && outcomes[0] == HETMEM_KEPT_FOREIGN_OWNER);
    request.owner = HETMEM_DEVICE(PRIVATE);
    OK(hetmem_migrate(runtime, memory, LENGTH, &request, outcomes, PAGES, &moved));
    EXPECT(moved == PAGES && outcomes[0] == HETMEM_MOVED);

    OK(hetmem_advise(runtime, memory, HETMEM_PAGE_SIZE, HETMEM_ADVICE_PIN, HETMEM_SYSTEM));
    request.target = HETMEM_DEVICE(PRIVATE);
    OK(hetmem_migrate(runtime, memory, LENGTH, &request, outcomes, PAGES, &moved));
    EXPECT(moved == PAGES - 1 && outcomes[0] == HETMEM_KEPT_ADVISED && outcomes[1] == HETMEM_MOVED);
    OK(hetmem_advise(runtime, memory, LENGTH, HETMEM_ADVICE_UNPIN, HETMEM_SYSTEM));
    OK(hetmem_advise(runtime, memory, LENGTH, HETMEM_ADVICE_PREFERRED_LOCATION, HETMEM_DEVICE(COHERENT)));
    OK(hetmem_advise(runtime, memory, LENGTH, HETMEM_ADVICE_NO_PREFERENCE, HETMEM_SYSTEM));
    OK(hetmem_advise(runtime, memory, LENGTH, HETMEM_ADVICE_NOT_SOON, HETMEM_SYSTEM));
    OK(hetmem_migrate(runtime, memory, LENGTH, &request, outcomes, PAGES, &moved));
    EXPECT(moved == 1 && outcomes[0] == HETMEM_MOVED && outcomes[1] == HETMEM_KEPT_ALREADY_THERE);

    hetmem_place places[PAGES];
    OK(hetmem_advise(runtime, memory, HETMEM_PAGE_SIZE, HETMEM_ADVICE_READ_MOSTLY, HETMEM_SYSTEM));
    OK(hetmem_advise(runtime, memory, LENGTH, HETMEM_ADVICE_SOON, HETMEM_SYSTEM));
    OK(hetmem_residency(runtime, memory, LENGTH, places, PAGES));
    EXPECT(places[0] == HETMEM_DEVICE(COHERENT) && places[1] == HETMEM_SYSTEM && places[PAGES - 1] == HETMEM_SYSTEM);
    OK(hetmem_advise(runtime, memory, LENGTH, HETMEM_ADVICE_NO_PREFERENCE, HETMEM_SYSTEM));

    hetmem_statistics counted;
    OK(hetmem_statistics_get(runtime, &counted, sizeof counted));
    EXPECT(counted.pages_kept[HETMEM_KEPT_NOT_SELECTED] == PAGES);
    EXPECT(counted.pages_kept[HETMEM_KEPT_FOREIGN_OWNER] == PAGES);
    EXPECT(counted.pages_kept[HETMEM_KEPT_ADVISED] == 1);
}

/* A device makes room by frame, is removed with pages on it, and comes back. */
static void eviction(hetmem_runtime *runtime, char *memory)
{
    hetmem_device_statistics counted;
    hetmem_outcome outcomes[PAGES];
    uint64_t moved, frames = (64 << 20) / HETMEM_PAGE_SIZE;
    REFUSED(hetmem_evict(NULL, PRIVATE, 0, 1, NULL), HETMEM_INVALID_INPUT, "runtime is NULL");
    REFUSED(hetmem_evict(runtime, 2, 0, 1, NULL), HETMEM_INVALID_INPUT, "no device 2");
    REFUSED(hetmem_evict(runtime, PRIVATE, 0, 0, NULL), HETMEM_INVALID_INPUT, "not frames of a device");
    REFUSED(hetmem_evict(runtime, PRIVATE, 1, frames, NULL), HETMEM_INVALID_INPUT, "not frames of a device");
    REFUSED(hetmem_evict(runtime, PRIVATE, UINT64_MAX, 2, NULL), HETMEM_INVALID_INPUT, "not frames of a device");
    REFUSED(hetmem_device_remove(NULL, PRIVATE), HETMEM_INVALID_INPUT, "runtime is NULL");
    REFUSED(hetmem_device_remove(runtime, 2), HETMEM_INVALID_INPUT, "no device 2");
    REFUSED(hetmem_device_restore(runtime, 2), HETMEM_INVALID_INPUT, "no device 2");

    memset(memory, 9, LENGTH);
    move(runtime, memory, HETMEM_DEVICE(PRIVATE));
    OK(hetmem_evict(runtime, PRIVATE, 0, frames, &moved));
    OK(hetmem_device_statistics_get(runtime, PRIVATE, &counted, sizeof counted));
    EXPECT(moved == PAGES && counted.used_bytes == 0);

    move(runtime, memory, HETMEM_DEVICE(PRIVATE));
    OK(hetmem_device_remove(runtime, PRIVATE));
    OK(hetmem_device_statistics_get(runtime, PRIVATE, &counted, sizeof counted));
    EXPECT(counted.used_bytes == 0);
    hetmem_request out = {HETMEM_DEVICE(PRIVATE), 0, 0};
    OK(hetmem_migrate(runtime, memory, LENGTH, &out, outcomes, PAGES, &moved));
    EXPECT(moved == 0 && outcomes[0] == HETMEM_KEPT_NO_FRAME);
    OK(hetmem_device_restore(runtime, PRIVATE));
    move(runtime, memory, HETMEM_DEVICE(PRIVATE));
    for (size_t i = 0; i < LENGTH; i++) {
        EXPECT(memory[i] == 9);
    }
}

/* A file goes to both devices, is read there, and comes home to who writes it. */
static void files(hetmem_runtime *runtime)
{
    char name[] = "/tmp/hetmem-routes-XXXXXX";
    int writer = mkstemp(name);
    EXPECT(writer >= 0);
    uint64_t *bytes = malloc(LENGTH);
    EXPECT(bytes != NULL);
    fill(bytes, 5);
    EXPECT(write(writer, bytes, LENGTH) == (ssize_t)LENGTH && close(writer) == 0);
    hetmem_mapping *mapping;
    int reader = open(name, O_RDONLY);
    OK(hetmem_map_file(runtime, reader, 0, LENGTH, &mapping));
    close(reader);
    uint64_t *words = hetmem_mapping_address(mapping);
    EXPECT(hetmem_mapping_length(mapping) == LENGTH);
    move(runtime, words, HETMEM_DEVICE(COHERENT));
    verify(words, 5);
    move(runtime, words, HETMEM_DEVICE(PRIVATE));
    hetmem_place place;
    writer = open(name, O_WRONLY);
    OK(hetmem_residency(runtime, words, HETMEM_PAGE_SIZE, &place, 1));
    EXPECT(place == HETMEM_SYSTEM);
    fill(bytes, 6);
    EXPECT(write(writer, bytes, LENGTH) == (ssize_t)LENGTH);
    verify(words, 6);
    hetmem_request request = {HETMEM_DEVICE(PRIVATE), HETMEM_SELECT_ALL, 0};
    hetmem_outcome outcome;
    OK(hetmem_migrate(runtime, words, HETMEM_PAGE_SIZE, &request, &outcome, 1, NULL));
    EXPECT(outcome == HETMEM_KEPT_FILE_OPEN_FOR_WRITING && close(writer) == 0);
    move(runtime, words, HETMEM_DEVICE(PRIVATE));
    verify(words, 6);
    hetmem_mapping_free(mapping);
    unlink(name);
    free(bytes);
}

/* Calls about everything there is. */
static void whole_address_space(hetmem_runtime *runtime, char *memory)
{
    void *start = (void *)HETMEM_PAGE_SIZE;
    size_t length = ((size_t)1 << 56) - HETMEM_PAGE_SIZE;
    memset(memory, 6, LENGTH);
    move(runtime, memory, HETMEM_DEVICE(PRIVATE));
    REFUSED(hetmem_advise(runtime, start, length, HETMEM_ADVICE_PIN, HETMEM_SYSTEM), HETMEM_INVALID_INPUT, "holds for what is");
    REFUSED(hetmem_advise(runtime, start, length, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM), HETMEM_INVALID_INPUT, "not managed");
    hetmem_request home = {HETMEM_SYSTEM, 0, 0};
    hetmem_outcome kept[PAGES];
    uint64_t came;
    OK(hetmem_migrate(runtime, memory, LENGTH, &home, kept, PAGES, &came));
    EXPECT(came == 0 && kept[0] == HETMEM_KEPT_ADVISED && memory[0] == 6);
    REFUSED(hetmem_advise(runtime, start, length, HETMEM_ADVICE_UNPIN, HETMEM_SYSTEM), HETMEM_INVALID_INPUT, "holds for what is");
    REFUSED(hetmem_advise(runtime, start, length, HETMEM_ADVICE_SOON, HETMEM_SYSTEM), HETMEM_INVALID_INPUT, "holds for what is");
    REFUSED(hetmem_adopt(runtime, start, length, HETMEM_FAULT_THREAD), HETMEM_INVALID_INPUT, "hetmem's own");
    OK(hetmem_release(runtime, start, length));
    hetmem_statistics counted;
    OK(hetmem_statistics_get(runtime, &counted, sizeof counted));
    EXPECT(counted.adopted_bytes == 0);
    hetmem_request out = {HETMEM_DEVICE(PRIVATE), 0, 0};
    hetmem_outcome outcomes[PAGES];
    uint64_t moved;
    OK(hetmem_migrate(runtime, memory, LENGTH, &out, outcomes, PAGES, &moved));
    EXPECT(moved == 0 && outcomes[0] == HETMEM_KEPT_UNMANAGED);
    for (size_t i = 0; i < LENGTH; i++) {
        EXPECT(memory[i] == 6);
    }
}

/* More than is worked on at a time; nearly all of it holes. */
static void more_than_a_gibibyte(hetmem_runtime *runtime)
{
    size_t length = ((size_t)5 << 29) + HETMEM_PAGE_SIZE, pages = length / HETMEM_PAGE_SIZE;
    hetmem_mapping *mapping;
    OK(hetmem_map(runtime, length, HETMEM_FAULT_THREAD, &mapping));
    char *memory = hetmem_mapping_address(mapping);
    EXPECT(hetmem_mapping_length(mapping) == length && (uintptr_t)memory % (2 << 20) == 0);
    madvise(memory, length, MADV_NOHUGEPAGE);
    static const size_t written[] = {0, (1 << 18) - 1, 1 << 18, (1 << 19) + 1, (5 << 17)};
    enum { WRITTEN = sizeof written / sizeof written[0] };
    for (size_t i = 0; i < WRITTEN; i++) {
        memory[written[i] * HETMEM_PAGE_SIZE] = (char)(i + 1);
    }
    hetmem_outcome *outcomes = malloc(pages);
    hetmem_place *places = malloc(pages * sizeof *places);
    EXPECT(outcomes != NULL && places != NULL);
    hetmem_request out = {HETMEM_DEVICE(PRIVATE), 0, 0};
    uint64_t moved;
    OK(hetmem_migrate(runtime, memory, length, &out, outcomes, pages, &moved));
    EXPECT(moved == WRITTEN);
    OK(hetmem_residency(runtime, memory, length, places, pages));
    for (size_t i = 0, next = 0; i < pages; i++) {
        int is_written = next < WRITTEN && i == written[next];
        EXPECT(outcomes[i] == (is_written ? HETMEM_MOVED : HETMEM_KEPT_HOLE));
        EXPECT(places[i] == (is_written ? HETMEM_DEVICE(PRIVATE) : HETMEM_SYSTEM));
        next += (size_t)is_written;
    }
    for (size_t i = 0; i < WRITTEN; i++) {
        EXPECT(memory[written[i] * HETMEM_PAGE_SIZE] == (char)(i + 1));
    }
    free(outcomes);
    free(places);
    hetmem_mapping_free(mapping);
}

/* Contents are given up, wherever they are. */
static void discarded(hetmem_runtime *runtime)
{
    static const hetmem_place targets[] = {HETMEM_SYSTEM, HETMEM_DEVICE(PRIVATE), HETMEM_DEVICE(COHERENT)};
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        hetmem_mapping *mapping;
        hetmem_place places[PAGES];
        OK(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, &mapping));
        char *memory = hetmem_mapping_address(mapping);
        memset(memory, 8, LENGTH);
        move(runtime, memory, targets[i]);
        OK(hetmem_advise(runtime, memory + HETMEM_PAGE_SIZE, LENGTH / 2, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM));
        OK(hetmem_residency(runtime, memory, LENGTH, places, PAGES));
        for (size_t page = 0; page < PAGES; page++) {
            int is_gone = page >= 1 && page < 1 + PAGES / 2;
            EXPECT(places[page] == (is_gone ? HETMEM_SYSTEM : targets[i]));
            EXPECT(memory[page * HETMEM_PAGE_SIZE] == (is_gone ? 0 : 8));
        }
        hetmem_mapping_free(mapping);
    }
}

int main(void)
{
    bounded();
    hetmem_runtime *runtime = two_devices();
    for (hetmem_fault_path path = HETMEM_FAULT_THREAD; path <= HETMEM_FAULT_SIGBUS; path++) {
        hetmem_mapping *mapping;
        OK(hetmem_map(runtime, LENGTH, path, &mapping));
        routes(runtime, hetmem_mapping_address(mapping));
        hetmem_mapping_free(mapping);
    }
    void *adopted = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(adopted != MAP_FAILED);
    OK(hetmem_adopt(runtime, adopted, LENGTH, HETMEM_FAULT_THREAD));
    routes(runtime, adopted);
    selection_and_owner(runtime, adopted);
    eviction(runtime, adopted);
    files(runtime);
    whole_address_space(runtime, adopted);
    more_than_a_gibibyte(runtime);
    discarded(runtime);

    /* The runtime goes on until its last mapping is gone, and brings adopted memory home when it ends. */
    hetmem_mapping *last;
    OK(hetmem_map(runtime, LENGTH, HETMEM_FAULT_THREAD, &last));
    OK(hetmem_adopt(runtime, adopted, LENGTH, HETMEM_FAULT_THREAD));
    fill(hetmem_mapping_address(last), 1);
    fill(adopted, 2);
    move(runtime, hetmem_mapping_address(last), HETMEM_DEVICE(PRIVATE));
    move(runtime, adopted, HETMEM_DEVICE(PRIVATE));
    hetmem_runtime_free(runtime);
    verify(hetmem_mapping_address(last), 1);
    hetmem_mapping_free(last);
    verify(adopted, 2);
    munmap(adopted, LENGTH);
    puts("ok");
    return 0;
}
