//! What is wrong with the fabric, and the counters and gauges that tell.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use weir_wire::signal::{Entity, Signal};
use weir_wire::v1;

/// Each has a target, whose meaning is its own: a cable, a rank or a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Flaps,
    Down,
    /// Somebody took the port down.
    TakenDown,
    Errors,
    /// Half of its rate.
    Slow,
    Paused,
    /// The far end of a cable between switches counts less than the near end.
    Swallows,
    /// What flows send over it is sent again.
    Loses,
    /// Two hosts of a leaf changed places.
    Miscabled,
    Late,
    Outlier,
}

impl Fault {
    pub const ALL: [Fault; 11] = [
        Fault::Flaps,
        Fault::Down,
        Fault::TakenDown,
        Fault::Errors,
        Fault::Slow,
        Fault::Paused,
        Fault::Swallows,
        Fault::Loses,
        Fault::Miscabled,
        Fault::Late,
        Fault::Outlier,
    ];
}

/// A port, by node and name.
pub type Port = (String, String);

/// Both ends of each cable; those between switches come first.
static CABLES: LazyLock<Vec<[Port; 2]>> = LazyLock::new(cables);

fn cables() -> Vec<[Port; 2]> {
    let port = |node: String, port: String| (node, port);
    let up = |(l, s)| {
        [
            port(format!("l{l}"), format!("up{s}")),
            port(format!("s{s}"), format!("down{l}")),
        ]
    };
    let host = |(l, h)| {
        [
            port(format!("l{l}"), format!("h{h}")),
            port(format!("h{l}{h}"), "eth0".into()),
        ]
    };
    let ups = [(1, 1), (1, 2), (2, 1), (2, 2)].map(up);
    let hosts = (0..8).map(|n| host((n / 4 + 1, n % 4 + 1)));
    ups.into_iter().chain(hosts).collect()
}

pub fn peer(port: &Port) -> Port {
    let cable = CABLES.iter().find(|ends| ends.contains(port)).unwrap();
    cable[usize::from(cable[0] == *port)].clone()
}

#[derive(Debug, Default)]
pub struct Faults(BTreeMap<Fault, usize>);

impl Faults {
    /// Begins one, or ends it.
    pub fn toggle(&mut self, fault: Fault, target: usize) {
        if self.0.remove(&fault).is_none() {
            self.0.insert(fault, target);
        }
    }

    pub fn target(&self, fault: Fault) -> Option<usize> {
        self.0.get(&fault).copied()
    }

    /// Whether a port is an end of its cable: 0 the first, 1 the second.
    pub fn end(&self, fault: Fault, port: &Port) -> Option<usize> {
        let among = match fault {
            Fault::Swallows | Fault::Loses => 4,
            _ => CABLES.len(),
        };
        let cable = &CABLES[self.target(fault)? % among];
        cable.iter().position(|end| end == port)
    }

    fn is_host(&self, fault: Fault, node: &str) -> bool {
        let hosts = &CABLES[4..];
        let target = self.target(fault).map(|n| &hosts[n % hosts.len()][1].0);
        target.is_some_and(|host| host == node)
    }
}

/// A column: what of, and which signal.
pub type Column = (String, Entity, Signal);

const OF_PORT: [Signal; 13] = [
    Signal::TxBytes,
    Signal::QueueBytesMax,
    Signal::QueueDrops,
    Signal::LinkUp,
    Signal::LinkDowns,
    Signal::AdminUp,
    Signal::RxErrors,
    Signal::RxBytes,
    Signal::TxPackets,
    Signal::RxPackets,
    Signal::RateBps,
    Signal::PauseRxUs,
    Signal::PauseTxUs,
];
const OF_HOST: [(&str, Entity, Signal); 6] = [
    ("mlx5_0/1", Entity::Rdma, Signal::TxBytes),
    ("mlx5_0/1", Entity::Rdma, Signal::RxBytes),
    ("mlx5_0/1", Entity::Rdma, Signal::RateBps),
    ("0000:1a:00.0", Entity::Gpu, Signal::GpuUtilisation),
    ("0000:1a:00.0", Entity::Gpu, Signal::GpuPower),
    ("0000:1a:00.0", Entity::Gpu, Signal::GpuTemperature),
];

