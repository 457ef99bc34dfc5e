/*
 * hetmem.h: heterogeneous memory management in user space.
 *
 * A runtime manages memory of this process: it moves pages to devices and back while threads use them, and pointers stay the same. A
 * page on a coherent device is used in place. A page on a private device comes home when it is touched. The library is
 * libhetmem.so; README.md says what it needs, ARCHITECTURE.md how it works.
 *
 * Conventions
 *
 *   Errors    A function that can fail returns a hetmem_error, which the caller frees, or NULL if all went well. When it fails, nothing
 *             has changed and nothing was written through its pointers, unless its description says otherwise. The only exception to
 *             this is memory of hetmem's own: where there is none left (4 GiB, or what RLIMIT_AS leaves) the process ends. So it does, with a
 *             message, on a defect of hetmem's own; no exception or panic ever crosses into the caller.
 *   Pointers  May not be NULL unless it is said so. A NULL or misaligned pointer is refused with HETMEM_INVALID_INPUT; any other pointer
 *             that is not what it should be can't be told from a good one.
 *   Handles   Opaque; each is freed by its own function, once. Freeing NULL does nothing.
 *   Units     Lengths are in bytes; addresses and lengths of ranges are multiples of the page, HETMEM_PAGE_SIZE. Times are in nanoseconds.
 *   Threads   Functions may be called by any thread at any time, also with the same runtime, where no exception is named: those are a
 *             hetmem_config, which one thread at a time may use, and freeing, which no other use of the handle may overlap.
 *             Signal handlers may call nothing of it. None is a cancellation point (pthreads(7)), nor may a thread be cancelled asynchronously in one.
 *   Numbers   Of choices are unsigned integers with named values; a number without a name is refused with HETMEM_INVALID_INPUT.
 *   fork      A forked child has no runtime: functions refuse its parent's handles with HETMEM_INVALID_INPUT, and freeing them there does
 *             nothing. It may make a runtime of its own. It finds all bytes: what is on private devices comes home before the fork (or is copied
 *             into the child, where the parent has CAP_SYS_PTRACE), and until that is over migrations keep pages as HETMEM_KEPT_RACED. This is so of
 *             fork(3) but not of _Fork(3) and bare system calls, after which a child whose parent lacks that privilege reads zeros there.
 *             hetmem_config_forks_exec_at_once() spares programs the wait whose children need none of it.
 *   Agent     A program that runs under `hetmem run` is managed by the agent and gets no runtime of its own (HETMEM_HOST_REFUSES). It can give the
 *             agent advice: hetmem_advise() with NULL for the runtime.
 *
 * Every function is C99 and can be used from C++.
 */
#ifndef HETMEM_H
#define HETMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --- Version ------------------------------------------------------------------------------------------------------------------ */

#define HETMEM_VERSION_MAJOR 0
#define HETMEM_VERSION_MINOR 1
#define HETMEM_VERSION_PATCH 0
/* The version of this header as one number, to compare with hetmem_version(). */
#define HETMEM_VERSION ((HETMEM_VERSION_MAJOR << 16) | (HETMEM_VERSION_MINOR << 8) | HETMEM_VERSION_PATCH)

/*
 * The version of the library: major << 16 | minor << 8 | patch. What is written for one header runs with libraries of the same SONAME
 * (libhetmem.so.0) and of no older version.
 */
uint32_t hetmem_version(void);

/* The same as text, "0.1.0"; static. */
const char *hetmem_version_string(void);

/* --- Errors ------------------------------------------------------------------------------------------------------------------- */

/* Why a call was refused. It may be read by several threads at once. */
typedef struct hetmem_error hetmem_error;

/* Who has to do something about an error. Later versions may have more codes. */
enum {
    /* There is no error. */
    HETMEM_OK = 0,
    /* The caller: an argument is out of range or contradicts another. */
    HETMEM_INVALID_INPUT = 1,
    /* The operator: the host lacks a feature or a permission; the message names what would fix it. */
    HETMEM_HOST_REFUSES = 2,
    /* The operator: the host is out of memory, descriptors or the like. */
    HETMEM_EXHAUSTED = 3,

    /* Of hetmem_range_fault() only, whose description says what they mean. */
    HETMEM_NO_MAPPING = 16,
    HETMEM_NO_ACCESS = 17,
    HETMEM_READ_ONLY = 18,
    HETMEM_FAULT_FAILED = 19,
    HETMEM_CHANGED = 20
};

