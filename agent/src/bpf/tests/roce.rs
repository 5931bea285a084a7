//! The tc programs on built packets, run by the kernel: what they answer and what they count.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions},
};

use super::rig::{Pair, inside, is_root, skipped};
use crate::bpf::{
    BpfOptions, BpfSample, RoceSample, RoceTotal,
    load::{Globals, load_object, program},
    roce::Roce,
};

const SRC4: [u8; 4] = [10, 0, 0, 1];
const DST4: [u8; 4] = [10, 0, 0, 2];
/// `TCX_NEXT`, `TC_ACT_UNSPEC`.
const NEXT: u32 = u32::MAX;
const UDP: u8 = 17;
const RC_SEND_ONLY: u8 = 0x04;
const CNP: u8 = 0x81;

fn options() -> BpfOptions {
    BpfOptions {
        roce: true,
        ..BpfOptions::default()
    }
}

fn loaded() -> Option<(Ebpf, Roce)> {
    if !is_root() {
        return None;
    }
    let mut ebpf = match load_object(&options(), &Globals::default()) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            skipped(&error.to_string());
            return None;
        }
    };
    let roce = Roce::load(&mut ebpf).expect("the verifier lets them pass");
    Some((ebpf, roce))
}

/// Gives packets to the program of the ingress hook; returns what was counted.
fn count(packets: &[Vec<u8>]) -> Option<(Vec<RoceSample>, u64)> {
    let (mut ebpf, mut roce) = loaded()?;
    let ingress: &mut SchedClassifier = program(&mut ebpf, "weir_roce_in").expect("in the object");
    for packet in packets {
        let run = ingress.test_run(TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::new()
        });
        match run {
            Ok(run) => assert_eq!(run.return_value, NEXT, "the packet goes on: {packet:x?}"),
            // Some kernels run no test on less than a whole IP header, of IPv6 where the type says so.
            Err(error) if packet.len() < 14 + 40 => {
                println!("this kernel runs no test on {packet:x?}: {error}");
            }
            Err(error) => panic!("{packet:x?}: {error}"),
        }
    }
    let mut sample = BpfSample::default();
    roce.poll(&mut sample);
    Some((sample.roce, sample.roce_skipped))
}

fn ether(ethertype: u16) -> Vec<u8> {
    [&[2; 12], ethertype.to_be_bytes().as_slice()].concat()
}

/// An IPv4 header with `options` words of options.
fn ipv4(tos: u8, protocol: u8, fragment: u16, options: u8) -> Vec<u8> {
    let [high, low] = fragment.to_be_bytes();
    let start = [
        0x45 + options,
        tos,
        0,
        100,
        0,
        0,
        high,
        low,
        64,
        protocol,
        0,
        0,
    ];
    let mut header = [&start, SRC4.as_slice(), &DST4].concat();
    header.resize(20 + usize::from(options) * 4, 1);
    header
}

fn ipv6(class: u8, next: u8) -> Vec<u8> {
    let start = [0x60 | class >> 4, class << 4, 0, 0, 0, 60, next, 64];
    let (src, dst) = ([0xfd; 16], [0xfe; 16]);
    [start.as_slice(), &src, &dst].concat()
}

/// UDP and base transport header of a packet to pair 0x12345.
fn roce(opcode: u8) -> Vec<u8> {
    let udp = [0xc1, 0x23, 0x12, 0xb7, 0, 60, 0, 0];
    let bth = [opcode, 0, 0xff, 0xff, 0, 0x01, 0x23, 0x45, 0, 0, 0, 1];
    [udp.as_slice(), &bth, &[0; 40]].concat()
}

