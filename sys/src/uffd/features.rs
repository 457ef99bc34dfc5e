//! The features of userfaultfd that a kernel may have and a context may turn on.

use crate::flags::flags;

flags! {
    /// A set of userfaultfd features (`UFFD_FEATURE_*`).
    Features {
        /// Write-protection faults are reported (5.7).
        PAGEFAULT_FLAG_WP = 1 << 0,
        /// A fork hands over a descriptor for the child. Needs `CAP_SYS_PTRACE`.
        EVENT_FORK = 1 << 1,
        /// `mremap(2)` is reported.
        EVENT_REMAP = 1 << 2,
        /// `MADV_DONTNEED`, `MADV_FREE` and the like are reported.
        EVENT_REMOVE = 1 << 3,
        /// Missing pages of hugetlbfs can be trapped.
        MISSING_HUGETLBFS = 1 << 4,
        /// Missing pages of shared memory can be trapped.
        MISSING_SHMEM = 1 << 5,
        /// `munmap(2)` is reported.
        EVENT_UNMAP = 1 << 6,
        /// A touch of a missing page raises SIGBUS in place of an event.
        SIGBUS = 1 << 7,
        /// Events name the thread that touched.
        THREAD_ID = 1 << 8,
        /// Minor faults of hugetlbfs can be trapped.
        MINOR_HUGETLBFS = 1 << 9,
        /// Minor faults of shared memory can be trapped.
        MINOR_SHMEM = 1 << 10,
        /// Events carry the address to the byte.
        EXACT_ADDRESS = 1 << 11,
        /// Write protection works on hugetlbfs and shared memory.
        WP_HUGETLBFS_SHMEM = 1 << 12,
        /// Write protection covers pages that were never touched.
        WP_UNPOPULATED = 1 << 13,
        /// Pages can be poisoned.
        POISON = 1 << 14,
        /// Write-protection faults resolve themselves and leave a mark (6.7).
        WP_ASYNC = 1 << 15,
        /// Pages can be moved (6.8).
        MOVE = 1 << 16,
    }
}

#[cfg(test)]
mod tests {
    use super::Features;

    #[test]
    fn names_are_the_kernels() {
        let names: Vec<_> = (Features::MOVE | Features::EVENT_FORK).names().collect();
        assert_eq!(names, ["EVENT_FORK", "MOVE"]);
        assert_eq!(Features::MOVE.bits(), 1 << 16);
    }
}
