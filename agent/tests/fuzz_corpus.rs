//! The corpus of the fuzz targets, replayed: what a fuzzer found once is never found again.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::panic::catch_unwind;
use std::path::Path;
use weir_agent::fuzz;

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
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let outcome = catch_unwind(|| body(&bytes));
        let things = outcome.unwrap_or_else(|_| panic!("a parser panicked at {}", file.display()));
        if things > 0 {
            understood.push(file.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
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
