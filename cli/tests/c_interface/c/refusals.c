/* Every wrong argument is refused with HETMEM_INVALID_INPUT and a message that names it; nothing has changed then. */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <fcntl.h>

#define BAD(call, text) REFUSED(call, HETMEM_INVALID_INPUT, text)

enum { PAGES = 16 };

static void configs(void)
{
    hetmem_config *config;
    hetmem_runtime *runtime;
    BAD(hetmem_config_new(NULL), "out is NULL");
    OK(hetmem_config_new(&config));
    BAD(hetmem_config_add_device(NULL, "coherent:emulated"), "config is NULL");
    BAD(hetmem_config_add_device(config, NULL), "spec is NULL");
    BAD(hetmem_config_add_device(config, "\xff"), "spec is not UTF-8");
    BAD(hetmem_config_add_device(config, ""), "TYPE:BACKEND");
    BAD(hetmem_config_add_device(config, "private:emulated,size=5"), "multiple of the page");
    BAD(hetmem_config_add_device((hetmem_config *)((char *)config + 1), "x"), "not aligned");
    BAD(hetmem_config_set_stock(config, 4097), "multiple of the page");
    BAD(hetmem_config_set_stock(config, UINT64_MAX - 4095), "more than this machine's memory");
    BAD(hetmem_config_set_stock(NULL, 0), "config is NULL");
    BAD(hetmem_config_strict_stock(NULL), "config is NULL");
    BAD(hetmem_config_allow_sigbus(NULL), "config is NULL");
    BAD(hetmem_runtime_new(NULL, &runtime), "config is NULL");
    BAD(hetmem_runtime_new(config, NULL), "out is NULL");
    /* What was refused has left nothing behind. */
    for (int i = 0; i < 16; i++) {
        OK(hetmem_config_add_device(config, "private:emulated,size=1M"));
    }
    BAD(hetmem_config_add_device(config, "private:emulated,size=1M"), "more than 16 devices");
    OK(hetmem_runtime_new(config, &runtime));
    EXPECT(hetmem_device_count(runtime) == 16);
    hetmem_device_info info;
    OK(hetmem_device_get(runtime, 15, &info));
    EXPECT(strcmp(info.name, "private15") == 0 && info.capacity_bytes == 1 << 20);
    EXPECT(info.memory_type == HETMEM_DEVICE_PRIVATE);
    BAD(hetmem_device_get(runtime, 16, &info), "there is no device 16");
    BAD(hetmem_device_get(runtime, UINT32_MAX, &info), "there is no device");
    BAD(hetmem_device_get(runtime, 0, NULL), "out is NULL");
    BAD(hetmem_device_get(NULL, 0, &info), "runtime is NULL");
    hetmem_runtime_free(runtime);
    hetmem_config_free(config);
}

