//! What each ioctl does.
//!
//! The table is an [`hetmem::accelerator`]'s. As in the kernel's driver, accesses copy what the table has, and where it has nothing a device fault on
//! all of the rest is made. Every change of pages erases a table's entries, also those that the device itself asks for; the kernel's driver ignores
//! the latter and enters what has moved. The result is made the same here: what a migration of the device's own leaves in place is entered again if
//! it was in the table before.
#![expect(unsafe_code, reason = "adopts and protects memory of the program")]

use std::time::Duration;

use hetmem::accelerator::AccessError;
use hetmem::mappings::eligible;
use hetmem::mirror::{Event, MirrorPage, Place, RangeFaultError, Want};
use hetmem::{FaultPath, KeptReason, PageOutcome, Request, Residency, Select, Target};
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{populate_write, set_aside};
use hetmem_sys::maps::Perms;
use rustix::mm::MprotectFlags;

use crate::abi::{self, Command, Operation};
use crate::file::OpenFile;
use crate::interpose;
use crate::mappings::{Part, is_of_the_kernel, migratable, own_variables};
use crate::memory::{bounce, copy_in, copy_out};
use crate::process::has_forked;
use crate::stacks;

/// Pages that the driver works on at a time.
const BATCH: PageCount = PageCount::new(64);
/// How long it tries again when others change the pages.
const PATIENCE: Duration = Duration::from_secs(1);
/// Why pages stay that may go the next time: others change them, or the kernel has them in its hands for a moment. A hole that was filled is a page
/// on which the kernel works.
const PASSING: [KeptReason; 6] = [
    KeptReason::Raced,
    KeptReason::Occupied,
    KeptReason::NoMemory,
    KeptReason::Shared,
    KeptReason::Pinned,
    KeptReason::Hole,
];
/// How often such pages are asked to migrate again.
const TRIES: usize = 100;
/// How long to wait before, in nanoseconds.
const BACKOFF: u32 = 50_000;
/// How often a device fault may leave nothing in the table.
const FRUITLESS: u32 = 1000;

impl OpenFile {
    /// Carries out `operation`; the results are in `command`.
    pub(crate) fn run(&self, operation: Operation, command: &mut Command) -> Result<(), Errno> {
        let range = command.range()?;
        (command.cpages, command.faults) = (0, 0);
        self.accelerator.settle();
        let result = self.carry_out(operation, command, range);
        if has_forked() {
            // What has migrated has ended the noticing around it.
            self.devices.runtime.notice_copies();
        }
        result
    }

    fn carry_out(&self, operation: Operation, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        match operation {
            Operation::Read => self.read(command, range),
            Operation::Write => self.write(command, range),
            Operation::MigrateToDevice => self.migrate_to_device(command, range),
            Operation::MigrateToSystem => self.migrate_to_system(command, range),
            Operation::Snapshot => self.snapshot(command, range),
            Operation::Exclusive => self.exclusive(command, range),
            Operation::CheckExclusive if self.accelerator.any_exclusive(range) => Err(Errno::PERM),
            Operation::CheckExclusive => Ok(()),
            Operation::Release => self.empty(),
        }
    }

    fn read(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        let mut bytes = bounce(range.pages())?;
        let mut view = self.accelerator.view();
        self.access(command, range, Want::Read, |page, at| view.read_mapped(page, &mut bytes[at..at + page_size()]))?;
        copy_out(command.ptr, &bytes)?;
        command.cpages = range.pages().get();
        Ok(())
    }

    fn write(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        let mut bytes = bounce(range.pages())?;
        copy_in(command.ptr, &mut bytes)?;
        let mut view = self.accelerator.view();
        self.access(command, range, Want::Write, |page, at| view.write_mapped(page, &bytes[at..at + page_size()]))?;
        command.cpages = range.pages().get();
        Ok(())
    }

