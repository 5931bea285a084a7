//! XID and ECC events of NVIDIA GPUs, from one thread that blocks in nvmlEventSetWait.
//!
//! What is the same is counted, not queued: a GPU that floods leaves the events of the others their
//! room until the next sample takes them.

use super::text::pci_address;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Different events that may wait to be taken, of all GPUs; a flood beyond is counted and dropped.
const KINDS_MAX: usize = 256;
/// How long one wait lasts, and so how long stopping may take.
const WAIT_MS: u32 = 1000;
/// Pause before events are asked for again where that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// What happened to a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A critical XID; `None` if the driver does not tell its number.
    Xid(Option<u32>),
    /// A single-bit error of memory, corrected.
    EccCorrected,
    /// A double-bit error of memory, not corrected.
    EccUncorrected,
}

/// An event and the PCI address of its GPU; empty if unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    pub gpu: String,
    pub what: What,
}

/// The listening thread; it ends when this is dropped, within one wait.
#[derive(Debug)]
pub struct Listener {
    /// `None` only while dropping: closing it stops the thread.
    orders: Option<Sender<Again>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread says of itself.
#[derive(Debug, Default)]
struct Shared {
    /// What was raised and how often, in the order in which each came first.
    raised: Mutex<Vec<(Raised, u64)>>,
    dropped: AtomicU64,
    /// PCI addresses of the GPUs whose events are waited for.
    heard: Mutex<BTreeSet<String>>,
}

impl Shared {
    fn raise(&self, raised: Raised) {
        let mut all = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, times)) = all.iter_mut().find(|(known, _)| *known == raised) {
            *times += 1;
        } else if all.len() < KINDS_MAX {
            all.push((raised, 1));
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn set_heard(&self, gpus: BTreeSet<String>) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = gpus;
    }
}

/// The order to register every GPU anew.
#[derive(Debug)]
struct Again;

impl Listener {
    /// # Errors
    /// No thread can be had.
    pub fn start(nvml: Arc<Nvml>) -> std::io::Result<Listener> {
        let (orders, inbox) = channel();
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("gpu-events".to_owned())
            .spawn(move || listen(&nvml, &inbox, &its))?;
        Ok(Listener {
            orders: Some(orders),
            shared,
            thread: Some(thread),
        })
    }

