//! The kernel log as events: XIDs and SXIDs, GPUs that left the bus, health of NICs and their
//! modules, links, errors and downgrades of PCIe.
//!
//! Rules look at how a message begins, never at its middle, so that the name of a process in
//! another message cannot pass for a fault. A message costs well under a microsecond.
//!
//! Names of the events: `xid`, `sxid`, `gpu_lost`, `nic_health`, `nic_temperature`, `module_error`,
//! `module_removed`, `module_inserted`, `link_down`, `link_up`, `aer_corrected`, `aer_uncorrected`,
//! `pcie_downgraded`. The subject is a PCI address `dddd:bb:dd.f`, an interface, or `DEVICE/PORT`.
//! The code is the number of an XID or SXID, or the syndrome of a NIC's health.

pub mod catalogue;
pub mod limiter;
mod link;
mod lost;
mod module;
mod nic;
pub mod nvlink5;
pub mod pci;
mod pcie;
pub mod reader;
pub mod record;
mod sxid;
#[cfg(test)]
mod tests;
mod xid;

use crate::source::{Event, Gathered, Severity};
use limiter::{HeldBack, Shared};
pub use reader::From;
use reader::Reader;
use record::Record;
use std::{io, path::Path, time::Duration};
pub(crate) use xid::outlasts_reset;

/// A record costs about two microseconds: a flood keeps the agent from its other work for no more
/// than some milliseconds.
const RECORDS_PER_POLL: usize = 2_000;
/// Longest text of an event; XID 74 prints some 150 characters of registers.
const TEXT_CHARS_MAX: usize = 400;

/// The open kernel log of this node.
pub struct Kmsg {
    reader: Reader,
    rules: Rules,
    limits: Shared,
    /// Records read.
    pub lines: u64,
    /// Events that were only counted.
    pub held_back: HeldBack,
    /// Records that the kernel overwrote before they were read.
    pub lost: u64,
    /// Records that are not in the form of the kernel.
    pub malformed: u64,
}

impl Kmsg {
    /// `limits` are those of every source that tells of the same faults.
    ///
    /// # Errors
    /// The log cannot be opened: it is not there, or restricted (`kernel.dmesg_restrict`).
    pub fn open(path: &Path, from: From, limits: Shared) -> io::Result<Kmsg> {
        Ok(Kmsg {
            reader: Reader::open(path, from)?,
            rules: Rules::default(),
            limits,
            lines: 0,
            held_back: HeldBack::default(),
            lost: 0,
            malformed: 0,
        })
    }

    /// Reads what is new, within a bound, and adds its events. `now` is any clock that does not go
    /// back. Returns whether there may be more.
    ///
    /// # Errors
    /// The log cannot be read any more.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> io::Result<bool> {
        let drained = self.reader.drain(RECORDS_PER_POLL)?;
        self.lost += drained.lost;
        self.malformed += drained.malformed;
        for record in &drained.records {
            self.lines += 1;
            let event = self.rules.event(record);
            let limited = |e| self.limits.admit(e, now, &mut self.held_back);
            out.events.extend(event.and_then(limited));
        }
        Ok(drained.more)
    }
}

/// From messages to events. Most messages are none; some faults take several messages.
#[derive(Debug, Default)]
pub struct Rules {
    lost: lost::Lost,
}

impl Rules {
    /// The event in a record. Where the message does not name the device, the kernel's tag may.
    pub fn event(&mut self, record: &Record) -> Option<Event> {
        let mut event = self.read(&record.text)?;
        if event.subject.is_empty() {
            event.subject = record.pci().and_then(pci::address).unwrap_or_default();
        }
        Some(event)
    }

    /// The event in a message, without any prefix of the log's.
    pub fn read(&mut self, message: &str) -> Option<Event> {
        if let Some(body) = message.strip_prefix("NVRM: ") {
            return xid::xid(body)
                .or_else(|| sxid::sxid(body))
                .or_else(|| self.lost.read(body));
        }
        let (origin, body) = Origin::split(message)?;
        if origin.driver.starts_with("nvidia-nvswitch") {
            return sxid::sxid(body);
        }
        nic::health(&origin, body)
            .or_else(|| link::change(&origin, body))
            .or_else(|| pcie::error(&origin, body))
            .or_else(|| pcie::downgrade(&origin, body))
    }
}

/// What the kernel puts before a driver's message: `mlx5_core 0000:41:00.0 eth2: `.
struct Origin<'a> {
    driver: &'a str,
    place: Option<&'a str>,
    /// A network interface or verbs device, where there is one.
    interface: Option<&'a str>,
}

impl<'a> Origin<'a> {
    fn split(message: &'a str) -> Option<(Origin<'a>, &'a str)> {
        let (head, body) = message.split_once(": ")?;
        let mut words = head.split(' ');
        let driver = words.next()?;
        let second = words.next();
        let place = second.filter(|w| w.contains(':'));
        let interface = match (place, second) {
            (Some(_), _) => words.next(),
            (None, Some(name)) => Some(name),
            (None, None) => Some(driver),
        };
        let origin = Origin {
            driver,
            place,
            interface,
        };
        Some((origin, body))
    }

    /// The PCI address; empty if there is none.
    fn subject(&self) -> String {
        self.place.and_then(pci::address).unwrap_or_default()
    }
}

fn event(
    name: &'static str,
    subject: String,
    severity: Severity,
    text: String,
    action: &str,
) -> Event {
    Event {
        source: "kmsg",
        name,
        subject,
        code: None,
        severity,
        text: printable(&text),
        action: action.to_owned(),
    }
}

/// `meaning: detail`, or the meaning alone.
fn join(meaning: &str, detail: &str) -> String {
    let detail = detail.trim();
    if detail.is_empty() {
        meaning.to_owned()
    } else {
        format!("{meaning}: {detail}")
    }
}

/// Of bounded length and without control characters, which the name of a process may hold.
fn printable(text: &str) -> String {
    text.chars()
        .take(TEXT_CHARS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The event in a single message.
#[cfg(test)]
fn classify_line(message: &str) -> Option<Event> {
    Rules::default().read(message)
}
