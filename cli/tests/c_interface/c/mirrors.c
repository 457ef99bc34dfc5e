/* Mirrors: wrong arguments, each error of a range fault, announcements, and the end of the runtime as the last event. */
#define _DEFAULT_SOURCE
#include "expect.h"

#include <sys/mman.h>

#define BAD(call, text) REFUSED(call, HETMEM_INVALID_INPUT, text)

enum { PAGES = 8 };

static const size_t LENGTH = PAGES * HETMEM_PAGE_SIZE;
static const size_t BLOCK = 2 << 20;

static struct {
    int calls;
    hetmem_event event;
    uint64_t owner;
    char *address;
    size_t length;
} last;

static void told(const hetmem_notice *notice, void *user)
{
    EXPECT(user == &last);
    hetmem_notice_set_seq(notice);
    last.calls++;
    last.event = hetmem_notice_event(notice);
    last.owner = hetmem_notice_owner(notice);
    last.address = hetmem_notice_address(notice);
    last.length = hetmem_notice_length(notice);
}

static void forbid(void *start)
{
    EXPECT(last.event == HETMEM_EVENT_PROTECTION);
    EXPECT(mprotect(start, HETMEM_PAGE_SIZE, PROT_READ) == 0);
}

/* By runs pages are answered as by pages, for however many runs there is room at a time. */
static void same_by_runs(hetmem_runtime *runtime, char *memory, const hetmem_fault_request *request,
                         const hetmem_mirror_page *pages, size_t room)
{
    hetmem_mirror_run runs[PAGES];
    size_t at = 0;
    while (at < PAGES) {
        size_t found = 0, left = PAGES - at;
        hetmem_fault_request rest = *request;
        if (rest.wants)
            rest.wants += at;
        OK(hetmem_range_fault_runs(runtime, memory + at * HETMEM_PAGE_SIZE, left * HETMEM_PAGE_SIZE, &rest, runs, room,
                                   &found));
        EXPECT(found > 0 && found <= room);
        for (size_t i = 0; i < found; i++) {
            EXPECT(runs[i].address == memory + at * HETMEM_PAGE_SIZE);
            EXPECT(runs[i].length > 0 && runs[i].length % HETMEM_PAGE_SIZE == 0);
            for (size_t page = 0; page < runs[i].length / HETMEM_PAGE_SIZE; page++, at++) {
                hetmem_mirror_page answer = runs[i].first;
                if (answer.place != HETMEM_SYSTEM)
                    answer.frame += page;
                EXPECT(at < PAGES && memcmp(&answer, &pages[at], sizeof answer) == 0);
            }
        }
        EXPECT(found == room || at == PAGES);
    }
}