    /// Copies page by page; where the table has no entry, all that is left is faulted.
    fn access(
        &self,
        command: &mut Command,
        range: PageRange,
        want: Want,
        mut copy: impl FnMut(VirtAddr, usize) -> Result<(), AccessError>,
    ) -> Result<(), Errno> {
        let mut fruitless = 0;
        for (i, page) in range.iter().enumerate() {
            while let Err(missing) = copy(page, i * page_size()) {
                if !matches!(missing, AccessError::NotMapped(_)) {
                    return Err(errno_of(missing));
                }
                fruitless += 1;
                if fruitless > 1 && is_of_the_kernel(page) {
                    return Err(Errno::FAULT);
                }
                if fruitless > FRUITLESS {
                    return Err(Errno::BUSY);
                }
                let rest = range.slice(PageCount::new(i as u64), range.pages());
                self.accelerator.fault_range(rest, want, PATIENCE).map_err(errno_of)?;
                command.faults += 1;
            }
            fruitless = 0;
        }
        Ok(())
    }

    /// Copies what the table has of `range` to the program; `ENOENT` if a page is not in it.
    fn read_back(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        let mut bytes = bounce(range.pages())?;
        let mut view = self.accelerator.view();
        for (page, bytes) in range.iter().zip(bytes.chunks_mut(page_size())) {
            view.read_mapped(page, bytes).map_err(errno_of)?;
        }
        copy_out(command.ptr, &bytes)?;
        command.cpages = range.pages().get();
        Ok(())
    }

    fn migrate_to_device(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        let (parts, whole) = migratable(range);
        for part in parts.iter().flat_map(batches) {
            self.place(part)?;
        }
        whole?;
        self.read_back(command, range)
    }

    /// Brings what can go to the device of one batch.
    fn place(&self, part: Part) -> Result<(), Errno> {
        for managed in self.adopt(part.range, Perms::READ) {
            for run in self.not_exclusive(managed) {
                let request =
                    Request { target: Target::Device(self.device), select: Select::SYSTEM, owner: Some(self.owner) };
                let migrate = || {
                    self.fill_holes(run)?;
                    let migrated = self.migrate(run, request);
                    self.make_writable(&migrated);
                    Ok(migrated)
                };
                let migrated = if part.perms.contains(Perms::WRITE) {
                    migrate()?
                } else {
                    // Memory whose protection can't be changed does not move.
                    let Ok(migrated) = unprotected(run, part.perms, migrate) else { continue };
                    migrated?
                };
                for arrived in migrated.arrived() {
                    self.accelerator.fault_range(arrived, Want::Snapshot, PATIENCE).map_err(errno_of)?;
                }
                self.enter_again(&migrated);
            }
        }
        Ok(())
    }

    /// Gives holes and zero pages of `range` pages that can migrate; what is on a device stays there.
    fn fill_holes(&self, range: PageRange) -> Result<(), Errno> {
        let mut found = vec![MirrorPage::default(); range.pages().as_usize()];
        self.accelerator.snapshot(range, &mut found, PATIENCE).map_err(errno_of)?;
        let places = self.devices.runtime.residency(range);
        let is_hole = |page: VirtAddr| {
            let i = page.pages_since(range.start()).as_usize();
            let nothing = !found[i].is_valid() || found[i].place() == Some(Place::Zero);
            nothing && !found[i].is_error() && places[i] == Residency::System
        };
        for hole in runs(range, is_hole) {
            self.devices.runtime.populate(hole);
        }
        Ok(())
    }

    fn migrate_to_system(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        let request = Request { target: Target::System, select: self.kind, owner: Some(self.owner) };
        let (parts, whole) = migratable(range);
        for part in parts.iter().flat_map(batches) {
            for run in self.not_exclusive(part.range) {
                let migrated = self.migrate(run, request);
                command.cpages += migrated.moved.iter().filter(|moved| **moved).count() as u64;
                self.enter_again(&migrated);
            }
        }
        whole
    }

    /// Where the kernel divides a huge page it puts the zero page in place of pages that hold zeros, and moves that. In a coherent device's place it
    /// becomes a page by a write, as the device's pages are to be written.
    fn make_writable(&self, migrated: &Migrated) {
        if self.kind == Select::DEVICE_COHERENT {
            for run in migrated.arrived() {
                // What can't be written now stays the zero page until it is.
                let _ = populate_write(run);
            }
        }
    }