static void memory(hetmem_runtime *runtime, char *bytes)
{
    hetmem_mapping *mapping = NULL;
    size_t length = PAGES * HETMEM_PAGE_SIZE;
    BAD(hetmem_map(NULL, length, HETMEM_FAULT_THREAD, &mapping), "runtime is NULL");
    BAD(hetmem_map(runtime, length, HETMEM_FAULT_THREAD, NULL), "out is NULL");
    BAD(hetmem_map(runtime, 0, HETMEM_FAULT_THREAD, &mapping), "multiple of the page");
    BAD(hetmem_map(runtime, 1, HETMEM_FAULT_THREAD, &mapping), "multiple of the page");
    BAD(hetmem_map(runtime, length, 2, &mapping), "no fault path 2");
    REFUSED(hetmem_map(runtime, SIZE_MAX - 4095, HETMEM_FAULT_THREAD, &mapping), HETMEM_EXHAUSTED, "can't be mapped");
    BAD(hetmem_map_file(runtime, -1, 0, length, &mapping), "no descriptor");
    int program = open("/proc/self/exe", O_RDONLY), root = open("/", O_RDONLY);
    BAD(hetmem_map_file(NULL, program, 0, length, &mapping), "runtime is NULL");
    BAD(hetmem_map_file(runtime, program, 0, length, NULL), "out is NULL");
    BAD(hetmem_map_file(runtime, program, 1, length, &mapping), "multiple of the page");
    BAD(hetmem_map_file(runtime, program, 0, (size_t)1 << 40, &mapping), "not in the file");
    BAD(hetmem_map_file(runtime, root, 0, length, &mapping), "only regular files");
    close(program);
    close(root);
    REFUSED(hetmem_map(runtime, (size_t)1 << 60, HETMEM_FAULT_THREAD, &mapping), HETMEM_EXHAUSTED, "can't be mapped");
    EXPECT(mapping == NULL);

    BAD(hetmem_adopt(NULL, bytes, length, HETMEM_FAULT_THREAD), "runtime is NULL");
    BAD(hetmem_adopt(runtime, bytes, length, HETMEM_FAULT_THREAD), "managed already");
    BAD(hetmem_adopt(runtime, bytes, length, 7), "no fault path 7");
    /* The error above is memory of hetmem's own. */
    hetmem_error *error = hetmem_adopt(runtime, NULL, 0, HETMEM_FAULT_THREAD);
    char *own = (char *)((uintptr_t)error / HETMEM_PAGE_SIZE * HETMEM_PAGE_SIZE);
    BAD(hetmem_adopt(runtime, own, HETMEM_PAGE_SIZE, HETMEM_FAULT_THREAD), "hetmem's own");
    hetmem_error_free(error);

    /* Ranges that are none. */
    static const struct {
        uintptr_t offset;
        size_t length;
        const char *text;
    } ranges[] = {
        {1, 4096, "not a multiple of the page"},
        {0, 0, "positive multiple of the page"},
        {0, 4095, "positive multiple of the page"},
        {0, SIZE_MAX - 4095, "past the end of the address space"},
        {(uintptr_t)1 << 60, 4096, "past the end of the address space"},
    };
    hetmem_request home = {HETMEM_SYSTEM, 0, 0};
    hetmem_place places[PAGES + 1];
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        char *start = (char *)((uintptr_t)bytes + ranges[i].offset);
        BAD(hetmem_adopt(runtime, start, ranges[i].length, HETMEM_FAULT_THREAD), ranges[i].text);
        BAD(hetmem_release(runtime, start, ranges[i].length), ranges[i].text);
        BAD(hetmem_advise(runtime, start, ranges[i].length, HETMEM_ADVICE_PIN, HETMEM_SYSTEM), ranges[i].text);
        BAD(hetmem_residency(runtime, start, ranges[i].length, places, 1), ranges[i].text);
        BAD(hetmem_migrate(runtime, start, ranges[i].length, &home, NULL, 0, NULL), ranges[i].text);
        hetmem_range range = {start, ranges[i].length};
        BAD(hetmem_migrate_all(runtime, &range, 1, &home, NULL, 0, NULL), ranges[i].text);
    }

    BAD(hetmem_release(NULL, bytes, length), "runtime is NULL");
    REFUSED(hetmem_advise(NULL, bytes, length, HETMEM_ADVICE_PIN, HETMEM_SYSTEM), HETMEM_HOST_REFUSES, "under `hetmem run`");
    REFUSED(hetmem_advise(NULL, bytes, length, HETMEM_ADVICE_DISCARD, HETMEM_SYSTEM), HETMEM_HOST_REFUSES, "no agent");
    BAD(hetmem_advise(NULL, bytes, length, 9, HETMEM_SYSTEM), "no advice 9");
    BAD(hetmem_advise(NULL, bytes, length, HETMEM_ADVICE_PREFERRED_LOCATION, HETMEM_MIGRATING), "no place 4294967295");
    BAD(hetmem_advise(runtime, bytes, length, 0, HETMEM_SYSTEM), "no advice 0");
    BAD(hetmem_advise(runtime, bytes, length, 9, HETMEM_SYSTEM), "there is no advice 9; they are 1 to 8");
    BAD(hetmem_advise(runtime, bytes, length, HETMEM_ADVICE_PIN, HETMEM_DEVICE(0)), "takes no place");
    BAD(hetmem_advise(runtime, bytes, length, HETMEM_ADVICE_PREFERRED_LOCATION, HETMEM_SYSTEM), "is a device");
    BAD(hetmem_advise(runtime, bytes, length, HETMEM_ADVICE_PREFERRED_LOCATION, HETMEM_DEVICE(2)), "no device 2");
    for (hetmem_advice advice = HETMEM_ADVICE_NO_PREFERENCE; advice <= HETMEM_ADVICE_DISCARD; advice++) {
        BAD(hetmem_advise(runtime, (void *)HETMEM_PAGE_SIZE, HETMEM_PAGE_SIZE, advice, HETMEM_SYSTEM), "is not managed");
    }

    BAD(hetmem_residency(NULL, bytes, length, places, PAGES), "runtime is NULL");
    BAD(hetmem_residency(runtime, bytes, length, NULL, PAGES), "places is NULL");
    BAD(hetmem_residency(runtime, bytes, length, (hetmem_place *)((char *)places + 1), PAGES), "not aligned");
    BAD(hetmem_residency(runtime, bytes, length, places, PAGES - 1), "room for 15 places");
    BAD(hetmem_residency(runtime, bytes, length, places, PAGES + 1), "room for 17 places");
    BAD(hetmem_residency(runtime, bytes, length, places, SIZE_MAX), "more than memory holds");
}

