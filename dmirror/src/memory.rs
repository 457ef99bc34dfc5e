//! The program's buffers, by their addresses: what can't be accessed is `EFAULT` and never a signal. Nothing is locked here that serving a fault
//! would need.
#![expect(unsafe_code, reason = "writes where the program asked for it")]

use hetmem_core::units::{PAGE_SIZE, PageCount, VirtAddr};
use hetmem_sys::access;
use hetmem_sys::errno::Errno;

/// The kernel copies at most 2 GiB a call.
const CHUNK: usize = 1 << 20;

fn at(start: VirtAddr, offset: usize) -> Result<VirtAddr, Errno> {
    start.get().checked_add(offset as u64).map(VirtAddr::new).ok_or(Errno::FAULT)
}

/// Reads the program's bytes at `from`.
pub(crate) fn copy_in(from: VirtAddr, out: &mut [u8]) -> Result<(), Errno> {
    for (i, chunk) in out.chunks_mut(CHUNK).enumerate() {
        access::read_checked(at(from, i * CHUNK)?, chunk)?;
    }
    Ok(())
}

/// Writes to the program's buffer at `to`.
pub(crate) fn copy_out(to: VirtAddr, bytes: &[u8]) -> Result<(), Errno> {
    for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
        // SAFETY: the program named the buffer to have it written.
        unsafe { access::write_checked(at(to, i * CHUNK)?, chunk) }?;
    }
    Ok(())
}

/// Room for the bytes of `pages` pages between the device and the program. `ENOMEM` where the kernel's `vmalloc` would have none: more than the
/// machine has.
pub(crate) fn bounce(pages: PageCount) -> Result<Vec<u8>, Errno> {
    let machine = rustix::system::sysinfo();
    let bytes = pages.get().checked_mul(PAGE_SIZE).ok_or(Errno::NOMEM)?;
    if bytes / u64::from(machine.mem_unit.max(1)) > machine.totalram {
        return Err(Errno::NOMEM);
    }
    let bytes = usize::try_from(bytes).map_err(|_| Errno::NOMEM)?;
    let mut room = Vec::new();
    room.try_reserve_exact(bytes).map_err(|_| Errno::NOMEM)?;
    room.resize(bytes, 0);
    Ok(room)
}