    /// The pages of `range` but those that are held exclusively, which are none to a migration.
    fn not_exclusive(&self, range: PageRange) -> Vec<PageRange> {
        runs(range, |page| !self.accelerator.is_exclusive(page))
    }

    /// Migrates what `request` selects of a batch.
    fn migrate(&self, range: PageRange, request: Request) -> Migrated {
        let runtime = &self.devices.runtime;
        let known: Vec<bool> = range.iter().map(|page| self.accelerator.entry(page).is_some()).collect();
        let mut moved = vec![false; known.len()];
        let index = |page: VirtAddr| page.pages_since(range.start()).as_usize();
        // Everybody is told of the whole batch, whatever moves.
        runtime.announce(range, Event::Migrate(Some(self.owner)), || {
            let places = runtime.residency(range);
            // What rests in no device's frame is not selected when pages go home.
            let selected =
                |page: VirtAddr| request.target != Target::System || places[index(page)] != Residency::System;
            for run in runs(range, selected) {
                for _ in 0..TRIES {
                    let outcomes = runtime.migrate(run, request);
                    let pages = run.iter().zip(outcomes.as_slice());
                    pages.filter(|(_, o)| **o == PageOutcome::Moved).for_each(|(page, _)| moved[index(page)] = true);
                    if PASSING.iter().all(|reason| outcomes.kept(*reason).is_zero()) {
                        break;
                    }
                    hetmem_sys::thread::backoff_sleep(BACKOFF);
                }
            }
        });
        Migrated { range, known, moved }
    }

    /// Enters in the table again what has stayed.
    fn enter_again(&self, migrated: &Migrated) {
        for run in migrated.stayed() {
            // What can't be entered is missing, as it is to everybody.
            let _ = self.accelerator.fault_range(run, Want::Read, PATIENCE);
        }
    }

    fn snapshot(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        let mut at = PageCount::ZERO;
        while at < range.pages() {
            let batch = range.slice(at, BATCH);
            let mut found = vec![MirrorPage::default(); batch.pages().as_usize()];
            self.accelerator.snapshot(batch, &mut found, PATIENCE).map_err(errno_of)?;
            let bytes: Vec<u8> = found.iter().map(|page| self.describe(*page)).collect();
            let to = command.ptr.get().checked_add(at.get()).ok_or(Errno::FAULT)?;
            copy_out(VirtAddr::new(to), &bytes)?;
            at += batch.pages();
            command.cpages = at.get();
        }
        Ok(())
    }

    fn describe(&self, page: MirrorPage) -> u8 {
        if page.is_error() {
            return abi::PROT_ERROR;
        }
        let Some(place) = page.place() else { return abi::PROT_NONE };
        let access = if page.is_writable() { abi::PROT_WRITE } else { abi::PROT_READ };
        let [pmd, pud] = abi::ORDERS;
        let size = match page.order() {
            // A device's pages are small. Where ordinary memory plays the device, the kernel may have made a huge page of them behind its back.
            _ if matches!(place, Place::Device(_)) => 0,
            order if order == pmd => abi::PROT_PMD,
            order if order == pud => abi::PROT_PUD,
            _ => 0,
        };
        let class = match place {
            Place::Device(_) if page.is_private() => abi::PROT_DEV_PRIVATE_LOCAL,
            Place::Device(frame) if frame.device == self.device => abi::PROT_DEV_COHERENT_LOCAL,
            Place::Device(_) => abi::PROT_DEV_COHERENT_REMOTE,
            // A huge page of zeros is an ordinary one to the driver.
            Place::Zero if size == 0 => abi::PROT_ZERO,
            Place::Zero | Place::System => 0,
        };
        class | access | size
    }

    fn exclusive(&self, command: &mut Command, range: PageRange) -> Result<(), Errno> {
        for batch in batches(&Part { range, perms: Perms::NONE }) {
            self.adopt(batch.range, Perms::READ | Perms::WRITE);
            // As a write does: present, nobody else's, and home.
            populate_write(batch.range).map_err(|_| Errno::BUSY)?;
            self.accelerator.make_exclusive(batch.range).map_err(|_| Errno::BUSY)?;
        }
        self.read_back(command, range)
    }

