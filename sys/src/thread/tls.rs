//! Thread-local storage for threads of which the C library knows nothing.
//!
//! What a compiler's code and the C library's own expect behind the thread pointer, in memory of hetmem's:
//!
//! ```text
//!   x86-64    [ static storage ][ control block ][ DTV ]       arm64    [ control block ][ DTV pointer ][ static storage ][ DTV ]
//!                               └ thread pointer                                         └ thread pointer
//! ```
//!
//! *Static storage* has a part for each module that was loaded with the program, at the same distance from the thread pointer in every thread; it
//! begins as a copy of the module's initial image. The *dynamic thread vector* has the address of each module's part. Its generation is the
//! largest number there is, so that no module that is loaded later makes the C library replace it, which would need the program's `malloc`.
//!
//! *Limits:* variables of libraries that are loaded later have no place here.
#![expect(unsafe_code, reason = "builds a thread control block, and asks the loader for its modules")]

use std::ffi::{c_int, c_void};

use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};

use crate::copy::address;

/// The C library's control block is smaller than this (glibc 2.28 to 2.42: about 2300 bytes).
const CONTROL: usize = 8192;
/// More static storage than any program has: what is further away is a library's that was loaded later.
const FARTHEST: usize = 16 << 20;
/// Modules with thread-local storage that are counted; those of the program's start come first.
const MODULES: usize = 256;
/// The size of an entry of the vector: `union { size_t counter; struct { void *val; void *to_free; } pointer; }`.
const ENTRY: usize = 16;
/// `TLS_DTV_UNALLOCATED`.
const UNALLOCATED: usize = usize::MAX;

/// One module's part of the static storage.
#[derive(Clone, Copy, Default)]
struct Part {
    module: usize,
    /// Its distance from the thread pointer: below it on x86-64, above it on arm64.
    distance: usize,
    image: usize,
    image_bytes: usize,
    bytes: usize,
}

/// What a block must hold, as found out in a thread of the C library's.
pub(super) struct Plan {
    parts: [Part; MODULES],
    count: usize,
    thread_pointer: usize,
    guards: [usize; 2],
}

/// A block, as [`Plan::build`] has made it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    thread_pointer: usize,
}

impl Block {
    /// The thread pointer.
    pub(super) const fn pointer(self) -> usize {
        self.thread_pointer
    }
}

impl Plan {
    /// For a thread with the storage that the calling one has.
    pub(super) fn of_this_thread() -> Self {
        let mut plan =
            Self { parts: [Part::default(); MODULES], count: 0, thread_pointer: thread_pointer(), guards: guards() };
        // SAFETY: calls `note` with the plan, which lives through the call.
        unsafe { libc::dl_iterate_phdr(Some(note), std::ptr::from_mut(&mut plan).cast()) };
        plan
    }

    fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }

    fn static_bytes(&self) -> usize {
        let end = |part: &Part| if cfg!(target_arch = "x86_64") { part.distance } else { part.distance + part.bytes };
        self.parts().iter().map(end).max().unwrap_or(0).next_multiple_of(page())
    }

    fn vector_bytes(&self) -> usize {
        let last = self.parts().iter().map(|part| part.module).max().unwrap_or(0);
        ((last + 2) * ENTRY).next_multiple_of(page())
    }

    /// How much memory the block takes.
    pub(super) fn pages(&self) -> PageCount {
        PageCount::new(((self.static_bytes() + CONTROL + self.vector_bytes()) / page()) as u64)
    }

    /// Makes the block in `memory`, which is as large as [`Plan::pages`] says.
    ///
    /// # Safety
    ///
    /// The memory is zeroed, writable, used by nobody else, and stays.
    pub(super) unsafe fn build(&self, memory: PageRange) -> Block {
        assert!(memory.pages() == self.pages(), "the block fits");
        let first = address(memory.start());
        let thread_pointer = first + if cfg!(target_arch = "x86_64") { self.static_bytes() } else { CONTROL };
        let vector = first + self.static_bytes() + CONTROL + ENTRY;
        let modules = self.vector_bytes() / ENTRY - 2;
        let store = |at: usize, word: usize| {
            let at = std::ptr::with_exposed_provenance_mut::<usize>(at);
            // SAFETY: each caller below names a word of the memory.
            unsafe { at.write(word) };
        };
        // [-1] is the number of modules, [0] the generation.
        store(vector - ENTRY, modules);
        store(vector, usize::MAX);
        (1..=modules).for_each(|module| store(vector + module * ENTRY, UNALLOCATED));
        for part in self.parts() {
            let at = if cfg!(target_arch = "x86_64") {
                thread_pointer - part.distance
            } else {
                thread_pointer + part.distance
            };
            let from = std::ptr::with_exposed_provenance::<u8>(part.image);
            let to = std::ptr::with_exposed_provenance_mut::<u8>(at);
            // SAFETY: the image is a loaded module's, which is never unloaded; the part lies in the static storage.
            unsafe { std::ptr::copy_nonoverlapping(from, to, part.image_bytes) };
            store(vector + part.module * ENTRY, at);
        }
        self.fill_control(thread_pointer, vector, store);
        Block { thread_pointer }
    }

    /// `tcbhead_t` of glibc: itself twice, the vector, that there are several threads, and the guards of stacks and pointers.
    #[cfg(target_arch = "x86_64")]
    fn fill_control(&self, at: usize, vector: usize, store: impl Fn(usize, usize)) {
        let [stack_guard, pointer_guard] = self.guards;
        for (i, word) in [at, vector, at, 1, 0, stack_guard, pointer_guard].into_iter().enumerate() {
            store(at + i * 8, word);
        }
    }

    /// `tcbhead_t` of glibc: the vector.
    #[cfg(target_arch = "aarch64")]
    fn fill_control(&self, at: usize, vector: usize, store: impl Fn(usize, usize)) {
        let _ = self.guards;
        store(at, vector);
    }
}

