//! Queue pairs of real verbs devices: the agent's table beside a capture and the kernel's own list,
//! in a virtual machine with soft-RoCE. `tests/guest/qp.sh` is what runs in it.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use weir_lab::guest;

type Sections = BTreeMap<String, String>;

/// Bytes of a packet before the base transport header: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;
const H1: [u8; 4] = [10, 0, 1, 2];
const H3: [u8; 4] = [10, 0, 3, 2];

/// What a capture shows of one sender's packets to one pair.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
    bytes: u64,
    packets: u64,
    ce: u64,
    dscp: u8,
}

/// Source and destination address, destination pair, UDP source port.
type Wire = ([u8; 4], [u8; 4], u32, u16);

/// Runs a program on bytes.
fn filter(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// Reads a capture of tcpdump: what RoCE packets it holds.
fn capture(sections: &Sections, interface: &str) -> BTreeMap<Wire, Seen> {
    let text = &sections[&format!("capture {interface}")];
    let pcap = filter(
        "gzip",
        &["-dc"],
        &filter("base64", &["-d"], text.as_bytes()),
    );
    let word = |at: usize| u32::from_le_bytes(pcap[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xa1b2_c3d4, "a capture of this byte order");
    let mut seen: BTreeMap<Wire, Seen> = BTreeMap::new();
    let mut at = 24;
    while at < pcap.len() {
        let captured = usize::try_from(word(at + 8)).unwrap();
        let length = u64::from(word(at + 12));
        let packet = &pcap[at + 16..at + 16 + captured];
        at += 16 + captured;
        let address = |from: usize| <[u8; 4]>::try_from(&packet[from..from + 4]).unwrap();
        let bth = &packet[HEADERS..];
        let wire = (
            address(26),
            address(30),
            u32::from_be_bytes([0, bth[5], bth[6], bth[7]]),
            u16::from_be_bytes([packet[34], packet[35]]),
        );
        let entry = seen.entry(wire).or_default();
        entry.bytes += length;
        entry.packets += 1;
        entry.ce += u64::from(packet[15] & 3 == 3);
        entry.dscp = packet[15] >> 2;
    }
    seen
}

fn pairs(section: &str) -> Vec<Value> {
    serde_json::from_str(section.trim()).unwrap()
}

/// The pairs of ib_write_bw: connected, of one of its devices.
fn connected(rows: &[Value], device: &str) -> Vec<Value> {
    let is = |row: &&Value| row["device"] == device && row["kind"] == "RC";
    rows.iter().filter(is).cloned().collect()
}

fn metric(page: &str, series: &str) -> Option<u64> {
    let start = format!("{series} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&start))?;
    value.trim().parse().ok()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap_or_else(|| panic!("{value}"))).unwrap()
}

#[test]
fn queue_pairs_are_listed_as_the_wire_and_the_kernel_show_them() {
    let Some(sections) = guest::run("qp.sh") else {
        return;
    };
    let of = |name: &str| {
        sections
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {sections:?}"))
            .as_str()
    };
    for (section, text) in &sections {
        assert!(!text.contains("never: "), "{section}: {text}");
    }
    let source = |section: &str| metric(of(section), "weir_agent_source_up{source=\"qp\"}");
    assert_eq!((source("before"), source("after")), (Some(0), Some(1)));

    let captured = of("captured");
    let dropped = captured.matches("\n0 packets dropped by kernel").count();
    assert_eq!(dropped, 2, "{captured}");
    let (h1, h3) = (capture(&sections, "h1"), capture(&sections, "h3"));
    let listed = pairs(of("pairs"));
    let pids: Vec<u32> = of("pids")
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();

    identities(&sections, &listed, &pids);
    on_the_wire(&listed, &h1);
    counted(&sections, &listed, &h1, &h3);

    // An agent that came late has what netlink tells, and nothing made up.
    let late = pairs(of("late"));
    for device in ["rxe1", "rxe3"] {
        let numbers = |rows: &[Value]| -> BTreeSet<(u32, u32)> {
            connected(rows, device)
                .iter()
                .map(|row| (number(&row["qpn"]), number(&row["peer_qpn"])))
                .collect()
        };
        assert_eq!(numbers(&late), numbers(&listed), "{device}");
        for row in connected(&late, device) {
            assert_eq!(row["older"], true, "{row}");
            assert!(row["peer"].is_null() && row["src_port"].is_null(), "{row}");
        }
    }
    for section in ["ended", "ended late"] {
        let left = pairs(of(section));
        assert!(left.iter().all(|row| row["kind"] != "RC"), "{left:?}");
    }
    filters(&sections);
}

/// The agent's rows are those of `rdma resource show qp`, with the processes that made them.
fn identities(sections: &Sections, listed: &[Value], pids: &[u32]) {
    let kernel: Vec<Value> = pairs(&sections["resources"]);
    for (device, pid) in [("rxe1", pids[0]), ("rxe3", pids[1])] {
        let shown: BTreeSet<(u32, u32, u32, String)> = kernel
            .iter()
            .filter(|row| row["ifname"] == device && row["type"] == "RC")
            .map(|row| {
                (
                    number(&row["lqpn"]),
                    number(&row["rqpn"]),
                    number(&row["pid"]),
                    row["state"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let rows = connected(listed, device);
        let found: BTreeSet<(u32, u32, u32, String)> = rows
            .iter()
            .map(|row| {
                (
                    number(&row["qpn"]),
                    number(&row["peer_qpn"]),
                    number(&row["pid"]),
                    row["state"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        assert_eq!(found, shown, "{device}");
        assert_eq!(found.len(), 4, "{device}: {found:?}");
        assert!(found.iter().all(|row| row.2 == pid), "{pid}: {found:?}");
        for row in rows {
            assert_eq!(row["job"], "slurm:77", "{row}");
            assert_eq!(row["dscp"], 26, "{row}");
            assert_eq!(row["older"], false, "{row}");
            // The kernel chose it, and no firmware.
            assert_eq!(row["src_port_predicted"], false, "{row}");
        }
    }
}

/// Every sender on the wire is a pair of the table and every pair is on the wire: addresses, peer
/// and UDP source port.
fn on_the_wire(listed: &[Value], h1: &BTreeMap<Wire, Seen>) {
    let wire = |row: &Value| -> Wire {
        let address = |field: &str| -> [u8; 4] {
            let text = row[field].as_str().unwrap();
            text.parse::<std::net::Ipv4Addr>().unwrap().octets()
        };
        let port = u16::try_from(number(&row["src_port"])).unwrap();
        (
            address("local"),
            address("peer"),
            number(&row["peer_qpn"]),
            port,
        )
    };
    let listed: BTreeSet<Wire> = connected(listed, "rxe1").iter().map(wire).collect();
    let captured: BTreeSet<Wire> = h1.keys().copied().collect();
    assert_eq!(listed, captured);
    let ports: BTreeSet<u16> = captured.iter().map(|wire| wire.3).collect();
    assert_eq!(ports.len(), 4, "a port for each pair: {captured:?}");
    for (wire, seen) in h1 {
        assert_eq!((wire.0, wire.1, seen.dscp), (H1, H3, 26));
    }
}

/// What the programs counted is what the captures hold, and what the queue says it marked.
fn counted(
    sections: &Sections,
    listed: &[Value],
    h1: &BTreeMap<Wire, Seen>,
    h3: &BTreeMap<Wire, Seen>,
) {
    for row in connected(listed, "rxe1") {
        let peer = number(&row["peer_qpn"]);
        let (_, seen) = h1.iter().find(|(wire, _)| wire.2 == peer).unwrap();
        assert!(seen.packets > 50, "{seen:?}");
        assert_eq!(row["sent"]["bytes"], seen.bytes, "{row}");
        assert_eq!(row["sent"]["packets"], seen.packets, "{row}");
    }
    let total = |capture: &BTreeMap<Wire, Seen>, of: fn(&Seen) -> u64| -> u64 {
        capture.values().map(of).sum()
    };
    let page = &sections["counted"];
    let of = |name: &str, port: &str, direction: &str| {
        let series = format!("weir_roce_{name}{{port=\"{port}\",direction=\"{direction}\"}}");
        metric(page, &series).unwrap_or_else(|| panic!("{series}: {page}"))
    };
    assert_eq!(of("bytes_total", "h1", "transmit"), total(h1, |s| s.bytes));
    assert_eq!(of("bytes_total", "h3", "receive"), total(h3, |s| s.bytes));
    assert_eq!(of("ce_packets_total", "h1", "transmit"), 0);
    let marked = total(h3, |s| s.ce);
    assert!(marked > 0, "the router marked nothing");
    assert_eq!(of("ce_packets_total", "h3", "receive"), marked);
    let qdiscs: Value = serde_json::from_str(sections["marked"].trim()).unwrap();
    let red = qdiscs
        .as_array()
        .unwrap()
        .iter()
        .find(|q| q["kind"] == "red");
    assert_eq!(red.unwrap()["marked"].as_u64(), Some(marked), "{qdiscs}");
    // Soft-RoCE sends no notifications.
    assert_eq!(of("cnps_total", "h3", "receive"), 0);
    assert_eq!(metric(page, "weir_roce_skipped_total"), Some(0));
    assert_eq!(metric(page, "weir_agent_bpf_lost_records_total"), Some(0));
    let rts =
        |device: &str| format!("weir_rdma_qps{{device=\"{device}\",type=\"RC\",state=\"RTS\"}}");
    assert_eq!(metric(page, &rts("rxe1")), Some(4));
}

/// One filter each at a time, none of ours in the end, somebody else's untouched.
fn filters(sections: &Sections) {
    let all = |section: &str| -> Vec<String> {
        let lines = sections[section].lines();
        lines.map(|line| line.trim_end().to_owned()).collect()
    };
    let watched = [
        "h1 ingress: weir_roce_in",
        "h1 egress: weir_roce_out",
        "h2 ingress: matchall weir_roce_in",
        "h2 egress: weir_roce_out",
    ];
    assert_eq!(all("filters killed"), watched);
    assert_eq!(all("filters restarted"), watched);
    let stopped = [
        "h1 ingress:",
        "h1 egress:",
        "h2 ingress: matchall",
        "h2 egress:",
    ];
    assert_eq!(all("filters stopped"), stopped);
}
