//! The agent on real verbs devices: soft-RoCE in a virtual machine with Debian's stock kernel.
//!
//! `tests/guest/rdma.sh` is what runs in it. Skipped, aloud, where QEMU is not installed or the
//! packages cannot be had.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use serde_json::Value;
use std::collections::BTreeMap;
use weir_lab::guest;

/// A metric of port 1 of a device.
fn metric(page: &str, name: &str, device: &str) -> Option<f64> {
    let start = format!("weir_rdma_{name}{{device=\"{device}\",port=\"1\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&start))?;
    value.trim().parse().ok()
}

/// What `rdma -j statistic` shows of a device.
fn statistic(sections: &BTreeMap<String, String>, section: &str) -> Value {
    let shown: Value = serde_json::from_str(sections[section].trim()).unwrap();
    shown[0].clone()
}

#[test]
fn real_verbs_devices_are_read_as_the_kernel_counts_and_one_that_goes_costs_itself() {
    let Some(sections) = guest::run("rdma.sh") else {
        return;
    };
    // The signals of soft-RoCE and the counters behind them.
    let signals = [
        ("transmit_packets_total", "sent_pkts"),
        ("receive_packets_total", "rcvd_pkts"),
        ("out_of_sequence_total", "out_of_seq_request"),
        ("sequence_naks_total", "rcvd_seq_err"),
        ("rnr_naks_total", "rcvd_rnr_err"),
        ("retransmits_total", "completer_retry_err"),
        ("link_downs_total", "link_downed"),
    ];
    for (page, shown) in [("clean", "statistic"), ("loss", "lost")] {
        for device in ["rxe1", "rxe3"] {
            let counters = statistic(&sections, &format!("{shown} {device}"));
            for (signal, counter) in signals {
                let read = metric(&sections[page], signal, device);
                assert_eq!(
                    read,
                    counters[counter].as_f64(),
                    "{page}: {device} {counter}"
                );
            }
        }
    }
    let of = |section: &str, name, device| metric(&sections[section], name, device).unwrap();
    let sent = of("clean", "transmit_packets_total", "rxe1");
    assert!(sent > 1000.0, "traffic ran: {sent}");
    let rose = |name, device| of("loss", name, device) - of("clean", name, device);
    // A loss is seen by the sender as retransmissions and NAKs, by the receiver as a gap.
    assert!(rose("retransmits_total", "rxe1") > 0.0);
    assert!(rose("sequence_naks_total", "rxe1") > 0.0);
    assert!(rose("out_of_sequence_total", "rxe3") > 0.0);
    assert!(rose("retransmits_total", "rxe3") < rose("retransmits_total", "rxe1"));

    assert_eq!(of("clean", "up", "rxe2"), 1.0);
    assert_eq!(of("down", "up", "rxe2"), 0.0);
    assert_eq!(of("down", "link_downs_total", "rxe2"), 1.0);
    assert_eq!(
        metric(&sections["down"], "rate_bits_per_second", "rxe2"),
        None
    );

    let removed = &sections["removed"];
    assert_eq!(metric(removed, "up", "rxe3"), None, "{removed}");
    assert_eq!(metric(removed, "up", "rxe1"), Some(1.0));
    for source in ["rdma", "netdev", "ethtool", "kmsg"] {
        let up = format!("weir_agent_source_up{{source=\"{source}\"}} 1");
        assert!(removed.contains(&up), "{source}: {removed}");
    }
    assert_eq!(sections["alive"].trim(), "yes");
}
