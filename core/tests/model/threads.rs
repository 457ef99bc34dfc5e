//! A program of several threads, and a handler thread. A thread that nobody wakes fails the test.

use std::sync::MutexGuard;
use std::time::Duration;

use hetmem_core::fault::FaultResolution;
use hetmem_core::units::{PageRange, VirtAddr};

use super::{Memory, Model, Token, Truth, ZERO, Zap};

/// How long a thread may sleep before that counts as forever.
const FOREVER: Duration = Duration::from_secs(20);

impl Model {
    /// Sleeps until `awake`.
    pub(super) fn sleep_until<'a>(
        &self,
        memory: MutexGuard<'a, Memory>,
        what: &str,
        awake: impl Fn(&Memory) -> bool,
    ) -> MutexGuard<'a, Memory> {
        let (memory, timeout) = self
            .changed
            .wait_timeout_while(memory, FOREVER, |memory| !awake(memory))
            .expect("no thread panicked while it held the model");
        assert!(!timeout.timed_out(), "nobody wakes a thread that waits for {what}");
        memory
    }

    /// Returns when an event is unread.
    pub(crate) fn wait_for_a_queued_event(&self) {
        let memory = self.lock();
        drop(self.sleep_until(memory, "an event to be raised", |memory| !memory.events.is_empty()));
    }

    /// Returns after an event that is pending now was read.
    pub(crate) fn wait_for_an_event(&self) {
        let memory = self.lock();
        let read = memory.events_read;
        drop(self.sleep_until(memory, "an event", |memory| memory.events.is_empty() || memory.events_read > read));
    }

    /// Returns after all events that are queued now were read, as the calls that raised them do.
    pub(crate) fn wait_until_read(&self) {
        let queued = self.lock().events_queued;
        self.wait_until_read_to(queued);
    }

    /// Returns after so many events were read, ever.
    pub(crate) fn wait_until_read_to(&self, queued: u64) {
        let memory = self.lock();
        drop(self.sleep_until(memory, "its events to be read", |memory| memory.events_read >= queued));
    }

    /// Touches `page`, asleep while it is missing, and lets `then` work on its content.
    pub(crate) fn touch_and(&self, page: VirtAddr, then: impl FnOnce(&mut Token)) {
        let key = page.get();
        let mut memory = self.lock();
        loop {
            let entry = memory.pages.get_mut(&key).unwrap_or_else(|| panic!("{page} is mapped"));
            if let Some(frame) = entry.laid {
                let mut content = memory.own_content(frame);
                then(&mut content);
                memory.own.insert(frame.get(), content);
                memory.truth.insert(key, Truth(vec![content]));
                return;
            }
            if !entry.registered {
                entry.content.get_or_insert(ZERO);
            }
            if let Some(content) = entry.content.as_mut() {
                then(content);
                let content = *content;
                memory.truth.insert(key, Truth(vec![content]));
                return;
            }
            memory.waiters.insert(key);
            memory.messages.push_back(key);
            self.changed.notify_all();
            memory = self.sleep_until(memory, "a page", |memory| !memory.waiters.contains(&key));
        }
    }

    /// Carries out a removal, in the thread that announced it.
    pub(crate) fn zap_own(&self, range: PageRange) {
        let mut memory = self.lock();
        let (own, others) = memory.zaps.drain(..).partition(|zap: &Zap| range.contains_range(zap.range));
        memory.zaps = others;
        own.iter().for_each(|zap| memory.carry_out(zap));
    }

    /// The handler thread: reads events and serves faults until [`Model::stop_handler`].
    pub(crate) fn handle(&self) {
        let engine = self.engine();
        loop {
            let fault = {
                let memory = self.lock();
                let busy = |memory: &Memory| {
                    let anything = !memory.events.is_empty() || !memory.messages.is_empty();
                    memory.stop_handler || anything || !memory.under_way.is_empty()
                };
                let mut memory = self
                    .changed
                    .wait_while(memory, |memory| !busy(memory))
                    .expect("no thread panicked while it held the model");
                let nothing = memory.events.is_empty() && memory.messages.is_empty() && memory.under_way.is_empty();
                if memory.stop_handler && nothing {
                    return;
                }
                memory.messages.pop_front()
            };
            self.deliver();
            engine.end_faults(&mut |fault| self.queue_again(fault.token, fault.resolution));
            if let Some(page) = fault {
                self.queue_again(page, engine.begin_fault(VirtAddr::new(page), page));
            }
        }
    }

    fn queue_again(&self, page: u64, resolution: FaultResolution) {
        match resolution {
            FaultResolution::Waiting | FaultResolution::UnderWay => {}
            FaultResolution::EventsPending | FaultResolution::NoMemory | FaultResolution::NoRoom => {
                self.lock().messages.push_back(page);
            }
            FaultResolution::Mirrored => panic!("only a signal handler is told so"),
            FaultResolution::Home(_) | FaultResolution::Back(_) | FaultResolution::Present => {}
        }
    }

    pub(crate) fn stop_handler(&self) {
        self.lock().stop_handler = true;
        self.changed.notify_all();
    }
}
