//! Queue depth and drops of a real shaped port.

use std::net::{TcpStream, UdpSocket};

use super::rig::{Pair, inside, is_root, load, output, skipped, succeeds, until};
use crate::bpf::{BpfOptions, BpfSample};

const LIMIT_BYTES: u64 = 30_000;
const DATAGRAM: usize = 1000;
const DATAGRAMS: usize = 60;

fn options() -> BpfOptions {
    BpfOptions {
        netns_filter: true,
        qdisc: true,
        drop: true,
        ..BpfOptions::default()
    }
}

/// The lab's port: a class that shapes, with a byte queue below it.
fn shape(netns: &str) -> bool {
    [
        format!("tc -n {netns} qdisc add dev port root handle 1: htb default 1"),
        format!("tc -n {netns} class add dev port parent 1: classid 1:1 htb rate 1mbit burst 2k"),
        format!("tc -n {netns} qdisc add dev port parent 1:1 handle 10: bfifo limit {LIMIT_BYTES}"),
    ]
    .iter()
    .all(|line| succeeds(line))
}

fn burst() {
    // Refused; resolves the address, so that only our datagrams queue.
    drop(TcpStream::connect("10.77.0.2:9"));
    let socket = UdpSocket::bind("10.77.0.1:0").expect("a free port");
    for _ in 0..DATAGRAMS {
        // The queue is too short for all: a refusal is what is looked for.
        drop(socket.send_to(&[0; DATAGRAM], "10.77.0.2:9"));
    }
}

fn ifindex(netns: &str) -> u32 {
    let line = output(&format!("ip -n {netns} -o link show port"));
    let number = line
        .split(':')
        .next()
        .and_then(|number| number.parse().ok());
    number.expect("the port is there")
}

fn drops_of(sample: &BpfSample, ifindex: u32, reason: &str) -> u64 {
    let of_port = sample.drops.iter().filter(|drops| drops.ifindex == ifindex);
    of_port
        .filter(|drops| drops.reason == reason)
        .map(|drops| drops.count)
        .sum()
}

#[test]
fn a_burst_shows_as_the_ports_depth_and_its_overflow_as_drops() {
    if !is_root() {
        return;
    }
    let Some(pair) = Pair::make() else { return };
    if !shape(&pair.first) {
        return skipped("tc or this kernel's htb, bfifo");
    }
    let Some(mut elsewhere) = inside(&pair.second, || load(&options())) else {
        return;
    };
    let Some(mut bpf) = inside(&pair.first, || load(&options())) else {
        return;
    };
    let ifindex = ifindex(&pair.first);
    inside(&pair.first, burst);
    let port = until(&mut bpf, "the burst in the queue", |sample, _| {
        let mut ports = sample.ports.iter();
        ports
            .find(|port| port.ifindex == ifindex && port.queue_bytes_max > LIMIT_BYTES / 2)
            .cloned()
    });
    // The depth is that of the whole port: what bfifo lets in, no more.
    assert!(port.queue_bytes_max <= LIMIT_BYTES + 2000, "{port:?}");
    // Counted once per packet (by the root alone), although two disciplines are passed.
    let packets: u64 = port.histogram.iter().sum();
    assert!((20..=60).contains(&packets), "{packets}");
    until(&mut bpf, "the overflow", |sample, _| {
        (drops_of(sample, ifindex, "qdisc_drop") > 10
            || drops_of(sample, ifindex, "qdisc_overlimit") > 10)
            .then_some(())
    });
    // The window is closed: no new packet, no depth.
    until(&mut bpf, "an empty window", |sample, _| {
        let mut ports = sample.ports.iter();
        ports
            .find(|port| port.ifindex == ifindex && port.queue_bytes_max == 0)
            .cloned()
    });
    let sample = until(&mut elsewhere, "a poll", |sample, _| Some(sample.clone()));
    let foreign = sample.ports.iter().map(|port| port.queue_bytes_max).max();
    assert!(foreign.unwrap_or(0) < LIMIT_BYTES / 2, "{:?}", sample.ports);
    assert!(
        sample
            .drops
            .iter()
            .all(|drops| !drops.reason.starts_with("qdisc"))
    );
}