/* The code of an error; HETMEM_OK for NULL. */
uint32_t hetmem_error_code(const hetmem_error *error);

/* What is wrong, in one line of UTF-8 for people; lives as long as the error. "no error" for NULL. */
const char *hetmem_error_message(const hetmem_error *error);

/* Frees an error. */
void hetmem_error_free(hetmem_error *error);

/* --- Runtimes ----------------------------------------------------------------------------------------------------------------- */

/* What a runtime is to be like. For one thread at a time. */
typedef struct hetmem_config hetmem_config;

/* A runtime: its devices, the memory that it manages, and a thread that serves faults. */
typedef struct hetmem_runtime hetmem_runtime;

/* Makes a configuration without devices, for the caller to free. */
hetmem_error *hetmem_config_new(hetmem_config **out);

/* Frees a configuration. Runtimes that were made from it stay. */
void hetmem_config_free(hetmem_config *config);

/*
 * Adds a device, described as for `hetmem run --device`: TYPE:BACKEND[=ARG][,KEY=VALUE]..., for example
 * "private:emulated,size=256M,latency=2us", "coherent:emulated" or "private:compressed,size=4G,memory=1G". The device's index is its place in
 * the order of these calls, from 0.
 *
 * "coherent:dax=/dev/daxX.Y" is for memory from hetmem_map() only: README.md, "In place on device-DAX", has the rules.
 *
 * HETMEM_INVALID_INPUT: the text can't be read, is not UTF-8, contradicts an earlier device or this machine's memory, or there would be
 * more than 16 devices. The configuration is as before then.
 */
hetmem_error *hetmem_config_add_device(hetmem_config *config, const char *spec);

/*
 * Keeps at most this many bytes of populated system pages in stock for pages on their way home; 64 MiB unless said otherwise. More makes
 * large migrations home faster, and uses as much memory. While migrations go on, up to 4 GiB more of what pages have left may stay, and at most
 * a quarter of what the machine and the control group have left; half a second after the last one it is given back.
 *
 * HETMEM_INVALID_INPUT: not a multiple of the page, or more than this machine's memory.
 */
hetmem_error *hetmem_config_set_stock(hetmem_config *config, uint64_t bytes);

/* Gives system memory that pages have left back at once, as far as it is beyond the stock. */
hetmem_error *hetmem_config_strict_stock(hetmem_config *config);

/*
 * Allows memory with HETMEM_FAULT_SIGBUS: the runtime installs a handler for SIGBUS, which passes on what is not hetmem's. The program
 * must not replace it while the runtime exists.
 */
hetmem_error *hetmem_config_allow_sigbus(hetmem_config *config);

/*
 * Says that forked children of this program execute another program at once, or at least touch no managed memory, so that forks need not wait for
 * pages: a child reads zeros where its parent had pages on private devices, unless the parent has CAP_SYS_PTRACE.
 */
hetmem_error *hetmem_config_forks_exec_at_once(hetmem_config *config);

/*
 * Starts a runtime, for the caller to free. The configuration can be used again.
 *
 * HETMEM_INVALID_INPUT: a device can't be made as described.
 * HETMEM_HOST_REFUSES: userfaultfd can't be used (the message says what would fix it), or the program runs under `hetmem run`.
 * HETMEM_EXHAUSTED: the host has no memory, thread or descriptor for it.
 */
hetmem_error *hetmem_runtime_new(const hetmem_config *config, hetmem_runtime **out);

/*
 * Frees the handle. The runtime itself ends when the handles of all its mappings are freed too: it brings every page home, ends all
 * management, and stops its thread. Contents of adopted memory are whole afterwards.
 */
void hetmem_runtime_free(hetmem_runtime *runtime);

/* --- Devices ------------------------------------------------------------------------------------------------------------------ */

/* Memory types. */
enum {
    /* The CPU can't address it: a touch brings the page home. */
    HETMEM_DEVICE_PRIVATE = 1,
    /* The CPU uses it in place. */
    HETMEM_DEVICE_COHERENT = 2
};

/* A device as it was made. */
typedef struct hetmem_device_info {
    uint64_t capacity_bytes;
    /* HETMEM_DEVICE_PRIVATE or HETMEM_DEVICE_COHERENT. */
    uint32_t memory_type;
    /* Its name, at most 32 characters and a NUL. */
    char name[36];
} hetmem_device_info;

/* The number of devices; 0 for NULL. */
size_t hetmem_device_count(const hetmem_runtime *runtime);