const fn page() -> usize {
    4096
}

const _: () = assert!(page() as u64 == PAGE_SIZE);

/// The pages of the calling thread's control block: the kernel writes to words in it at the thread's end, and does not wait for a page then.
#[must_use]
pub fn control_block() -> Option<PageRange> {
    let at = thread_pointer();
    let first = if cfg!(target_arch = "x86_64") { at } else { at.checked_sub(page())? };
    let end = VirtAddr::new(at.checked_add(page())? as u64).page_up()?;
    PageRange::between(VirtAddr::new(first as u64).page_down(), end)
}

/// Notes the module's part, if it is in the static storage.
unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _size: usize, plan: *mut c_void) -> c_int {
    // SAFETY: `of_this_thread` passes its plan, and the loader calls from within that call.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    // SAFETY: the loader passes what it knows of a loaded module.
    let info = unsafe { &*info };
    let data = info.dlpi_tls_data.addr();
    let distance = if cfg!(target_arch = "x86_64") {
        plan.thread_pointer.wrapping_sub(data)
    } else {
        data.wrapping_sub(plan.thread_pointer)
    };
    if info.dlpi_tls_modid == 0 || data == 0 || distance > FARTHEST || plan.count == MODULES {
        return 0;
    }
    for i in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: one of the module's program headers, which are mapped as long as the module.
        let header = unsafe { &*info.dlpi_phdr.wrapping_add(i) };
        if header.p_type != libc::PT_TLS {
            continue;
        }
        let number = |n: u64| usize::try_from(n).unwrap_or(0);
        plan.parts[plan.count] = Part {
            module: info.dlpi_tls_modid,
            distance,
            image: number(info.dlpi_addr.wrapping_add(header.p_vaddr)),
            image_bytes: number(header.p_filesz),
            bytes: number(header.p_memsz),
        };
        plan.count += 1;
        break;
    }
    0
}

#[cfg(target_arch = "x86_64")]
fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: the first word of a thread control block is its own address.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags, pure)) };
    pointer
}

/// What the C library protects stacks and saved pointers with; the same in all threads.
#[cfg(target_arch = "x86_64")]
fn guards() -> [usize; 2] {
    let (stack, pointer): (usize, usize);
    // SAFETY: reads a word of the thread control block.
    unsafe { std::arch::asm!("mov {}, fs:0x28", out(reg) stack, options(nostack, readonly, preserves_flags, pure)) };
    // SAFETY: reads a word of the thread control block.
    unsafe { std::arch::asm!("mov {}, fs:0x30", out(reg) pointer, options(nostack, readonly, preserves_flags, pure)) };
    [stack, pointer]
}

#[cfg(target_arch = "aarch64")]
fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads the register that points to the thread control block.
    unsafe { std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, preserves_flags, pure)) };
    pointer
}

/// On arm64 the guards are variables of the loader's, not the threads'.
#[cfg(target_arch = "aarch64")]
const fn guards() -> [usize; 2] {
    [0; 2]
}
