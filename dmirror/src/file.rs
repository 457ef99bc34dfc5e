//! An open device, and the runtime of the four devices.
#![expect(unsafe_code, reason = "the device works on the program's memory by address")]

use std::sync::Arc;

use hetmem::accelerator::{Accelerator, Options};
use hetmem::{Error, ErrorKind, Runtime, Select};
use hetmem_agent::config::VARIABLE;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::units::{ByteLen, DeviceId, PageRange};
use hetmem_devices::spec::{Backend, DeviceSpec};
use hetmem_sys::errno::Errno;

use crate::descriptors::Identity;
use crate::mappings::NAME;

/// How many devices there are: two private ones, then two coherent ones.
pub(crate) const DEVICES: u8 = 4;
/// Of a private device. The kernel's grow by chunks of 256 MiB as long as there is memory.
const PRIVATE_SIZE: ByteLen = ByteLen::new(1 << 30);
/// Of a coherent device, which is one chunk.
const COHERENT_SIZE: ByteLen = ByteLen::new(256 << 20);

/// The runtime while a device is open.
pub(crate) struct Devices {
    pub(crate) runtime: Runtime,
}

impl Devices {
    /// Starts the runtime.
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        // The gate brings pages home before a fork, once no command is under way.
        let mut builder = Runtime::builder().single_faults().own_allocator().forks_exec_at_once();
        for minor in 0..DEVICES {
            let (memory_type, size) = match minor {
                0 | 1 => (MemoryType::DevicePrivate, PRIVATE_SIZE),
                _ => (MemoryType::DeviceCoherent, COHERENT_SIZE),
            };
            builder = builder.device(DeviceSpec {
                memory_type,
                backend: Backend::parse("emulated").expect("there is such a kind"),
                name: format!("{NAME}{minor}"),
                size,
                memory: None,
                latency: std::time::Duration::ZERO,
                bandwidth: None,
                fail_every: None,
            });
        }
        Ok(Arc::new(Self { runtime: builder.start()? }))
    }
}

/// The errno of an open that failed, which is told on standard error, as an errno says too little.
#[expect(clippy::print_stderr, reason = "the only way to tell a program's user why")]
pub(crate) fn refused(minor: u8, error: &Error) -> Errno {
    let mut line = format!("hetmem: /dev/{NAME}{minor}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        line.push_str(&format!(": {error}"));
        source = error.source();
    }
    eprintln!("{line}");
    match error.kind() {
        ErrorKind::HostRefuses => Errno::PERM,
        ErrorKind::Exhausted => Errno::NOMEM,
        ErrorKind::InvalidInput | _ => Errno::NXIO,
    }
}

/// Whether the program's memory is managed by `hetmem run`: then its devices are, too, and there is no second manager.
#[expect(clippy::print_stderr, reason = "the only way to tell a program's user why")]
pub(crate) fn is_managed_already() -> bool {
    let managed = std::env::var_os(VARIABLE).is_some();
    if managed {
        eprintln!("hetmem: /dev/{NAME}*: `hetmem run` manages this program's memory; start it without");
    }
    managed
}

/// What an open file description is to the kernel.
pub(crate) struct OpenFile {
    pub(crate) identity: Identity,
    pub(crate) device: DeviceId,
    pub(crate) owner: Owner,
    pub(crate) kind: Select,
    // Its subscription ends before the runtime does.
    pub(crate) accelerator: Accelerator,
    pub(crate) devices: Arc<Devices>,
}

impl OpenFile {
    pub(crate) fn new(devices: Arc<Devices>, minor: u8, identity: Identity) -> Result<Self, Error> {
        let device = DeviceId::new(minor);
        // SAFETY: the program opened the device for it to use the program's memory, as it is told to by address.
        let accelerator = unsafe { devices.runtime.accelerator(device, PageRange::ALL, Options::default()) }?;
        let owner = devices.runtime.owner(device).unwrap_or(Owner::new(u64::from(minor)));
        let kind = if minor < 2 { Select::DEVICE_PRIVATE } else { Select::DEVICE_COHERENT };
        Ok(Self { identity, device, owner, kind, accelerator, devices })
    }

    /// Brings every page home that is on the device.
    pub(crate) fn empty(&self) -> Result<(), Errno> {
        let emptied = self.devices.runtime.remove_device(self.device);
        self.devices.runtime.restore_device(self.device);
        emptied.map_err(|_| Errno::BUSY)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // The last close. What can't come home comes with a touch, as ever.
        let _ = self.empty();
    }
}