/*
 * Describes a device.
 *
 * HETMEM_INVALID_INPUT: there is no device of this index.
 */
hetmem_error *hetmem_device_get(const hetmem_runtime *runtime, uint32_t index, hetmem_device_info *out);

/* Where a page is, or is to go: system memory or a device. */
typedef uint32_t hetmem_place;

/* System memory; of a page that was never written: nowhere yet. */
#define HETMEM_SYSTEM ((hetmem_place)0)
/* The device of this index. */
#define HETMEM_DEVICE(index) ((hetmem_place)(index) + 1)
/* On its way; an answer of hetmem_residency() only. */
#define HETMEM_MIGRATING ((hetmem_place)UINT32_MAX)

/* --- Memory ------------------------------------------------------------------------------------------------------------------- */

/* How touches of pages that are away are served. */
typedef uint32_t hetmem_fault_path;
enum {
    /* By the runtime's thread; system calls on such pages are served too. */
    HETMEM_FAULT_THREAD = 0,
    /* By the touching thread, after hetmem_config_allow_sigbus(): faster, but a system call on such a page fails with EFAULT. */
    HETMEM_FAULT_SIGBUS = 1
};

/* Managed memory that hetmem has mapped. */
typedef struct hetmem_mapping hetmem_mapping;

/*
 * Maps `length` bytes of managed memory that read as zeros, for the caller to free.
 *
 * HETMEM_INVALID_INPUT: the length is 0 or not a multiple of the page, or HETMEM_FAULT_SIGBUS was not allowed.
 * HETMEM_EXHAUSTED, HETMEM_HOST_REFUSES: the host doesn't give the address space.
 */
hetmem_error *hetmem_map(hetmem_runtime *runtime, size_t length, hetmem_fault_path path, hetmem_mapping **out);

/*
 * Maps `length` bytes of a file from byte `offset` on, to be read, and manages them, for the caller to free. `file` is a descriptor of it, which may
 * be closed then. Pages of a file move by blocks of 2 MiB of address space, or what there is of one at the ends of the mapping. Nobody
 * unmaps, moves or protects what is mapped so but hetmem.
 *
 * While pages of the file are on a device there is a read lease on it, F_SETLEASE of fcntl(2): who opens it for writing waits until they are home,
 * and is refused (EWOULDBLOCK) if he opens with O_NONBLOCK. Without a lease its pages stay home, with an outcome that says why. The process's POSIX
 * locks on the file stay. What is mapped so takes address space twice.
 *
 * HETMEM_INVALID_INPUT: `offset` is not a multiple of the page, the file does not have so many bytes, `length` is 0, or `file` is no regular file, not
 * open to be read, or has a lease for writing.
 * HETMEM_EXHAUSTED, HETMEM_HOST_REFUSES: the file can't be opened once more, by /proc, or the host doesn't give the address space.
 */
hetmem_error *hetmem_map_file(hetmem_runtime *runtime, int file, uint64_t offset, size_t length, hetmem_mapping **out);

/* Unmaps the memory: nobody may touch it any more. Its runtime need not have a handle any more. */
void hetmem_mapping_free(hetmem_mapping *mapping);

/* The address of the first byte, aligned to 2 MiB; NULL for NULL. Never changes. */
void *hetmem_mapping_address(const hetmem_mapping *mapping);

/* The length in bytes; 0 for NULL. */
size_t hetmem_mapping_length(const hetmem_mapping *mapping);

/*
 * Puts existing private anonymous memory of the process under management, as it is. Pages that can't be moved are kept, with a reason,
 * when they are asked to move.
 *
 * Adopt what the program has mapped itself, by mmap() or as whole pages. Until hetmem_release() or the end of the runtime: no thread's
 * stack or control block and no control data of the C library (whose heap holds both its own and a few of this library's threads')
 * lies in the range; and with HETMEM_FAULT_SIGBUS no system call is given an address in it whose page is on a private device.
 *
 * HETMEM_INVALID_INPUT: the range is empty, misaligned or past the end of the address space, a part of it is managed already or is
 * hetmem's own, or HETMEM_FAULT_SIGBUS was not allowed.
 */
hetmem_error *hetmem_adopt(hetmem_runtime *runtime, void *address, size_t length, hetmem_fault_path path);

/*
 * Brings the pages of the range home and ends its management, whether it was adopted or mapped. Parts that are not managed are passed
 * over.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), or a page could not come home, for the reason in the message; the
 * range stays managed then, and advice to pin is taken back.
 */