fn packet(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn plain(tos: u8, opcode: u8) -> Vec<u8> {
    packet(&[ether(0x0800), ipv4(tos, UDP, 0, 0), roce(opcode)])
}

fn total(bytes: usize, packets: u64, ce: u64, cnps: u64) -> RoceTotal {
    RoceTotal {
        bytes: bytes as u64,
        packets,
        ce,
        cnps,
    }
}

#[test]
fn packets_marks_and_notifications_of_a_pair_are_counted_together() {
    // Marked: 3. ECN-capable alone is no mark.
    let packets = [
        plain(0x68, RC_SEND_ONLY),
        plain(0x6a, RC_SEND_ONLY),
        plain(0x69, RC_SEND_ONLY),
        plain(0x6b, RC_SEND_ONLY),
        plain(0, CNP),
    ];
    let Some((counted, skipped)) = count(&packets) else {
        return;
    };
    let bytes = packets.iter().map(Vec::len).sum();
    assert_eq!(
        counted,
        [RoceSample {
            // The kernel runs it as if on the loopback device.
            ifindex: 1,
            ingress: true,
            src: "::ffff:10.0.0.1".parse().expect("an address"),
            dst: "::ffff:10.0.0.2".parse().expect("an address"),
            dest_qpn: 0x1_2345,
            src_port: 0xc123,
            counts: total(bytes, 5, 1, 1),
        }]
    );
    assert_eq!(skipped, 0);
}

#[test]
fn pairs_and_directions_are_counted_apart() {
    let Some((mut ebpf, mut roce_maps)) = loaded() else {
        return;
    };
    let first = plain(0, RC_SEND_ONLY);
    let mut second = first.clone();
    // Last byte of the destination pair, and of the source port.
    second[14 + 20 + 8 + 7] = 0x46;
    let mut third = first.clone();
    third[14 + 20 + 1] = 0x24;
    for (hook, packet) in [
        ("weir_roce_in", &first),
        ("weir_roce_in", &second),
        ("weir_roce_in", &third),
        ("weir_roce_out", &first),
    ] {
        let classifier: &mut SchedClassifier = program(&mut ebpf, hook).expect("in the object");
        let run = classifier.test_run(TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::new()
        });
        assert_eq!(run.expect("it runs").return_value, NEXT);
    }
    let mut sample = BpfSample::default();
    roce_maps.poll(&mut sample);
    let mut seen: Vec<_> = sample
        .roce
        .iter()
        .map(|s| (s.ingress, s.dest_qpn, s.src_port, s.counts.packets))
        .collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            (false, 0x1_2345, 0xc123, 1),
            (true, 0x1_2345, 0xc123, 1),
            (true, 0x1_2345, 0xc124, 1),
            (true, 0x1_2346, 0xc123, 1)
        ]
    );
}

#[test]
fn tags_options_and_ipv6_are_read() {
    let tag = |ethertype: u16| [vec![0, 7], ethertype.to_be_bytes().to_vec()].concat();
    let tagged = packet(&[ether(0x8100), tag(0x0800), ipv4(3, UDP, 0, 0), roce(CNP)]);
    let twice = packet(&[
        ether(0x88a8),
        tag(0x8100),
        tag(0x0800),
        ipv4(3, UDP, 0, 0),
        roce(CNP),
    ]);
    let with_options = packet(&[ether(0x0800), ipv4(3, UDP, 0, 2), roce(CNP)]);
    // "Do not fragment" is no fragment.
    let whole = packet(&[ether(0x0800), ipv4(3, UDP, 0x4000, 0), roce(CNP)]);
    let v6 = packet(&[ether(0x86dd), ipv6(0x6b, UDP), roce(CNP)]);
    for packet in [&tagged, &twice, &with_options, &whole, &v6] {
        let Some((counted, skipped)) = count(std::slice::from_ref(packet)) else {
            return;
        };
        let [sample] = counted.as_slice() else {
            panic!("{packet:x?}: {counted:?}");
        };
        assert_eq!((sample.dest_qpn, sample.src_port), (0x1_2345, 0xc123));
        assert_eq!(skipped, 0);
        // A tag of the outermost kind is taken off before the hook, as from a device.
        let length = usize::try_from(sample.counts.bytes).expect("small");
        assert!(packet.len() - length <= 4, "{length} of {}", packet.len());
        assert_eq!(
            (sample.counts.ce, sample.counts.cnps),
            (1, 1),
            "{packet:x?}"
        );
    }
    let Some((counted, _)) = count(&[v6]) else {
        return;
    };
    assert_eq!(counted[0].src.octets(), [0xfd; 16]);
    assert_eq!(counted[0].dst.octets(), [0xfe; 16]);
}

