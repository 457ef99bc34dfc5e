//! `hetmem_runtime`: a runtime that C holds, and its devices.
//!
//! The runtime lives until its handle and the handles of all its mappings are gone, in whichever order, as a [`Runtime`] does. In a forked child
//! neither it nor its handler thread exists, and what is left of it there names the *parent's* memory: so each function looks whose process it is in,
//! and in a child the handles are good for nothing but to be freed, which does nothing.
#![expect(unsafe_code, reason = "exports C functions")]

use std::ffi::c_char;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Once};

use hetmem_core::physmap::MemoryType;
use hetmem_core::units::DeviceId;
use hetmem_devices::spec::{DeviceSpec, MAX_NAME};
use hetmem_interpose::cancel::uncancelled;
use runtime::Runtime;

use super::config::Config;
use super::failure::{Answer, Failure, answer};
use super::pointers::{Out, borrow, take};

/// A runtime of a C program, with the specs of its devices and the number of its process.
pub(crate) struct Instance {
    runtime: ManuallyDrop<Runtime>,
    pub(crate) devices: Vec<DeviceSpec>,
    process: u32,
}

/// What `hetmem_runtime` points to.
pub(crate) type Handle = Arc<Instance>;

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Instance>();
};

impl Instance {
    fn start(config: &Config) -> Result<Handle, Failure> {
        if agent::is_running() {
            return Err(Failure::refused(
                "this program runs under `hetmem run`, whose agent manages its memory; start it without, to use a runtime of its own",
            ));
        }
        notice_forks()?;
        let mut builder = Runtime::builder().own_allocator();
        for device in &config.devices {
            builder = builder.device(device.clone());
        }
        if let Some(stock) = config.stock {
            builder = builder.stock(stock);
        }
        if config.strict_stock {
            builder = builder.strict_stock();
        }
        if config.forks_exec_at_once {
            builder = builder.forks_exec_at_once();
        }
        if config.sigbus {
            builder = builder.sigbus();
        }
        Ok(Arc::new(Self {
            runtime: ManuallyDrop::new(builder.start()?),
            devices: config.devices.clone(),
            process: std::process::id(),
        }))
    }

    /// Whether this is the process that started it.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    pub(crate) fn runtime(&self) -> Result<&Runtime, Failure> {
        if self.is_of_this_process() {
            return Ok(&self.runtime);
        }
        Err(Failure::invalid(format!(
            "the runtime is that of process {}; a forked child must make one of its own",
            self.process
        )))
    }

    /// The device `index`, if there is one.
    pub(crate) fn device(&self, index: usize) -> Result<(DeviceId, &DeviceSpec), Failure> {
        let found = self.devices.get(index).zip(u8::try_from(index).ok());
        found.map(|(spec, id)| (DeviceId::new(id), spec)).ok_or_else(|| {
            Failure::invalid(format!("there is no device {index}; the runtime has {}", self.devices.len()))
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            // SAFETY: dropped once, here.
            uncancelled(|| unsafe { ManuallyDrop::drop(&mut self.runtime) });
        }
    }
}

/// Has each forked child begin with a heap that no thread of its parent's has locked, and without the arenas that it does not inherit.
/// The agent sees to that itself.
fn notice_forks() -> Result<(), Failure> {
    extern "C" fn in_child() {
        // SAFETY: a handler of `pthread_atfork`, in the child.
        unsafe { crate::ALLOCATOR.restart_in_child() };
        hetmem_sys::mapping::forget_omitted();
    }
    static REGISTERED: Once = Once::new();
    let mut result = 0;
    // SAFETY: registers a function that lives as long as the process.
    REGISTERED.call_once(|| result = unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
    if result == 0 { Ok(()) } else { Err(Failure::refused("the C library has no memory to notice forks with")) }
}

/// `hetmem_device_info`.
#[derive(Clone, Copy)]
#[repr(C)]
struct DeviceInfo {
    capacity_bytes: u64,
    memory_type: u32,
    name: [c_char; NAME],
}

/// Room for a name, its NUL, and no padding.
const NAME: usize = 36;
const _: () = assert!(MAX_NAME < NAME && size_of::<DeviceInfo>() == 48);

fn describe(spec: &DeviceSpec) -> DeviceInfo {
    let memory_type = match spec.memory_type {
        MemoryType::DevicePrivate => 1,
        MemoryType::DeviceCoherent => 2,
    };
    let mut name = [0; NAME];
    // One less than there is room, so that the NUL stays.
    for (to, byte) in name[..NAME - 1].iter_mut().zip(spec.name.bytes()) {
        *to = c_char::from_ne_bytes([byte]);
    }
    DeviceInfo { capacity_bytes: spec.size.get(), memory_type, name }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_runtime_new(config: *const Config, out: *mut *mut Handle) -> Answer {
    // SAFETY: the header's contract.
    let config = unsafe { borrow(config, "config") };
    // SAFETY: the header's contract.
    let out = unsafe { Out::one(out, "out") };
    uncancelled(|| {
        answer(config.and_then(|config| {
            let mut out = out?;
            out.put(Box::into_raw(Box::new(Instance::start(config)?)));
            Ok(())
        }))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_runtime_free(runtime: *mut Handle) {
    // SAFETY: the header's contract.
    drop(unsafe { take(runtime) });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_device_count(runtime: *const Handle) -> usize {
    // SAFETY: the header's contract.
    unsafe { runtime.as_ref() }.map_or(0, |instance| instance.devices.len())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_device_get(runtime: *const Handle, index: u32, out: *mut DeviceInfo) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let out = unsafe { Out::one(out, "out") };
    answer(instance.and_then(|instance| {
        let (_, spec) = instance.device(usize::try_from(index).unwrap_or(usize::MAX))?;
        out?.put(describe(spec));
        Ok(())
    }))
}
