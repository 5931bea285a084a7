//! What the fuzz targets of tests/fuzz feed: every parser of bytes that the kernel, a driver or a peer
//! wrote. A test replays the committed corpus through the same functions.
//!
//! Each gives how much of the input was understood, and panics if a parser does, or if what it
//! understood cannot be.

use crate::bpf::sockdiag;
use crate::ethtool::{ioctl, netlink as ethtool_netlink};
use crate::gpu;
use crate::kmsg::record::{self, Record};
use crate::kmsg::{Rules, catalogue, pci};
use crate::netlink::{Attributes, links, monitor, nexthops, qdiscs, routes, verdict};
use crate::rdma::{netlink as rdma_netlink, text};
use crate::{ethtool, source::Event};
use prost::Message as _;
use weir_wire::columns::Columns;
use weir_wire::frame::{CallRows, FlowRows, RoceRows, RunningRows};
use weir_wire::v1::{AgentMessage, ControllerMessage, agent_message::Body};

/// Longest text of an event: what is cut, and what a rule puts around it.
const EVENT_TEXT_MAX: usize = 4096;
/// Columns of the schema that a frame is decoded against.
const COLUMNS: usize = 64;
const NUMBERS: u32 = 8;

/// Files of `/sys`: counters, states, rates, identifiers, addresses; RAS files of amdgpu.
pub fn sysfs_text(bytes: &[u8]) -> usize {
    let lossy = String::from_utf8_lossy(bytes);
    let counter = text::counter(bytes);
    if let Some(value) = counter {
        assert_eq!(lossy.trim().parse(), Ok(value));
    }
    let line = text::line(bytes);
    if let Some(line) = &line {
        assert!(!line.is_empty() && !line.contains('\n'));
    }
    let rate = text::rate(&lossy);
    assert!(rate.as_ref().is_none_or(|r| r.lanes > 0));
    let state = text::state(&lossy);
    let identifier = text::identifier(&lossy);
    let address = text::is_pci_address(lossy.trim());
    let ras = gpu::ras(&lossy);
    let generation = gpu::pcie_generation(lossy.trim());
    [
        counter.is_some(),
        rate.is_some(),
        state.is_some(),
        identifier.is_some(),
        address,
        gpu::pci_address(lossy.trim()).is_some(),
        generation.is_some(),
        ras != gpu::Ras::default(),
    ]
    .into_iter()
    .filter(|understood| *understood)
    .count()
}

/// A record of `/dev/kmsg`, and the same bytes as lines of dmesg or journalctl.
pub fn kmsg_line(bytes: &[u8]) -> usize {
    let mut rules = Rules::default();
    let mut understood = 0;
    if let Some(record) = Record::parse(bytes) {
        assert!(record.level < 8);
        understood += 1;
        understood += usize::from(
            rules
                .event(&record)
                .is_some_and(|event| check_event(&event)),
        );
    }
    let lossy = String::from_utf8_lossy(bytes);
    for message in record::messages(&lossy) {
        if let Some(event) = rules.read(&message) {
            understood += usize::from(check_event(&event));
        }
        if let Some(address) = pci::find(&message) {
            assert_eq!(pci::address(&address), Some(address.clone()));
        }
    }
    understood
}

fn check_event(event: &Event) -> bool {
    assert!(
        !event.name.is_empty() && event.text.len() <= EVENT_TEXT_MAX,
        "{event:?}"
    );
    if let Some(code) = event.code.filter(|_| event.name == "xid") {
        let (_, text, _) = catalogue::meaning(code);
        assert!(!text.is_empty(), "XID {code}");
    }
    true
}