static void migration(hetmem_runtime *runtime, char *bytes)
{
    size_t length = PAGES * HETMEM_PAGE_SIZE;
    hetmem_outcome outcomes[2 * PAGES];
    uint64_t moved = 99;
    hetmem_request out = {HETMEM_DEVICE(0), 0, 0}, wrong = {HETMEM_DEVICE(2), 0, 0};
    hetmem_range ranges[2] = {{bytes, length / 2}, {bytes + length / 2, length / 2}};
    BAD(hetmem_migrate(NULL, bytes, length, &out, NULL, 0, &moved), "runtime is NULL");
    BAD(hetmem_migrate(runtime, bytes, length, NULL, NULL, 0, &moved), "request is NULL");
    BAD(hetmem_migrate(runtime, bytes, length, &wrong, NULL, 0, &moved), "no device 2");
    wrong.target = HETMEM_DEVICE(UINT32_MAX - 2);
    BAD(hetmem_migrate(runtime, bytes, length, &wrong, NULL, 0, &moved), "no device");
    wrong.target = HETMEM_MIGRATING;
    BAD(hetmem_migrate(runtime, bytes, length, &wrong, NULL, 0, &moved), "no place");
    wrong.target = HETMEM_DEVICE(0);
    wrong.select = 8;
    BAD(hetmem_migrate(runtime, bytes, length, &wrong, NULL, 0, &moved), "select is 0x8");
    BAD(hetmem_migrate(runtime, bytes, length, &out, NULL, PAGES, &moved), "outcomes is NULL");
    BAD(hetmem_migrate(runtime, bytes, length, &out, outcomes, PAGES - 1, &moved), "room for 15 outcomes");
    BAD(hetmem_migrate(runtime, bytes, length, &out, outcomes, SIZE_MAX, &moved), "more than memory holds");
    BAD(hetmem_migrate(runtime, bytes, length, &out, NULL, 0, (uint64_t *)((char *)&moved + 1)), "not aligned");
    BAD(hetmem_migrate_all(NULL, ranges, 2, &out, NULL, 0, &moved), "runtime is NULL");
    BAD(hetmem_migrate_all(runtime, NULL, 2, &out, NULL, 0, &moved), "ranges is NULL");
    BAD(hetmem_migrate_all(runtime, ranges, SIZE_MAX, &out, NULL, 0, &moved), "ranges are too many");
    BAD(hetmem_migrate_all(runtime, ranges, 2, &out, outcomes, 2 * PAGES, &moved), "room for 32 outcomes");
    EXPECT(moved == 99);
    hetmem_place places[PAGES];
    OK(hetmem_residency(runtime, bytes, length, places, PAGES));
    for (int i = 0; i < PAGES; i++) {
        EXPECT(places[i] == HETMEM_SYSTEM);
    }
    OK(hetmem_migrate_all(runtime, NULL, 0, &out, NULL, 0, &moved));
    EXPECT(moved == 0);
}