hetmem_error *hetmem_release(hetmem_runtime *runtime, void *address, size_t length);

/* What is known of the use of a range. */
typedef uint32_t hetmem_advice;
enum {
    /* Its pages are best kept on the device that `place` names: policies send them there first, and HETMEM_ADVICE_SOON brings them there. */
    HETMEM_ADVICE_PREFERRED_LOCATION = 1,
    /* No place is preferred: undoes HETMEM_ADVICE_PREFERRED_LOCATION and HETMEM_ADVICE_READ_MOSTLY. */
    HETMEM_ADVICE_NO_PREFERENCE = 2,
    /* Keep here: migrations keep its pages where they are (HETMEM_KEPT_ADVISED). Faults still bring private pages home. */
    HETMEM_ADVICE_PIN = 3,
    /* Its pages may move again. */
    HETMEM_ADVICE_UNPIN = 4,
    /*
     * Processors and devices read its pages, and seldom write them: they are best kept on the first coherent device that has room, where both read them
     * in place. There is one copy of each page, as ever. Takes the place of a preferred location.
     */
    HETMEM_ADVICE_READ_MOSTLY = 5,
    /* It is used soon: its pages are brought to where they are best kept, which is system memory if nothing else is preferred. */
    HETMEM_ADVICE_SOON = 6,
    /* It is not used for a while: a policy that has to make room takes its pages first, once. A runtime of one's own has no policy. */
    HETMEM_ADVICE_NOT_SOON = 7,
    /*
     * Its contents are given up: it reads as zeros on return, and takes no memory. As madvise() does for MADV_DONTNEED, but also in locked memory and on
     * coherent DAX devices. What other threads write there before the return may be lost. What is written there soon after may be kept by migrations as
     * HETMEM_KEPT_RACED for a while, also as after madvise().
     */
    HETMEM_ADVICE_DISCARD = 8
};

/*
 * Gives advice for a range. It goes with the pages where these are moved (mremap), and ends with their mapping or its management. `place` is a device
 * for HETMEM_ADVICE_PREFERRED_LOCATION, and HETMEM_SYSTEM for all other advice.
 *
 * `runtime` may be NULL in a program under `hetmem run`: then it is said to the agent that manages the program, HETMEM_DEVICE(index) is the device of
 * that place in the order of its command line, and HETMEM_ADVICE_SOON is done in the background. Memory that the program has just mapped is managed by
 * then; private anonymous memory that can be read and written is, but for main stacks and what hetmem itself uses. Children that are forked have the
 * advice, too.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), or there is no such advice or device; or a part of the range is not managed: the
 * others have the advice then, but HETMEM_ADVICE_DISCARD changes nothing. Nor does it where a part is pinned on a coherent DAX device.
 * HETMEM_HOST_REFUSES: `runtime` is NULL, and no agent manages this program.
 * HETMEM_EXHAUSTED, HETMEM_HOST_REFUSES: the kernel refuses HETMEM_ADVICE_DISCARD, as where nothing is mapped; parts may be discarded.
 */
hetmem_error *hetmem_advise(hetmem_runtime *runtime, const void *address, size_t length, hetmem_advice advice,
                            hetmem_place place);

/*
 * Says where each page of a range is, in order: HETMEM_SYSTEM, HETMEM_DEVICE(index) or HETMEM_MIGRATING. Nothing is moved or touched. Pages that
 * are not managed are HETMEM_SYSTEM. While other threads migrate or touch pages, each answer was right at one moment of the call.
 *
 * `places` has room for `count` answers, which is the number of pages.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), or `count` is not its number of pages.
 */
hetmem_error *hetmem_residency(const hetmem_runtime *runtime, const void *address, size_t length, hetmem_place *places,
                               size_t count);

/* --- Migration ---------------------------------------------------------------------------------------------------------------- */

/* Which pages are asked to move, by where they are. */
enum {
    HETMEM_SELECT_SYSTEM = 1,
    HETMEM_SELECT_DEVICE_PRIVATE = 2,
    HETMEM_SELECT_DEVICE_COHERENT = 4,
    HETMEM_SELECT_ALL = 7
};

