/*
 * hetmem_mirror.h: the part of hetmem.h about mirrors, with its conventions. Include hetmem.h.
 */
#ifndef HETMEM_MIRROR_H
#define HETMEM_MIRROR_H

#include "hetmem.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A device that uses the program's pages keeps a table of its own of where they are. It subscribes to changes of a range, and fills the table by
 * this rule:
 *
 *     do {
 *         seq = hetmem_read_begin(subscription);
 *         hetmem_range_fault(...) with the subscription and seq; HETMEM_CHANGED: start over
 *         lock the table
 *         if (!hetmem_read_retry(subscription, seq)) fill the table, unlock and stop
 *         unlock the table
 *     } while (1);
 *
 * and its callback locks the table, calls hetmem_notice_set_seq(), erases what the notice names, and unlocks.
 *
 * Callbacks run in whichever thread changes pages, before they change. They may call nothing of this library but the functions of the notice, touch
 * no managed memory, and take no lock under which anybody does either (except for hetmem_read_retry()). What the program does by
 * itself is told too late or, as mprotect() and all changes of memory that is not managed, never: use hetmem_announce().
 */

/* Tells a callback of changes in a range, until it is freed. */
typedef struct hetmem_subscription hetmem_subscription;

/* What a callback is told; valid until it returns, and never NULL. */
typedef struct hetmem_notice hetmem_notice;

/* Is called with the pointer that was passed to hetmem_subscribe(), by any thread, also by several at once. Must return. */
typedef void (*hetmem_callback)(const hetmem_notice *notice, void *user);

/* Why pages are about to be something else. */
typedef uint32_t hetmem_event;
enum {
    /* The addresses end to be mapped, or are mapped to something else (munmap, mremap). */
    HETMEM_EVENT_UNMAP = 1,
    /* The contents are dropped (MADV_DONTNEED, MADV_FREE). */
    HETMEM_EVENT_CLEAR = 2,
    /* What the mapping allows changes (mprotect). */
    HETMEM_EVENT_PROTECTION = 3,
    /* What pages allow changes, and the mapping's protection stays (fork). */
    HETMEM_EVENT_PAGE_PROTECTION = 4,
    /* The runtime ends; the last event of a subscription. */
    HETMEM_EVENT_RELEASE = 5,
    /* The pages move, at the request of hetmem_notice_owner(). */
    HETMEM_EVENT_MIGRATE = 6,
    /* hetmem_notice_owner() takes the pages for itself, or, if that is 0, they are given back to all. */
    HETMEM_EVENT_EXCLUSIVE = 7
};

/*
 * Subscribes to changes in a range, managed or not. `user` may be NULL. The subscription is the caller's to free, before or after the runtime; it
 * does not keep the runtime alive.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), or the callback is NULL.
 */
hetmem_error *hetmem_subscribe(hetmem_runtime *runtime, const void *address, size_t length, hetmem_callback callback,
                               void *user, hetmem_subscription **out);

/* Ends a subscription. Waits until its callback is not running and will not run: so not by a callback, nor with a lock that it takes. */
void hetmem_subscription_free(hetmem_subscription *subscription);

/* Waits until nothing of the range is being changed, and names the state that it is in. 0 for NULL. Not by a callback. */
uint64_t hetmem_read_begin(const hetmem_subscription *subscription);

/* Whether the range has changed since: then not 0, as for NULL. With the lock held that the callback takes. */
int32_t hetmem_read_retry(const hetmem_subscription *subscription, uint64_t seq);

/* The first address of what is about to change, as far as the subscription's range has it. */
void *hetmem_notice_address(const hetmem_notice *notice);

/* Its length in bytes. */
size_t hetmem_notice_length(const hetmem_notice *notice);

/* Why. */
hetmem_event hetmem_notice_event(const hetmem_notice *notice);

/* The request's owner, for HETMEM_EVENT_MIGRATE and HETMEM_EVENT_EXCLUSIVE; 0 if there is none. */
uint64_t hetmem_notice_owner(const hetmem_notice *notice);

/*
 * Whether the callback may wait for who accesses the program's memory by its address; such an access may itself wait for a fault. If 0, the
 * program's change has been made already.
 */
int32_t hetmem_notice_may_wait(const hetmem_notice *notice);

/* Makes all readers that began before start over. A callback that leaves it out says that the change does not concern it. */
void hetmem_notice_set_seq(const hetmem_notice *notice);

/*
 * Calls `change` with `user`, once, which makes a change to mappings in the range that the library can't see, or sees too late. Mirrors are told before,
 * and fill no table until it is done: `change` must wait for none that does. `event` is one of the first four.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), the event is another, or `change` is NULL. It was not called then.
 */