#[test]
fn what_cannot_be_read_is_skipped_and_said() {
    let tag = |ethertype: u16| [vec![0, 7], ethertype.to_be_bytes().to_vec()].concat();
    let whole = plain(3, RC_SEND_ONLY);
    let header_end = 14 + 20 + 8 + 12;
    let mut short_datagram = whole.clone();
    // UDP length of 19: one byte less than both headers.
    short_datagram[14 + 20 + 5] = 19;
    let four_tags = packet(&[
        ether(0x88a8),
        tag(0x8100),
        tag(0x8100),
        tag(0x8100),
        tag(0x0800),
        ipv4(0, UDP, 0, 0),
        roce(CNP),
    ]);
    for (what, packet) in [
        (
            "cut in the transport header",
            whole[..header_end - 1].to_vec(),
        ),
        ("a short datagram", short_datagram),
        (
            "the first fragment",
            packet(&[ether(0x0800), ipv4(0, UDP, 0x2000, 0), roce(CNP)]),
        ),
        ("too many tags", four_tags),
        (
            "a hop-by-hop header",
            packet(&[
                ether(0x86dd),
                ipv6(0, 0),
                vec![UDP, 0, 1, 4, 0, 0, 0, 0],
                roce(CNP),
            ]),
        ),
        (
            "a fragment header",
            packet(&[
                ether(0x86dd),
                ipv6(0, 44),
                vec![UDP, 0, 0, 0, 0, 0, 0, 0],
                roce(CNP),
            ]),
        ),
    ] {
        let Some((counted, skipped)) = count(&[packet]) else {
            return;
        };
        assert_eq!((counted.len(), skipped), (0, 1), "{what}");
    }
}

#[test]
fn other_packets_are_neither_counted_nor_skipped() {
    let whole = plain(3, RC_SEND_ONLY);
    let mut other_port = whole.clone();
    other_port[14 + 20 + 3] = 0xb8;
    let mut version_5 = whole.clone();
    version_5[14] = 0x55;
    let mut short_header = whole.clone();
    short_header[14] = 0x44;
    let mut not_6 = packet(&[ether(0x86dd), ipv6(0, UDP), roce(CNP)]);
    not_6[14] = 0x40;
    for (what, packet) in [
        ("a byte of IP", packet(&[ether(0x0800), vec![0x45]])),
        (
            "multicast reports behind a hop-by-hop header",
            packet(&[
                ether(0x86dd),
                ipv6(0, 0),
                vec![58, 0, 5, 2, 0, 0, 1, 0],
                roce(CNP),
            ]),
        ),
        ("cut in the IP header", whole[..14 + 19].to_vec()),
        ("cut in the UDP header", whole[..14 + 20 + 7].to_vec()),
        ("ARP", packet(&[ether(0x0806), vec![0; 46]])),
        ("cut in a tag", packet(&[ether(0x8100), vec![0, 7]])),
        ("TCP", packet(&[ether(0x0800), ipv4(0, 6, 0, 0), roce(CNP)])),
        (
            "a later fragment",
            packet(&[ether(0x0800), ipv4(0, UDP, 0x0010, 0), roce(CNP)]),
        ),
        (
            "TCP over IPv6",
            packet(&[ether(0x86dd), ipv6(0, 6), roce(CNP)]),
        ),
        (
            "cut in the IPv6 header",
            packet(&[ether(0x86dd), ipv6(0, UDP)[..30].to_vec()]),
        ),
        ("another port", other_port),
        ("a version of IP that is none", version_5),
        ("a header shorter than it can be", short_header),
        ("an IPv6 packet that is none", not_6),
    ] {
        let Some((counted, skipped)) = count(&[packet]) else {
            return;
        };
        assert_eq!((counted.len(), skipped), (0, 0), "{what}");
    }
}

#[test]
fn ports_get_programs_and_lose_them_with_the_agent() {
    let Some((mut ebpf, mut roce_maps)) = loaded() else {
        return;
    };
    let Some(pair) = Pair::make() else { return };
    let attached = |hook| {
        SchedClassifier::query_tcx("port", hook)
            .map(|(_, programs)| programs.len())
            .ok()
    };
    inside(&pair.first, || {
        if attached(TcAttachType::Ingress).is_none() {
            return skipped("this kernel has no tcx");
        }
        let both = || {
            (
                attached(TcAttachType::Ingress),
                attached(TcAttachType::Egress),
            )
        };
        let ports = ports();
        // Once each, however often they are named.
        for _ in 0..2 {
            assert_eq!(roce_maps.watch(&mut ebpf, &ports), Vec::<String>::new());
            assert_eq!(both(), (Some(1), Some(1)));
        }
        roce_maps.watch(&mut ebpf, &BTreeMap::new());
        assert_eq!(both(), (Some(0), Some(0)));
        roce_maps.watch(&mut ebpf, &ports);
        assert_eq!(both(), (Some(1), Some(1)));
        drop(ebpf);
        assert_eq!(both(), (Some(0), Some(0)));
    });
}

fn ports() -> BTreeMap<u32, String> {
    let mut netlink = crate::netlink::Netlink::open().expect("a socket");
    let links = netlink.links().expect("links");
    let links = links.into_iter().filter(|link| !link.loopback);
    links.map(|link| (link.ifindex, link.name)).collect()
}
