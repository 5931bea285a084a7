//! XIDs as NVML announces them: a thread that waits, and a bounded queue.

use super::Meaning;
use crate::kmsg::pci;
use crate::source::Event;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the thread waits before it looks whether it is to end.
const WAIT_MS: u32 = 500;
/// XIDs that wait for the agent.
const QUEUE: usize = 256;
/// After an error of the library, and with no GPU to listen to.
const PAUSE: Duration = Duration::from_millis(500);

/// PCI address and number.
type Xid = (String, u64);

/// The thread and what it has heard.
pub struct Events {
    heard: Receiver<Xid>,
    dropped: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// Begins to listen to all GPUs.
    pub fn listen(nvml: Arc<Nvml>) -> Events {
        let (sender, heard) = sync_channel(QUEUE);
        let (stop, dropped) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, lost) = (Arc::clone(&stop), Arc::clone(&dropped));
        let thread = std::thread::Builder::new()
            .name("nvml-events".into())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    if let Err(error) = wait(&nvml, &sender, &stopped, &lost) {
                        tracing::debug!("NVML events: {error}");
                        std::thread::park_timeout(PAUSE);
                    }
                }
            });
        if let Err(error) = &thread {
            tracing::warn!(
                "no thread for NVML events, XIDs come from the kernel's log only: {error}"
            );
        }
        Events {
            heard,
            dropped,
            stop,
            thread: thread.ok(),
        }
    }

    /// What was heard since the last time.
    pub fn take(&mut self, meaning: Meaning) -> impl Iterator<Item = Event> + use<'_> {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!("{dropped} XIDs were dropped: too many at once");
        }
        self.heard.try_iter().map(move |(subject, number)| {
            let code = u32::try_from(number).ok();
            let (severity, text, action) = meaning(code.unwrap_or(u32::MAX));
            Event {
                source: "gpu",
                name: "xid",
                subject,
                code,
                severity,
                text,
                action,
            }
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends within WAIT_MS; its panic would have been printed.
            drop(thread.join());
        }
    }
}

/// Registers every GPU that answers and waits until told to end, or an error.
fn wait(
    nvml: &Nvml,
    sender: &SyncSender<Xid>,
    stop: &AtomicBool,
    dropped: &AtomicU64,
) -> Result<(), NvmlError> {
    let mut set = nvml.create_event_set()?;
    let mut registered = 0;
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let wanted = EventTypes::CRITICAL_XID_ERROR;
        if device
            .supported_event_types()
            .is_ok_and(|types| types.contains(wanted))
        {
            set = device.register_events(wanted, set).map_err(|e| e.error)?;
            registered += 1;
        }
    }
    if registered == 0 {
        return Err(NvmlError::NotSupported);
    }
    while !stop.load(Ordering::Relaxed) {
        match set.wait(WAIT_MS) {
            Ok(event) => {
                let number = match event.event_data {
                    Some(XidError::Value(number)) => number,
                    Some(XidError::Unknown) | None => continue,
                };
                let info = event.device.pci_info();
                let pci = info.ok().and_then(|info| pci::address(&info.bus_id));
                if sender.try_send((pci.unwrap_or_default(), number)).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(NvmlError::Timeout) => {}
            // A GPU that is lost ends the set: those that still answer are registered anew.
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
