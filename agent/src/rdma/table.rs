//! The table of RDMA counters: a driver's own name to a canonical signal, with the width of the
//! register behind it and what it does at its upper end. The rows are in `rows.rs`.

use super::rows::ROWS;
use crate::source::{RawKind, Reading};
use weir_agent_core::counter::Overflow;
use weir_wire::signal::Signal;

/// Whose counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    /// The port counters of the InfiniBand architecture, which any driver may have.
    Iba,
    Mlx5,
    Mlx4,
    BnxtRe,
    Irdma,
    Ionic,
    Efa,
    Hns,
    Hfi1,
    Rxe,
    /// Known to have no counters of its own here, or not known at all.
    Other,
}

/// Names under which a driver shows up: of the kernel's driver of the PCI device, and the
/// beginnings of the names that it gives to its verbs devices.
const DRIVERS: &[(Driver, &str, &[&str], &[&str])] = &[
    (Driver::Mlx5, "mlx5", &["mlx5_core", "mlx5_ib"], &["mlx5_"]),
    (Driver::Mlx4, "mlx4", &["mlx4_core", "mlx4_ib"], &["mlx4_"]),
    (
        Driver::BnxtRe,
        "bnxt_re",
        &["bnxt_en", "bnxt_re"],
        &["bnxt_re"],
    ),
    (
        Driver::Irdma,
        "irdma",
        &["ice", "i40e", "idpf", "irdma"],
        &["irdma"],
    ),
    (
        Driver::Ionic,
        "ionic",
        &["ionic", "ionic_rdma"],
        &["ionic_"],
    ),
    // Instances of EC2 rename efa_0 after its PCI address, to rdmap16s27.
    (Driver::Efa, "efa", &["efa"], &["efa_", "rdmap"]),
    (Driver::Hns, "hns", &["hns3", "hns_roce_hw_v2"], &["hns_"]),
    (Driver::Hfi1, "hfi1", &["hfi1"], &["hfi1_"]),
    (Driver::Rxe, "rxe", &["rdma_rxe"], &["rxe"]),
];

impl Driver {
    /// Name in documents and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Driver::Iba => "any",
            Driver::Other => "other",
            Driver::Mlx5
            | Driver::Mlx4
            | Driver::BnxtRe
            | Driver::Irdma
            | Driver::Ionic
            | Driver::Efa
            | Driver::Hns
            | Driver::Hfi1
            | Driver::Rxe => DRIVERS
                .iter()
                .find(|d| d.0 == self)
                .map_or("other", |d| d.1),
        }
    }

    /// The driver whose kernel module is named so; [`Driver::Other`] if none is.
    #[must_use]
    pub fn of_module(module: &str) -> Driver {
        DRIVERS
            .iter()
            .find(|d| d.2.contains(&module))
            .map_or(Driver::Other, |d| d.0)
    }

    /// The driver that names its devices so. Names given by udev, such as `rocep24s0`, tell
    /// nothing: [`Driver::Other`].
    #[must_use]
    pub fn of_device(device: &str) -> Driver {
        DRIVERS
            .iter()
            .find(|d| d.3.iter().any(|prefix| device.starts_with(prefix)))
            .map_or(Driver::Other, |d| d.0)
    }
}

/// Which end of a connection a counter speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who sent the requests: it sees timeouts, NAKs and CNPs.
    Sender,
    /// Who got them: it sees marks, gaps in the sequence and missing buffers.
    Receiver,
    /// The link itself, or traffic of either kind.
    Link,
}

/// What becomes of several counters of one port that mean the same signal and have the same rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// There is no other.
    Only,
    /// Parts of a whole: they are added up.
    Adds,
    /// Names of one counter in different versions of its driver, or a narrow and a wide form of
    /// it: the largest counts.
    Largest,
}

/// One counter of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub driver: Driver,
    /// Name of the file in sysfs, and of the counter in RDMA netlink.
    pub raw: &'static str,
    pub signal: Signal,
    /// Units of the signal in one unit of the counter.
    pub times: u64,
    /// Width of the register.
    pub bits: u8,
    pub overflow: Overflow,
    pub side: Side,
    /// Of the counters of one signal that a port has, those of the lowest rank count.
    pub rank: u8,
    pub merge: Merge,
}

impl Row {
    pub(super) const fn new(driver: Driver, raw: &'static str, signal: Signal, side: Side) -> Row {
        Row {
            driver,
            raw,
            signal,
            times: 1,
            bits: 64,
            overflow: Overflow::Wraps,
            side,
            rank: 0,
            merge: Merge::Only,
        }
    }

    pub(super) const fn wraps_at(mut self, bits: u8) -> Row {
        self.bits = bits;
        self
    }

    pub(super) const fn sticks_at(mut self, bits: u8) -> Row {
        self.bits = bits;
        self.overflow = Overflow::Saturates;
        self
    }

    pub(super) const fn times(mut self, times: u64) -> Row {
        self.times = times;
        self
    }

    pub(super) const fn adds(mut self) -> Row {
        self.merge = Merge::Adds;
        self
    }