pub fn columns(node: &str, ports: &[String]) -> Vec<Column> {
    let of_port = |port: &String| OF_PORT.map(|signal| (port.clone(), Entity::Port, signal));
    let of_host = OF_HOST.map(|(name, entity, signal)| (name.to_owned(), entity, signal));
    let of_host = of_host.into_iter().filter(|_| node.starts_with('h'));
    ports.iter().flat_map(of_port).chain(of_host).collect()
}

pub fn schema(epoch: u32, columns: &[Column]) -> v1::Schema {
    let column = |(name, entity, signal): &Column| v1::Column {
        port: name.clone(),
        signal: signal.number(),
        entity: match entity {
            Entity::Rdma => v1::Entity::Rdma,
            Entity::Gpu => v1::Entity::Gpu,
            _ => v1::Entity::Port,
        }
        .into(),
        index: None,
    };
    v1::Schema {
        epoch,
        columns: columns.iter().map(column).collect(),
    }
}

/// What went through a port in a second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    pub full: bool,
}

/// Brings a node's values a second forward.
pub fn advance(
    values: &mut BTreeMap<Column, u64>,
    (node, second): (&str, u64),
    busy: bool,
    faults: &Faults,
    moved: impl Fn(&Port) -> Moved,
) {
    let outlier = faults.is_host(Fault::Outlier, node);
    // Columns of one port follow each other.
    let mut of_port = None;
    for ((name, entity, signal), value) in values {
        let port = match entity {
            Entity::Port => (node.to_owned(), name.clone()),
            _ => (node.to_owned(), "eth0".to_owned()),
        };
        let at = |fault| faults.end(fault, &port);
        let Moved {
            tx_bytes,
            rx_bytes,
            full,
        } = match &of_port {
            Some((known, through)) if *known == port => *through,
            _ => of_port.insert((port.clone(), moved(&port))).1,
        };
        let down = at(Fault::Down).is_some() || at(Fault::TakenDown).is_some();
        let lost = if at(Fault::Swallows) == Some(1) {
            30
        } else {
            0
        };
        let arrived = rx_bytes - rx_bytes * lost / 1000;
        match signal {
            Signal::TxBytes => *value += tx_bytes,
            Signal::RxBytes => *value += arrived,
            Signal::TxPackets => *value += tx_bytes / 2048,
            Signal::RxPackets => *value += arrived / 2048,
            Signal::QueueBytesMax => *value = if full { 150_000 } else { 0 },
            Signal::QueueDrops => *value += u64::from(full),
            Signal::LinkUp => *value = u64::from(!down),
            Signal::LinkDowns => {
                *value += u64::from(at(Fault::Flaps).is_some() && second.is_multiple_of(5));
            }
            Signal::AdminUp => *value = u64::from(at(Fault::TakenDown) != Some(0)),
            Signal::RxErrors => *value += if at(Fault::Errors) == Some(1) { 300 } else { 0 },
            Signal::RateBps => {
                *value = if at(Fault::Slow).is_some() {
                    100_000_000
                } else {
                    200_000_000
                };
            }
            Signal::PauseRxUs => {
                *value += if at(Fault::Paused) == Some(0) {
                    900_000
                } else {
                    0
                }
            }
            Signal::PauseTxUs => {
                *value += if at(Fault::Paused) == Some(1) {
                    900_000
                } else {
                    0
                }
            }
            Signal::GpuUtilisation => {
                *value = if !busy {
                    0
                } else if outlier {
                    40
                } else {
                    95
                }
            }
            Signal::GpuPower => *value = if outlier { 300_000 } else { 700_000 },
            // Each host has its own usual place.
            Signal::GpuTemperature => {
                let place = u64::from(node.as_bytes()[2] - b'0') * 1000;
                *value = place + if outlier { 40_000 } else { 60_000 };
            }
            _ => unreachable!("{signal:?} is no column"),
        }
    }
}