    /// What was raised since the last call, and how often.
    #[must_use]
    pub fn take(&self) -> Vec<(Raised, u64)> {
        let raised = &self.shared.raised;
        std::mem::take(&mut *raised.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Events dropped since the start because too many different ones waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Whether events of this GPU are waited for.
    #[must_use]
    pub fn hears(&self, gpu: &str) -> bool {
        let heard = &self.shared.heard;
        heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(gpu)
    }

    /// Registers every GPU anew: one has come back.
    pub fn renew(&self) {
        if let Some(orders) = &self.orders
            && orders.send(Again).is_err()
        {
            tracing::debug!("the thread for GPU events has ended");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.orders = None;
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("the thread for GPU events panicked");
        }
    }
}

fn listen(nvml: &Nvml, orders: &Receiver<Again>, shared: &Shared) {
    // Each round registers anew. Orders given meanwhile are answered by it.
    loop {
        let pause = match Registered::new(nvml) {
            Ok(registered) => {
                shared.set_heard(registered.gpus.values().cloned().collect());
                match registered.serve(orders, shared) {
                    Ended::Stopped => return,
                    Ended::Renewed => Duration::ZERO,
                    Ended::Failed(error) => {
                        shared.set_heard(BTreeSet::new());
                        tracing::debug!(%error, "waiting for GPU events failed");
                        PAUSE
                    }
                }
            }
            Err(error) => {
                shared.set_heard(BTreeSet::new());
                tracing::debug!(%error, "GPU events cannot be had");
                PAUSE
            }
        };
        match orders.recv_timeout(pause) {
            Ok(Again) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

enum Ended {
    Stopped,
    Renewed,
    Failed(NvmlError),
}

/// A set of events and whose they are.
struct Registered<'nvml> {
    set: EventSet<'nvml>,
    /// PCI address by device handle.
    gpus: BTreeMap<usize, String>,
}

impl<'nvml> Registered<'nvml> {
    /// Registers every GPU that answers. A GPU that refuses spoils the set, which is then begun
    /// anew without it.
    fn new(nvml: &'nvml Nvml) -> Result<Registered<'nvml>, NvmlError> {
        let mut devices: Vec<(Device<'nvml>, EventTypes)> = (0..nvml.device_count()?)
            .filter_map(|index| nvml.device_by_index(index).ok())
            .filter_map(|device| {
                let types = wanted(device.supported_event_types().ok()?);
                (!types.is_empty()).then_some((device, types))
            })
            .collect();
        'set: loop {
            if devices.is_empty() {
                return Err(NvmlError::NotSupported);
            }
            let mut set = nvml.create_event_set()?;
            for (at, (device, types)) in devices.iter().enumerate() {
                match device.register_events(*types, set) {
                    Ok(with) => set = with,
                    Err(_) => {
                        devices.remove(at);
                        continue 'set;
                    }
                }
            }
            let gpus = devices
                .iter()
                .filter_map(|(device, _)| {
                    let address = pci_address(&device.pci_info().ok()?.bus_id)?;
                    Some((handle(device), address))
                })
                .collect();
            return Ok(Registered { set, gpus });
        }
    }

    fn serve(&self, orders: &Receiver<Again>, shared: &Shared) -> Ended {
        loop {
            match orders.try_recv() {
                Ok(Again) => return Ended::Renewed,
                Err(TryRecvError::Disconnected) => return Ended::Stopped,
                Err(TryRecvError::Empty) => {}
            }
            let event = match self.set.wait(WAIT_MS) {
                Ok(event) => event,
                Err(NvmlError::Timeout) => continue,
                Err(error) => return Ended::Failed(error),
            };
            let gpu = self.gpus.get(&handle(&event.device)).cloned();
            for what in meaning(event.event_type, event.event_data.as_ref()) {
                shared.raise(Raised {
                    gpu: gpu.clone().unwrap_or_default(),
                    what,
                });
            }
        }
    }
}

fn wanted(supported: EventTypes) -> EventTypes {
    supported
        & (EventTypes::CRITICAL_XID_ERROR
            | EventTypes::SINGLE_BIT_ECC_ERROR
            | EventTypes::DOUBLE_BIT_ECC_ERROR)
}

fn meaning(types: EventTypes, xid: Option<&XidError>) -> Vec<What> {
    let number = match xid {
        Some(XidError::Value(number)) => u32::try_from(*number).ok(),
        Some(XidError::Unknown) | None => None,
    };
    [
        (EventTypes::CRITICAL_XID_ERROR, What::Xid(number)),
        (EventTypes::SINGLE_BIT_ECC_ERROR, What::EccCorrected),
        (EventTypes::DOUBLE_BIT_ECC_ERROR, What::EccUncorrected),
    ]
    .into_iter()
    .filter(|(bit, _)| types.contains(*bit))
    .map(|(_, what)| what)
    .collect()
}

#[expect(
    unsafe_code,
    reason = "nvml-wrapper gives no other way to compare devices without asking the driver, which a lost GPU does not answer"
)]
fn handle(device: &Device<'_>) -> usize {
    // SAFETY: the handle is only compared, never used to reach the device.
    unsafe { device.handle() }.addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_may_say_several_things() {
        let both = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
        assert_eq!(
            meaning(both, Some(&XidError::Value(48))),
            [What::Xid(Some(48)), What::EccUncorrected]
        );
        assert_eq!(
            meaning(EventTypes::CRITICAL_XID_ERROR, Some(&XidError::Unknown)),
            [What::Xid(None)]
        );
        assert_eq!(
            meaning(
                EventTypes::CRITICAL_XID_ERROR,
                Some(&XidError::Value(u64::MAX))
            ),
            [What::Xid(None)]
        );
        assert_eq!(meaning(EventTypes::PSTATE_CHANGE, None), []);
    }

    #[test]
    fn a_flood_is_counted_and_leaves_room_for_others() {
        let shared = Shared::default();
        let of = |gpu: &str, code| Raised {
            gpu: gpu.to_owned(),
            what: What::Xid(Some(code)),
        };
        for _ in 0..10_000 {
            shared.raise(of("a", 31));
        }
        shared.raise(of("b", 79));
        let raised = shared.raised.lock().unwrap().clone();
        assert_eq!(raised, [(of("a", 31), 10_000), (of("b", 79), 1)]);
        for code in 1_000..2_000 {
            shared.raise(of("a", code));
        }
        assert_eq!(shared.raised.lock().unwrap().len(), KINDS_MAX);
        let dropped = shared.dropped.load(Ordering::Relaxed);
        assert_eq!(usize::try_from(dropped).unwrap(), 1_000 + 2 - KINDS_MAX);
    }

    #[test]
    fn only_supported_events_are_wanted() {
        let supported = EventTypes::CRITICAL_XID_ERROR | EventTypes::PSTATE_CHANGE;
        assert_eq!(wanted(supported), EventTypes::CRITICAL_XID_ERROR);
    }
}