int main(void)
{
    bounded();
    hetmem_runtime *runtime = two_devices();
    hetmem_subscription *subscription = NULL;
    hetmem_mirror_page pages[PAGES];
    /* Within one block of 2 MiB: of two, a migration is told twice. */
    char *around = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(around != MAP_FAILED);
    char *memory = (char *)(((uintptr_t)around + BLOCK) / BLOCK * BLOCK);
    EXPECT(munmap(around, (size_t)(memory - around)) == 0);
    EXPECT(munmap(memory + LENGTH, (size_t)(around + 2 * BLOCK - memory) - LENGTH) == 0);
    memset(memory, 1, LENGTH);
    OK(hetmem_adopt(runtime, memory, LENGTH, HETMEM_FAULT_THREAD));

    BAD(hetmem_subscribe(NULL, memory, LENGTH, told, NULL, &subscription), "runtime is NULL");
    BAD(hetmem_subscribe(runtime, memory, LENGTH, NULL, NULL, &subscription), "callback is NULL");
    BAD(hetmem_subscribe(runtime, memory, LENGTH, told, NULL, NULL), "out is NULL");
    BAD(hetmem_subscribe(runtime, memory + 1, LENGTH, told, NULL, &subscription), "not a multiple of the page");
    BAD(hetmem_announce(NULL, memory, LENGTH, HETMEM_EVENT_UNMAP, forbid, NULL), "runtime is NULL");
    BAD(hetmem_announce(runtime, memory, LENGTH, HETMEM_EVENT_UNMAP, NULL, NULL), "change is NULL");
    BAD(hetmem_announce(runtime, memory, LENGTH, HETMEM_EVENT_MIGRATE, forbid, NULL), "event 6 can't be announced");
    BAD(hetmem_announce(runtime, memory, 0, HETMEM_EVENT_UNMAP, forbid, NULL), "positive multiple of the page");
    EXPECT(subscription == NULL && hetmem_read_begin(NULL) == 0 && hetmem_read_retry(NULL, 0) != 0);
    hetmem_subscription_free(NULL);

    hetmem_fault_request request = {HETMEM_WANT_WRITE, 0, HETMEM_DEVICE(0), NULL, 0, NULL};
    BAD(hetmem_range_fault(NULL, memory, LENGTH, &request, pages, PAGES), "runtime is NULL");
    BAD(hetmem_range_fault(runtime, memory, LENGTH, NULL, pages, PAGES), "request is NULL");
    BAD(hetmem_range_fault(runtime, memory, LENGTH, &request, NULL, PAGES), "pages is NULL");
    BAD(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES - 1), "room for 7 answers");
    hetmem_mirror_run runs[PAGES];
    size_t found = 0;
    BAD(hetmem_range_fault_runs(NULL, memory, LENGTH, &request, runs, PAGES, &found), "runtime is NULL");
    BAD(hetmem_range_fault_runs(runtime, memory, LENGTH, NULL, runs, PAGES, &found), "request is NULL");
    BAD(hetmem_range_fault_runs(runtime, memory, LENGTH, &request, NULL, PAGES, &found), "runs is NULL");
    BAD(hetmem_range_fault_runs(runtime, memory, LENGTH, &request, runs, PAGES, NULL), "found is NULL");
    BAD(hetmem_range_fault_runs(runtime, memory, LENGTH, &request, runs, 0, &found), "room for no run");
    BAD(hetmem_range_fault_runs(runtime, memory, LENGTH - 1, &request, runs, PAGES, &found), "positive multiple");
    request.want = 3;
    BAD(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES), "wanted for 3");
    request.want = HETMEM_WANT_SNAPSHOT;
    request.reserved = 1;
    BAD(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES), "reserved must be 0");
    request.reserved = 0;
    hetmem_want wants[PAGES] = {0, 0, 0, 9};
    request.wants = wants;
    BAD(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES), "wanted for 9");
    wants[3] = HETMEM_WANT_WRITE;

    /* A migration is told with its owner, and refuses the answers of before. */
    OK(hetmem_subscribe(runtime, memory, LENGTH, told, &last, &subscription));
    request.subscription = subscription;
    request.seq = hetmem_read_begin(subscription);
    OK(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES));
    EXPECT(pages[3].flags == (HETMEM_PAGE_VALID | HETMEM_PAGE_WRITABLE) && pages[3].place == HETMEM_SYSTEM);
    EXPECT(last.calls == 0 && !hetmem_read_retry(subscription, request.seq));
    hetmem_request out = {HETMEM_DEVICE(0), 0, HETMEM_DEVICE(0)};
    OK(hetmem_migrate(runtime, memory, LENGTH, &out, NULL, 0, NULL));
    EXPECT(last.calls == 1 && last.event == HETMEM_EVENT_MIGRATE && last.owner == HETMEM_DEVICE(0));
    EXPECT(last.address == memory && last.length == LENGTH);
    EXPECT(hetmem_read_retry(subscription, request.seq));
    REFUSED(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES), HETMEM_CHANGED, "changed meanwhile");
    REFUSED(hetmem_range_fault_runs(runtime, memory, LENGTH, &request, runs, PAGES, &found), HETMEM_CHANGED, "changed");
    EXPECT(found == 0);
    request.seq = hetmem_read_begin(subscription);
    OK(hetmem_range_fault(runtime, memory, LENGTH, &request, pages, PAGES));
    same_by_runs(runtime, memory, &request, pages, PAGES);
    same_by_runs(runtime, memory, &request, pages, 1);
    for (int i = 0; i < PAGES; i++) {
        EXPECT(pages[i].place == HETMEM_DEVICE(0) && (pages[i].flags & HETMEM_PAGE_PRIVATE));
        EXPECT(i == 0 || pages[i].frame != pages[0].frame);
    }

    /* Of another owner's the page that is wanted comes home. */
    hetmem_fault_request other = {HETMEM_WANT_SNAPSHOT, 0, HETMEM_DEVICE(1), NULL, 0, wants};
    OK(hetmem_range_fault(runtime, memory, LENGTH, &other, pages, PAGES));
    EXPECT(pages[3].place == HETMEM_SYSTEM && (pages[3].flags & HETMEM_PAGE_WRITABLE) && memory[3 * HETMEM_PAGE_SIZE] == 1);
    for (size_t room = 1; room <= PAGES; room++)
        same_by_runs(runtime, memory, &other, pages, room);

    /* What the program changes is announced; then the page is no longer to be written. */
    OK(hetmem_announce(runtime, memory, HETMEM_PAGE_SIZE, HETMEM_EVENT_PROTECTION, forbid, memory));
    other.want = HETMEM_WANT_WRITE;
    other.wants = NULL;
    REFUSED(hetmem_range_fault(runtime, memory, LENGTH, &other, pages, PAGES), HETMEM_READ_ONLY, "can't be written");
    /* What is before the page that is refused is told: here, nothing. */
    found = PAGES;
    REFUSED(hetmem_range_fault_runs(runtime, memory, LENGTH, &other, runs, PAGES, &found), HETMEM_READ_ONLY,
            "can't be written");
    EXPECT(found == 0);
    OK(hetmem_release(runtime, memory, LENGTH));
    EXPECT(mprotect(memory, LENGTH, PROT_NONE) == 0);
    REFUSED(hetmem_range_fault(runtime, memory, LENGTH, &other, pages, PAGES), HETMEM_NO_ACCESS, "can't be read");
    EXPECT(munmap(memory, LENGTH) == 0);
    REFUSED(hetmem_range_fault(runtime, memory, LENGTH, &other, pages, PAGES), HETMEM_NO_MAPPING, "nothing is mapped");
    REFUSED(hetmem_range_fault_runs(runtime, memory, LENGTH, &other, runs, PAGES, &found), HETMEM_NO_MAPPING,
            "nothing is mapped");

    hetmem_runtime_free(runtime);
    EXPECT(last.event == HETMEM_EVENT_RELEASE);
    hetmem_subscription_free(subscription);
    puts("ok");
    return 0;
}