hetmem_error *hetmem_announce(hetmem_runtime *runtime, const void *address, size_t length, hetmem_event event,
                              void (*change)(void *user), void *user);

/* What is asked of a page; each asks for all that those before it ask for. */
typedef uint32_t hetmem_want;
enum {
    /* Only to know: nothing is faulted in. */
    HETMEM_WANT_SNAPSHOT = 0,
    /* To read it. */
    HETMEM_WANT_READ = 1,
    /* To write it. */
    HETMEM_WANT_WRITE = 2
};

/* What hetmem_range_fault() is asked for. All zeros: a snapshot. */
typedef struct hetmem_fault_request {
    /* What is asked of every page. */
    hetmem_want want;
    /* 0. */
    uint32_t reserved;
    /* Whose private frames are answered as they are, HETMEM_DEVICE(index); those of others come home. 0: of nobody. */
    uint64_t owner;
    /* If not NULL, the call gives up as soon as this subscription's range has changed since `seq`. */
    const hetmem_subscription *subscription;
    uint64_t seq;
    /* If not NULL, what is asked of each page besides, in order. */
    const hetmem_want *wants;
} hetmem_fault_request;

/* Bits of hetmem_mirror_page.flags. */
enum {
    /* There is a page, which can be read. */
    HETMEM_PAGE_VALID = 1,
    /* It can be written, too. */
    HETMEM_PAGE_WRITABLE = 2,
    /* Nothing can be there: no mapping, or none that can be read. */
    HETMEM_PAGE_ERROR = 4,
    /* It reads as zeros until it is written, and is nowhere. */
    HETMEM_PAGE_ZERO = 8,
    /* It is in a frame that only its device can use. */
    HETMEM_PAGE_PRIVATE = 16
};

/* Where a page is and what it allows. */
typedef struct hetmem_mirror_page {
    /* HETMEM_SYSTEM or HETMEM_DEVICE(index). */
    hetmem_place place;
    /* The frame's number on that device. */
    uint32_t frame;
    /* HETMEM_PAGE_... */
    uint32_t flags;
    /* It is part of 2^order pages that are mapped as one; they may reach beyond the range. */
    uint32_t order;
} hetmem_mirror_page;

/*
 * Says of each page of a range, managed or not, where it is and what it allows, and faults pages in as far as that is asked for. The answers may be
 * used only under the rule above. `pages` has room for `count` answers, which is the number of pages. Not by a callback, nor with a lock that it takes.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), `count` is not its number of pages, or the request is wrong.
 * For these, answers for the pages before the one in the message may have been written:
 * HETMEM_NO_MAPPING: nothing is mapped there (EFAULT). HETMEM_NO_ACCESS: it can't be read (EFAULT). HETMEM_READ_ONLY: it can't be written, and that
 * was asked for (EPERM). HETMEM_FAULT_FAILED: it can't be faulted in (EFAULT). HETMEM_CHANGED: start over (EBUSY).
 */
hetmem_error *hetmem_range_fault(hetmem_runtime *runtime, const void *address, size_t length,
                                 const hetmem_fault_request *request, hetmem_mirror_page *pages, size_t count);

/* Pages that follow one another and are answered alike, in all but their frames. */
typedef struct hetmem_mirror_run {
    /* The first of them. */
    void *address;
    /* Their length in bytes. */
    size_t length;
    /* The first one's answer. If it is in a device's frame (`first.place` is not HETMEM_SYSTEM), so are the others, each in the frame behind that of the
     * one before it. Else theirs is the same. */
    hetmem_mirror_page first;
} hetmem_mirror_run;

/*
 * Answers as hetmem_range_fault() does, by runs: much faster where most pages are alike, as huge pages and pages in frames that follow one another are.
 * `runs` has room for `room` of them, one at least. Those that are told, `*found`, cover the range from its first page on, in order. If they end
 * before it does there was no room for more: then call again, for the rest. (Pages behind them may have been faulted in.) Two that
 * follow one another may be alike.
 *
 * Errors as for hetmem_range_fault(), and HETMEM_INVALID_INPUT: there is room for none. With those that are not HETMEM_INVALID_INPUT the runs
 * end before the page in the message.
 */
hetmem_error *hetmem_range_fault_runs(hetmem_runtime *runtime, const void *address, size_t length,
                                      const hetmem_fault_request *request, hetmem_mirror_run *runs, size_t room,
                                      size_t *found);

#ifdef __cplusplus
}
#endif

#endif
