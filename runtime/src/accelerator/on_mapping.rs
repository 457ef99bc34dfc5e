//! An accelerator on one mapping of hetmem's own. It needs no promise of its user: the mapping's words are atomic for everybody, or can't be written,
//! and the mapping is there for as long as the accelerator is.

use std::marker::PhantomData;
use std::ops::Deref;

use hetmem_core::units::DeviceId;

use super::{Accelerator, Options};
use crate::error::Error;
use crate::memory::{FileMapping, Mapping};

/// An [`Accelerator`] whose kernels use a mapping and nothing else; from [`Mapping::accelerator`] or [`FileMapping::accelerator`].
#[derive(Debug)]
#[must_use]
pub struct OnMapping<'m> {
    accelerator: Accelerator,
    mapping: PhantomData<&'m ()>,
}

impl Deref for OnMapping<'_> {
    type Target = Accelerator;

    fn deref(&self) -> &Accelerator {
        &self.accelerator
    }
}

impl Mapping {
    /// An accelerator that is `device`, whose kernels use this mapping.
    ///
    /// # Errors
    ///
    /// If there is no such device, or if it is one on which no code of this process can run.
    #[expect(unsafe_code, reason = "kernels access memory by address")]
    pub fn accelerator(&self, device: DeviceId, options: Options) -> Result<OnMapping<'_>, Error> {
        // SAFETY: the mapping's contents are lent as atomic words only, and it is not unmapped while it is borrowed. Who changes its
        // protection by other means needs unsafe code of their own, and knows what `InPlace::Direct` asks for.
        let accelerator = unsafe { Accelerator::new(&self.inner, device, self.range(), options) }?;
        Ok(OnMapping { accelerator, mapping: PhantomData })
    }
}

impl FileMapping {
    /// An accelerator that is `device`, whose kernels read this mapping. A store is refused, as what is mapped can't be written.
    ///
    /// With [`InPlace::Direct`](super::InPlace::Direct) a kernel that reads a page which the file has no longer (somebody has cut it short) ends the process by
    /// SIGBUS, as any other thread that does.
    ///
    /// # Errors
    ///
    /// If there is no such device, or if it is one on which no code of this process can run.
    #[expect(unsafe_code, reason = "kernels access memory by address")]
    pub fn accelerator(&self, device: DeviceId, options: Options) -> Result<OnMapping<'_>, Error> {
        // SAFETY: nothing can be written there, no reference to what is there is lent, and it is not unmapped while it is borrowed. As above for
        // changes of the protection.
        let accelerator = unsafe { Accelerator::new(&self.inner, device, self.range(), options) }?;
        Ok(OnMapping { accelerator, mapping: PhantomData })
    }
}
