//! Files that the program has mapped itself.

use hetmem_core::outcome::KeptReason;
use hetmem_core::units::{PageCount, PageRange};
use hetmem_sys::lease::LeaseFile;

use super::{Adopted, FileMapped, Managed};

impl Managed {
    /// There may be such from now on.
    pub fn expect_files(&self) {
        self.0.engine.expect_files();
    }

    /// Manages what the program has mapped of a file, which nobody has said anything of yet. `lease` has a lease on the file; `None` where there may be one
    /// already.
    #[must_use]
    pub fn adopt_file(&self, mapped: FileMapped, lease: Option<LeaseFile>) -> Adopted {
        self.0.adopt_file(mapped, lease)
    }

    /// Counts pages that the program has mapped of a file, and that are not managed.
    pub fn count_kept(&self, pages: PageCount, reason: KeptReason) {
        self.0.count_kept(pages, reason);
    }

    /// All of files in `range` is home on return, and managed no longer.
    pub fn release_files(&self, range: PageRange) {
        self.0.release_files(range);
    }

    /// All of files in `range` is home on return.
    pub fn bring_files_home_in(&self, range: PageRange) {
        self.0.bring_files_home_in(range);
    }

    /// Gives up leases that others wait for, with the pages home. How many are held then.
    pub fn look_at_leases(&self) -> usize {
        self.0.look_at_leases()
    }

    /// Whether `range`, which was [adopted](Self::adopt_file), is managed still, and mapped as the books say.
    #[must_use]
    pub fn is_as_mapped(&self, range: PageRange) -> bool {
        self.0.is_as_mapped(range)
    }

    /// Forgets files of which the program has nothing mapped any more, as far as that was told.
    pub fn forget_unmapped_files(&self) {
        self.0.forget_unmapped_files();
    }

    /// What is managed of files, in order of address.
    #[must_use]
    pub fn files(&self) -> Vec<PageRange> {
        self.0.file_parts()
    }

    /// What hetmem has mapped of files for itself, in a forked child, which has it too.
    #[must_use]
    pub fn shadows(&self) -> Vec<PageRange> {
        self.0.shadows()
    }

    /// Calls `look`, which compares what is managed with what is mapped, while no file comes to be managed.
    pub fn while_no_file_comes<R>(&self, look: impl FnOnce() -> R) -> R {
        self.0.while_no_file_comes(look)
    }
}