    /// Puts the program's private anonymous memory in `range` under management that allows `needs`, and says which it is.
    fn adopt(&self, range: PageRange, needs: Perms) -> Vec<PageRange> {
        let runtime = &self.devices.runtime;
        let mut alone: Vec<PageRange> = set_aside().collect();
        alone.extend(stacks::living());
        alone.extend(own_variables());
        let found = eligible(range, needs, &alone);
        for part in &found {
            // SAFETY: hetmem allocates from memory that is set aside; stacks, which have the threads' control blocks, are left out; faults are
            // served by the handler thread.
            let _adopted = unsafe { runtime.adopt_rest(*part, FaultPath::Thread) };
        }
        found
    }
}

/// What became of a batch, page by page.
struct Migrated {
    range: PageRange,
    /// Was in the table before.
    known: Vec<bool>,
    moved: Vec<bool>,
}

impl Migrated {
    fn index(&self, page: VirtAddr) -> usize {
        page.pages_since(self.range.start()).as_usize()
    }

    fn arrived(&self) -> Vec<PageRange> {
        runs(self.range, |page| self.moved[self.index(page)])
    }

    fn stayed(&self) -> Vec<PageRange> {
        runs(self.range, |page| self.known[self.index(page)] && !self.moved[self.index(page)])
    }
}

/// Runs `change` while `range` may be written, as pages are moved out of such mappings only.
fn unprotected<R>(range: PageRange, perms: Perms, change: impl FnOnce() -> R) -> Result<R, Errno> {
    // Nobody else changes what is mapped there meanwhile.
    let _alone = interpose::memory::hold_still();
    let exec = if perms.contains(Perms::EXEC) { MprotectFlags::EXEC } else { MprotectFlags::empty() };
    let protect = |flags| {
        let start = std::ptr::with_exposed_provenance_mut(usize::try_from(range.start().get()).unwrap_or(0));
        // SAFETY: a private anonymous mapping of the program's, which allows more for a moment and then what it allowed before.
        unsafe { rustix::mm::mprotect(start, range.pages().as_usize() * page_size(), flags) }
    };
    protect(exec | MprotectFlags::READ | MprotectFlags::WRITE)?;
    let result = change();
    protect(exec | MprotectFlags::READ)?;
    Ok(result)
}

fn page_size() -> usize {
    usize::try_from(PAGE_SIZE).unwrap_or(4096)
}

/// `part` as the driver works on it.
fn batches(part: &Part) -> impl Iterator<Item = Part> + use<> {
    let part = *part;
    let count = part.range.pages().get().div_ceil(BATCH.get());
    (0..count).map(move |i| Part { range: part.range.slice(PageCount::new(i * BATCH.get()), BATCH), ..part })
}

/// The runs of pages of `range` that are `chosen`.
fn runs(range: PageRange, chosen: impl Fn(VirtAddr) -> bool) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for page in range.iter().filter(|page| chosen(*page)).map(PageRange::page_of) {
        match runs.last_mut() {
            Some(last) if last.end() == page.start() => {
                *last = PageRange::between(last.start(), page.end()).unwrap_or(*last);
            }
            _ => runs.push(page),
        }
    }
    runs
}

fn errno_of(error: AccessError) -> Errno {
    match error {
        AccessError::Fault(RangeFaultError::ReadOnly(_)) => Errno::PERM,
        AccessError::Fault(RangeFaultError::Changed) | AccessError::NotExclusive(..) | AccessError::Contended(_) => {
            Errno::BUSY
        }
        AccessError::NotMapped(_) => Errno::NOENT,
        AccessError::Fault(
            RangeFaultError::NoMapping(_) | RangeFaultError::NoAccess(_) | RangeFaultError::Failed(_),
        )
        | AccessError::OutOfRange(_)
        | _ => Errno::FAULT,
    }
}