/* What is asked of a migration. All zeros means: everything home. */
typedef struct hetmem_request {
    /* HETMEM_SYSTEM or HETMEM_DEVICE(index). */
    hetmem_place target;
    /* A sum of HETMEM_SELECT_...; 0 means HETMEM_SELECT_ALL. */
    uint32_t select;
    /* If not 0, device pages of other owners are left alone. The owner of a device's pages is HETMEM_DEVICE(index). */
    uint64_t owner;
} hetmem_request;

/* What became of a page. Every reason leaves it whole and in one place. Later versions may have more. */
typedef uint8_t hetmem_outcome;
enum {
    /* It is now where it was asked to go. */
    HETMEM_MOVED = 0,
    /* Nothing was ever written there: there is no page to move. */
    HETMEM_KEPT_HOLE = 1,
    /* It was there already. */
    HETMEM_KEPT_ALREADY_THERE = 2,
    /* The request's `select` leaves out pages of this kind. */
    HETMEM_KEPT_NOT_SELECTED = 3,
    /* It lies on a device of another owner than the request's. */
    HETMEM_KEPT_FOREIGN_OWNER = 4,
    /* It belongs to no memory that is managed. */
    HETMEM_KEPT_UNMANAGED = 5,
    /* Advice pins it. */
    HETMEM_KEPT_ADVISED = 6,
    /* It is pinned for DMA. */
    HETMEM_KEPT_PINNED = 7,
    /* Another process maps it too. */
    HETMEM_KEPT_SHARED = 8,
    /* The memory is locked, mlock(2). */
    HETMEM_KEPT_LOCKED = 9,
    /* The memory holds a thread's stack or control block. */
    HETMEM_KEPT_THREAD_STATE = 10,
    /* Another migration, a fault or a change of the mapping was under way. */
    HETMEM_KEPT_RACED = 11,
    /* The device has no free frame. */
    HETMEM_KEPT_NO_FRAME = 12,
    /* Where it was to rest while it moves, another had come to be; there is room elsewhere the next time. */
    HETMEM_KEPT_OCCUPIED = 13,
    /* The host has no memory to spare. */
    HETMEM_KEPT_NO_MEMORY = 14,
    /* A userfaultfd of the program's own watches this memory. */
    HETMEM_KEPT_FOREIGN_USERFAULTFD = 15,
    /* The kernel refuses to trap faults in, or to move, this kind of mapping. */
    HETMEM_KEPT_UNSUPPORTED = 16,
    /* The device reported an error while it copied. */
    HETMEM_KEPT_DEVICE_ERROR = 17,
    /* Pages go there by whole blocks of 2 MiB only, and not all of this one were asked for, or could move. */
    HETMEM_KEPT_PART_OF_BLOCK = 18,
    /* A guard marker is there, MADV_GUARD_INSTALL: what the page held is discarded. */
    HETMEM_KEPT_GUARDED = 19,
    /* The page table has an entry there that is neither a page nor nothing: poison, or a page that a driver of the kernel holds. */
    HETMEM_KEPT_POISONED = 20,
    /* The memory can be written and executed; hetmem's allows no execution, and the kernel moves pages between equals only. */
    HETMEM_KEPT_EXECUTABLE = 21,
    /* The file is open for writing, or somebody waits to open it so. */
    HETMEM_KEPT_FILE_OPEN_FOR_WRITING = 22,
    /* There is no read lease on the file to be had: it is another user's, or its file system has none. */
    HETMEM_KEPT_NO_LEASE = 23,
    /* Bytes of the file can't be read: it ends before them, or there was an error. */
    HETMEM_KEPT_FILE_UNREADABLE = 24
};

/* The name of an outcome, as in the statistics of `hetmem run`: "moved", "hole", ...; "unknown" for others. Static. */
const char *hetmem_outcome_label(hetmem_outcome outcome);

/*
 * Migrates the pages of a range that the request selects. That no page moved is not an error: each page has an outcome.
 *
 * `outcomes` has room for `count` outcomes, in the order of the pages; `count` is the number of pages, or 0 if the caller doesn't want
 * them (then `outcomes` may be NULL). `moved`, if not NULL, gets the number of pages that moved. More than 1 GiB is migrated
 * a GiB at a time.
 *
 * HETMEM_INVALID_INPUT: the range is not one (as for hetmem_adopt()), `count` is neither 0 nor the number of pages, or the request
 * names a device or bits that don't exist. Nothing was moved then.
 */
hetmem_error *hetmem_migrate(hetmem_runtime *runtime, void *address, size_t length, const hetmem_request *request,
                             hetmem_outcome *outcomes, size_t count, uint64_t *moved);