    pub(super) const fn largest(mut self) -> Row {
        self.merge = Merge::Largest;
        self
    }

    pub(super) const fn rank(mut self, rank: u8) -> Row {
        self.rank = rank;
        self
    }

    /// The value in units of the signal; `None` if it does not fit 64 bits.
    ///
    /// A value beyond the row's width means that this driver's register is wider than the one of
    /// the table: it is given as one of 64 bits.
    #[must_use]
    pub fn reading(&self, raw: u64) -> Option<Reading> {
        let value = raw.checked_mul(self.times)?;
        if self.bits < 64 && raw >> self.bits != 0 {
            return Some(Reading::wide(value));
        }
        Some(Reading {
            value,
            bits: self.bits,
            overflow: self.overflow,
        })
    }
}

/// The row of a driver's counter: the driver's own, otherwise the one that all have in common.
#[must_use]
pub fn lookup(driver: Driver, raw: &str) -> Option<&'static Row> {
    let of = |driver| ROWS.iter().find(|r| r.driver == driver && r.raw == raw);
    of(driver).or_else(|| of(Driver::Iba))
}

/// How a counter behaves that the table does not know. What lies among the counters of a driver that
/// we know counts, but for the objects that bnxt_re has at the moment and has had at most
/// (drivers/infiniband/hw/bnxt_re/hw_counters.c).
#[must_use]
pub fn raw_kind(driver: Driver, raw: &str) -> RawKind {
    let objects = ["active_", "watermark_"];
    if driver == Driver::Other {
        RawKind::Unknown
    } else if driver == Driver::BnxtRe && objects.iter().any(|o| raw.starts_with(o)) {
        RawKind::Gauge
    } else {
        RawKind::Counter
    }
}

/// Heads of the columns of [`documented`].
pub const DOCUMENT_HEADS: [&str; 9] = [
    "driver",
    "counter",
    "signal",
    "unit",
    "times",
    "bits",
    "at its end",
    "side",
    "together",
];

/// The rows as words, for documents.
pub fn documented() -> impl Iterator<Item = [String; 9]> {
    ROWS.iter().map(|row| {
        let overflow = match row.overflow {
            Overflow::Wraps => "wraps",
            Overflow::Saturates => "sticks",
        };
        let side = match row.side {
            Side::Sender => "sender",
            Side::Receiver => "receiver",
            Side::Link => "link",
        };
        let merge = match row.merge {
            Merge::Only => "",
            Merge::Adds => "added up",
            Merge::Largest => "the largest",
        };
        let rank = match row.rank {
            0 => merge.to_owned(),
            rank => format!("{merge} if nothing of rank {} is there", rank - 1)
                .trim_start()
                .to_owned(),
        };
        [
            row.driver.name().to_owned(),
            row.raw.to_owned(),
            row.signal.name().to_owned(),
            row.signal.unit().to_owned(),
            row.times.to_string(),
            row.bits.to_string(),
            overflow.to_owned(),
            side.to_owned(),
            rank,
        ]
    })
}

/// The signals of one port, put together from its counters.
#[derive(Debug, Default)]
pub struct Merged(Vec<Slot>);

#[derive(Debug)]
struct Slot {
    row: &'static Row,
    reading: Reading,
    /// More than one counter went into it.
    several: bool,
}

impl Merged {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes a counter.
    pub fn add(&mut self, row: &'static Row, raw: u64) {
        let Some(reading) = row.reading(raw) else {
            return;
        };
        let new = Slot {
            row,
            reading,
            several: false,
        };
        let Some(slot) = self.0.iter_mut().find(|s| s.row.signal == row.signal) else {
            self.0.push(new);
            return;
        };
        if row.rank < slot.row.rank {
            *slot = new;
        } else if row.rank == slot.row.rank {
            match row.merge {
                Merge::Only => {}
                Merge::Adds => slot.add(reading),
                Merge::Largest if reading.value > slot.reading.value => *slot = new,
                Merge::Largest => {}
            }
        }
    }

    /// The signals.
    pub fn readings(&self) -> impl Iterator<Item = (Signal, Reading)> {
        self.0.iter().map(|s| (s.row.signal, s.reading))
    }

    /// Whether a signal tells all that this counter tells.
    #[must_use]
    pub fn tells(&self, row: &Row) -> bool {
        self.0
            .iter()
            .any(|s| !s.several && s.row.driver == row.driver && s.row.raw == row.raw)
    }
}

impl Slot {
    /// Sums of counters that wrap at a common width wrap there as well.
    fn add(&mut self, other: Reading) {
        let bits = self.reading.bits.max(other.bits);
        let sum = self.reading.value.wrapping_add(other.value);
        let mask = 1u64
            .checked_shl(u32::from(bits))
            .map_or(u64::MAX, |top| top - 1);
        self.reading = Reading {
            value: sum & mask,
            bits,
            overflow: Overflow::Wraps,
        };
        self.several = true;
    }
}

#[cfg(test)]
mod tests;
