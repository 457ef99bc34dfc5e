//! The one door to synchronisation primitives.
//!
//! Every lock of this crate and of the crates above comes from here (but the one of the preloaded libraries' allocator), so that `--cfg loom` swaps
//! all of them for the model checker's. The standard library's locks are futexes: taking one touches no thread-local storage and no memory but the
//! lock itself, which is what allows their use while memory of the program may be away.
//!
//! The order in which locks are taken is drawn in docs/rules.md (Lock order).

#[cfg(loom)]
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
use std::sync::TryLockError;
#[cfg(not(loom))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};

/// Locks `mutex`. A poisoned lock means that a thread panicked while it changed what the lock guards; no page may be
/// moved on the strength of that state, so the panic goes on.
#[inline]
#[track_caller]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held this lock")
}

/// Locks `mutex`, if nobody has it; see [`lock`].
#[track_caller]
pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Poisoned(_)) => panic!("no thread panicked while it held this lock"),
    }
}

/// Locks `lock` for reading; see [`lock`].
#[track_caller]
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().expect("no thread panicked while it held this lock")
}

/// Locks `lock` for reading, if nobody has it, or waits for it, to write; see [`lock`].
#[track_caller]
pub fn try_read<T>(lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
    match lock.try_read() {
        Ok(guard) => Some(guard),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Poisoned(_)) => panic!("no thread panicked while it held this lock"),
    }
}

/// Locks `lock` for writing; see [`lock`].
#[track_caller]
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().expect("no thread panicked while it held this lock")
}