/* A range of memory: `length` bytes from `address` on. */
typedef struct hetmem_range {
    void *address;
    size_t length;
} hetmem_range;

/*
 * Migrates several ranges at once, which is cheaper than one by one. As hetmem_migrate(), with the outcomes of all ranges one after
 * the other; `count` is the number of all their pages, or 0. At most 1,048,576 ranges; `ranges` may be NULL if there are none.
 */
hetmem_error *hetmem_migrate_all(hetmem_runtime *runtime, const hetmem_range *ranges, size_t range_count,
                                 const hetmem_request *request, hetmem_outcome *outcomes, size_t count, uint64_t *moved);

/*
 * Brings the pages in `count` frames of a device home, from frame `first` on, without need of knowing where they belong. `moved`, if not NULL, gets the
 * number of pages that came; a page that can't come stays where it is.
 *
 * HETMEM_INVALID_INPUT: there is no device of this index, or it has no such frames (it has capacity_bytes / HETMEM_PAGE_SIZE), or `count` is 0.
 */
hetmem_error *hetmem_evict(hetmem_runtime *runtime, uint32_t device, uint64_t first, uint64_t count, uint64_t *moved);

/*
 * Takes a device out of use: no page goes there any more (HETMEM_KEPT_NO_FRAME), and all that are there come home.
 *
 * HETMEM_INVALID_INPUT: there is no device of this index, or pages could not come home. These are where they were, come home with a touch as
 * ever, and this may be called again.
 */
hetmem_error *hetmem_device_remove(hetmem_runtime *runtime, uint32_t index);

/*
 * Takes a device that was removed into use again.
 *
 * HETMEM_INVALID_INPUT: there is no device of this index.
 */
hetmem_error *hetmem_device_restore(hetmem_runtime *runtime, uint32_t index);

/* --- Statistics --------------------------------------------------------------------------------------------------------------- */

/*
 * What was counted since the runtime began. Later versions add fields at the end: hence the size that is passed. Each number is whole;
 * while the runtime is busy they need not agree with one another.
 */
typedef struct hetmem_statistics {
    /* Bytes under management. */
    uint64_t adopted_bytes;
    /* Pages moved to a device, from system memory or another device. */
    uint64_t pages_migrated_to_device;
    /* Pages moved home, by request or by a touch. */
    uint64_t pages_migrated_to_system;
    /* Touches of pages that were away. */
    uint64_t cpu_faults;
    /* Bytes copied between frames. */
    uint64_t bytes_copied;
    /* Failures that were not the program's and were survived. */
    uint64_t errors;
    /* Time from a touch to its return, as the program waits, in ns: of half of the touches at most, of 99 %, and the longest. */
    uint64_t fault_latency_p50_ns;
    uint64_t fault_latency_p99_ns;
    uint64_t fault_latency_max_ns;
    /* Pages that were kept where they were, by reason: pages_kept[HETMEM_KEPT_HOLE] and so on. */
    uint64_t pages_kept[32];
} hetmem_statistics;

/*
 * Reads the runtime's counters; `size` is sizeof(hetmem_statistics). Fields that the library doesn't know are set to 0.
 *
 * HETMEM_INVALID_INPUT: `size` is 0 or not a multiple of 8.
 */
hetmem_error *hetmem_statistics_get(const hetmem_runtime *runtime, hetmem_statistics *out, size_t size);

/* What was counted of one device. */
typedef struct hetmem_device_statistics {
    /* Bytes of frames that hold a page of the program. */
    uint64_t used_bytes;
    /* The most that it ever was. */
    uint64_t peak_used_bytes;
    /* Pages that were found elsewhere than on the device. */
    uint64_t stray_pages;
} hetmem_device_statistics;

/*
 * Reads the counters of one device; `size` is sizeof(hetmem_device_statistics), as for hetmem_statistics_get().
 *
 * HETMEM_INVALID_INPUT: there is no device of this index, or `size` is 0 or not a multiple of 8.
 */
hetmem_error *hetmem_device_statistics_get(const hetmem_runtime *runtime, uint32_t index, hetmem_device_statistics *out,
                                           size_t size);

/* The page, in bytes: the same on every machine that hetmem runs on. */
#define HETMEM_PAGE_SIZE ((size_t)4096)

#ifdef __cplusplus
}
#endif

/* Mirrors: devices that keep a table of where the program's pages are. */
#include "hetmem_mirror.h"

#endif
