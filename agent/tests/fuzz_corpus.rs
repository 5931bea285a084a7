//! The corpus of the fuzz targets, replayed: what a fuzzer found once is never found again.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::panic::catch_unwind;
use std::path::Path;
use weir_agent::fuzz;

/// Changed copies of the corpus that are fed as well; `WEIR_FUZZ_ROUNDS` asks for more.
const ROUNDS: u64 = 3_000;

/// Numbers that look random and are the same in each run (xorshift of 64 bits).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        const ODD: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b'9'];
        match self.below(2) {
            0 => ODD[self.below(ODD.len())],
            _ => u8::try_from(self.below(256)).unwrap(),
        }
    }

    /// One seed with bytes changed, cut out, doubled, or the end of another behind it.
    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(16)).min(bytes.len());
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] = self.byte(),
                1 => bytes.insert(at, self.byte()),
                2 => drop(bytes.drain(at..end)),
                3 => bytes.extend_from_within(at..end),
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}

/// Feeds changed copies of the seeds: not what a fuzzer does, but at each run of the tests.
fn stir(target: &str, body: fn(&[u8]) -> usize, seeds: &[Vec<u8>]) {
    let rounds = std::env::var("WEIR_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        let bytes = random.change(seeds);
        let outcome = catch_unwind(|| body(&bytes));
        assert!(outcome.is_ok(), "{target}: a parser panicked at {bytes:?}");
    }
}

/// Feeds every file of a target's corpus; gives the names of those of which something was understood.
fn replay(target: &str, body: fn(&[u8]) -> usize) -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    let mut understood = Vec::new();
    let mut seeds = Vec::new();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let outcome = catch_unwind(|| body(&bytes));
        let things = outcome.unwrap_or_else(|_| panic!("a parser panicked at {}", file.display()));
        if things > 0 {
            understood.push(file.file_name().unwrap().to_string_lossy().into_owned());
        }
        seeds.push(bytes);
    }
    stir(target, body, &seeds);
    understood
}

/// Replays, and sees that the corpus still reaches what lies behind the first check.
fn check(target: &str, body: fn(&[u8]) -> usize, must: &[&str], must_not: &[&str]) {
    let understood = replay(target, body);
    let has = |name: &&&str| understood.iter().any(|u| u == **name);
    let lost: Vec<_> = must.iter().filter(|n| !has(n)).collect();
    let odd: Vec<_> = must_not.iter().filter(has).collect();
    assert!(
        lost.is_empty(),
        "{target}: not understood any more: {lost:?}"
    );
    assert!(
        odd.is_empty(),
        "{target}: understood, and should not be: {odd:?}"
    );
}

#[test]
fn text_of_sysfs() {
    check(
        "sysfs_text",
        fuzz::sysfs_text,
        &[
            "counter",
            "state",
            "rate_half",
            "guid",
            "pci",
            "pcie",
            "ras",
        ],
        &["no_pma", "empty", "not_text"],
    );
}

#[test]
fn lines_of_the_kernel_log() {
    check(
        "kmsg_line",
        fuzz::kmsg_line,
        &[
            "xid",
            "xid_145",
            "sxid",
            "mlx5_health",
            "aer",
            "pcie",
            "dmesg",
            "journal",
        ],
        &["empty"],
    );
}

#[test]
fn attributes_of_netlink() {
    check(
        "netlink_attributes",
        fuzz::netlink_attributes,
        &[
            "rdma_counters",
            "rdma_device",
            "rdma_port",
            "rdma_qps",
            "rdma_status",
            "ethtool_fec",
            "ethtool_mode",
            "link",
            "address",
            "neighbour",
            "route",
            "nexthop",
            "nexthop_group",
            "qdisc",
            "socket",
            "error",
        ],
        &["empty"],
    );
}

#[test]
fn names_of_ethtool_statistics() {
    check(
        "ethtool_strings",
        fuzz::ethtool_strings,
        &["mlx5", "bnxt", "ice", "i40e", "ionic", "ena"],
        &["veth", "empty"],
    );
}

#[test]
fn frames_of_the_wire() {
    check(
        "wire_frame",
        fuzz::wire_frame,
        &[
            "message_frame",
            "message_hello",
            "columns",
            "flows",
            "calls",
            "running",
        ],
        &["varint_too_long", "columns_out_of_schema"],
    );
}