static void statistics(hetmem_runtime *runtime)
{
    struct {
        hetmem_statistics known;
        uint64_t unknown[2];
    } larger;
    hetmem_device_statistics device;
    BAD(hetmem_statistics_get(NULL, &larger.known, sizeof larger.known), "runtime is NULL");
    BAD(hetmem_statistics_get(runtime, NULL, sizeof larger.known), "out is NULL");
    BAD(hetmem_statistics_get(runtime, &larger.known, 0), "size is 0");
    BAD(hetmem_statistics_get(runtime, &larger.known, 7), "size is 7");
    BAD(hetmem_device_statistics_get(runtime, 2, &device, sizeof device), "no device 2");
    BAD(hetmem_device_statistics_get(runtime, 0, NULL, sizeof device), "out is NULL");
    BAD(hetmem_device_statistics_get(NULL, 0, &device, sizeof device), "runtime is NULL");

    /* An older program's struct is shorter, and what is behind it stays; a newer one's is longer, and is filled with zeros. */
    memset(&larger, 0xff, sizeof larger);
    OK(hetmem_statistics_get(runtime, &larger.known, 2 * sizeof(uint64_t)));
    EXPECT(larger.known.adopted_bytes == PAGES * HETMEM_PAGE_SIZE);
    EXPECT(larger.known.pages_migrated_to_device == 0 && larger.known.pages_migrated_to_system == UINT64_MAX);
    OK(hetmem_statistics_get(runtime, &larger.known, sizeof larger.known));
    EXPECT(larger.known.pages_kept[31] == 0 && larger.unknown[0] == UINT64_MAX);
    OK(hetmem_statistics_get(runtime, &larger.known, sizeof larger));
    EXPECT(larger.unknown[0] == 0 && larger.unknown[1] == 0);
}

int main(void)
{
    bounded();
    EXPECT(hetmem_version() == HETMEM_VERSION);
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", HETMEM_VERSION_MAJOR, HETMEM_VERSION_MINOR, HETMEM_VERSION_PATCH);
    EXPECT(strcmp(hetmem_version_string(), text) == 0);

    /* NULL is no handle, and does no harm. */
    hetmem_error_free(NULL);
    hetmem_config_free(NULL);
    hetmem_runtime_free(NULL);
    hetmem_mapping_free(NULL);
    EXPECT(hetmem_error_code(NULL) == HETMEM_OK && strcmp(hetmem_error_message(NULL), "no error") == 0);
    EXPECT(hetmem_device_count(NULL) == 0);
    EXPECT(hetmem_mapping_address(NULL) == NULL && hetmem_mapping_length(NULL) == 0);
    EXPECT(strcmp(hetmem_outcome_label(HETMEM_MOVED), "moved") == 0);
    EXPECT(strcmp(hetmem_outcome_label(HETMEM_KEPT_DEVICE_ERROR), "device_error") == 0);
    EXPECT(strcmp(hetmem_outcome_label(255), "unknown") == 0);

    configs();
    hetmem_runtime *runtime = two_devices();
    hetmem_mapping *mapping;
    OK(hetmem_map(runtime, PAGES * HETMEM_PAGE_SIZE, HETMEM_FAULT_THREAD, &mapping));
    char *bytes = hetmem_mapping_address(mapping);
    memset(bytes, 1, PAGES * HETMEM_PAGE_SIZE);
    memory(runtime, bytes);
    migration(runtime, bytes);
    statistics(runtime);
    hetmem_mapping_free(mapping);
    hetmem_runtime_free(runtime);
    puts("ok");
    return 0;
}