/// Replies of RDMA netlink, rtnetlink, ethtool's netlink and the socket diagnostics, after the header
/// of netlink.
pub fn netlink_attributes(bytes: &[u8]) -> usize {
    assert!(Attributes(bytes).count() <= bytes.len() / 4);
    let fec = ethtool_netlink::parse_fec(bytes);
    let mut changes = monitor::Changes::default();
    monitor::read(bytes, &mut changes);
    let understood = [
        fec != ethtool_netlink::Fec::default(),
        ethtool_netlink::parse_mode(bytes) != ethtool_netlink::Mode::default(),
        links::parse_link(bytes).is_some_and(|link| !link.name.is_empty()),
        links::parse_address(bytes).is_some(),
        links::parse_neighbour(bytes).is_some(),
        nexthops::parse(bytes).is_some(),
        qdiscs::parse(bytes).is_some(),
        routes::parse(bytes).is_some(),
        sockdiag::parse_message(bytes).is_some(),
        changes != monitor::Changes::default(),
        verdict("a request", bytes).is_err(),
    ];
    rdma_netlink::understood(bytes) + understood.into_iter().filter(|u| *u).count()
}

/// Names of statistics, 32 bytes each; the first byte chooses the driver.
pub fn ethtool_strings(bytes: &[u8]) -> usize {
    const DRIVERS: [&str; 7] = [
        "mlx5_core",
        "bnxt_en",
        "ice",
        "i40e",
        "ionic",
        "ena",
        "veth",
    ];
    let Some((first, strings)) = bytes.split_first() else {
        return 0;
    };
    let driver = DRIVERS[usize::from(*first) % DRIVERS.len()];
    let names: Vec<String> = ioctl::parse_names(strings).collect();
    assert_eq!(names.len(), strings.len() / 32);
    let all = names.len();
    let (columns, kept) = ethtool::understood(driver, names);
    assert!(columns <= kept && kept <= all);
    columns
}

/// What crosses the network: messages of both sides, and the packed bodies of frames.
pub fn wire_frame(bytes: &[u8]) -> usize {
    let message = AgentMessage::decode(bytes);
    let mut understood = usize::from(ControllerMessage::decode(bytes).is_ok());
    if let Ok(AgentMessage { body: Some(body) }) = message {
        understood += 1;
        if let Body::Frame(frame) = body {
            understood += check_columns(&frame.columns);
            understood += check_rows(&frame.flows) + check_rows(&frame.collectives);
            understood += check_rows(&frame.running);
        }
    }
    understood + check_columns(bytes) + check_rows(bytes)
}

/// What decodes encodes to something that decodes to the same.
fn check_columns(body: &[u8]) -> usize {
    let all = |columns: &Columns| -> Vec<Option<u64>> {
        (0..columns.len()).map(|n| columns.get(n)).collect()
    };
    let mut columns = Columns::new(COLUMNS);
    if columns.decode(body).is_err() {
        assert_eq!(all(&columns), [None; COLUMNS]);
        return 0;
    }
    let (mut sender, mut again) = (Columns::new(COLUMNS), Vec::new());
    sender.encode(&all(&columns), &mut again);
    let mut receiver = Columns::new(COLUMNS);
    assert!(receiver.decode(&again).is_ok());
    assert_eq!(all(&receiver), all(&columns));
    usize::from(!body.is_empty())
}

fn check_rows(body: &[u8]) -> usize {
    let (mut flows, mut roce, mut calls, mut running) = (
        FlowRows::default(),
        RoceRows::default(),
        CallRows::default(),
        RunningRows::default(),
    );
    for number in 0..NUMBERS {
        flows.announce(number);
        roce.announce(number);
        calls.announce(number);
        running.announce(number);
    }
    let counts = [
        flows.decode(body).map(|rows| rows.len()),
        roce.decode(body).map(|rows| rows.len()),
        calls.decode(body).map(|rows| rows.len()),
        running.decode(body).map(|rows| rows.len()),
    ];
    let decoded = counts.into_iter().flatten();
    // A row costs two bytes at least.
    decoded
        .inspect(|rows| assert!(*rows <= body.len() / 2))
        .sum()
}
