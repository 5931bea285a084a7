//! Prober and responder over loopback, where nobody needs a right.

use super::list::{List, Ping, Way};
use super::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use weir_agent_core::probe::packet::{Kind, LENGTH, Packet};
use weir_wire::signal::{Entity, Signal};

const DEADLINE: Duration = Duration::from_secs(20);

fn options(port: Option<u16>) -> Options {
    Options {
        port,
        paths: 4,
        packets_per_s: 500,
        settings: Settings {
            timeout: Duration::from_secs(2),
            window: Duration::from_secs(1),
            interval: Duration::from_millis(20),
        },
        exclude: Vec::new(),
        list: List::default(),
    }
}

fn ping(node: &str, address: SocketAddr) -> Ping {
    Ping {
        node: node.into(),
        port: String::new(),
        from: String::new(),
        paths: 4,
        way: Way::Udp(address),
    }
}

fn list(targets: Vec<Ping>) -> List {
    List {
        targets,
        packets_per_s: 500,
        ..List::default()
    }
}

/// Waits for what must come about by itself.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn request(sequence: u64) -> Packet {
    Packet {
        kind: Kind::Request,
        path: 0,
        sequence,
        nonce: 5,
        held: None,
    }
}

/// A client that asks the responder by hand.
fn client(responder: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, responder)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

#[test]
fn every_path_of_both_families_is_measured_by_the_kernel_s_clock() {
    let probe = Probe::start(options(Some(0))).unwrap();
    let port = probe.port().unwrap();
    let mut targets = vec![ping("four", (Ipv4Addr::LOCALHOST, port).into())];
    let has_v6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if has_v6 {
        targets.push(ping("six", (Ipv6Addr::LOCALHOST, port).into()));
    } else {
        println!("skipped: no IPv6 on loopback");
    }
    let count = targets.len();
    probe.set_list(list(targets));
    let state = until("a window with all paths", || {
        let state = probe.state();
        let full = state.reports.iter().all(|report| {
            let mut paths = report.paths.iter();
            // Only some of the probes are watched for the hosts' delays.
            let delays = report
                .window
                .as_ref()
                .is_some_and(|w| w.own_delay.is_some() && w.their_delay.is_some());
            delays && paths.all(|p| p.window.is_some_and(|w| w.count.sent >= 10))
        });
        (full && state.reports.len() == count).then_some(state)
    });
    for report in &state.reports {
        assert_eq!(report.total.lost, 0, "{report:?}");
        let window = report.window.unwrap();
        let rtt = window.all.rtt.unwrap();
        assert!(
            rtt.min > Duration::ZERO && rtt.p50 < Duration::from_millis(50),
            "{rtt:?}"
        );
        assert!(window.own_delay.is_some() && window.their_delay.is_some());
    }
    let c = state.counters;
    assert!(
        c.by_kernel > 0 && c.by_user + c.by_nic + c.implausible == 0,
        "{c:?}"
    );
    assert_eq!((c.strays, c.corrupt, c.duplicates, c.failed), (0, 0, 0, 0));
    let source = probe.source();
    assert!(
        source.up && source.reason.contains("of the kernel"),
        "{source:?}"
    );
    let mut gathered = Gathered::default();
    probe.gather(&mut gathered);
    let rtt = gathered.get(Entity::Probe, "/four:", Signal::ProbeRttNs);
    assert!(rtt.is_some_and(|ns| ns > 0), "{rtt:?}");
}

#[test]
fn a_reply_is_as_long_as_its_request_and_nothing_else_gets_one() {
    let probe = Probe::start(options(Some(0))).unwrap();
    let socket = client(probe.port().unwrap());
    let good = request(1).encode();
    let mut damaged = good;
    damaged[20] ^= 1;
    let mut reply = request(2).reply(None);
    reply.sequence = 2;
    socket.send(&[0; 1400]).unwrap();
    socket.send(&good[..40]).unwrap();
    socket.send(&damaged).unwrap();
    socket.send(&reply.encode()).unwrap();
    socket.send(&good).unwrap();
    // What comes first is the answer to what was sent last.
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(length, LENGTH);
    let answer = Packet::decode(&buffer[..length]).unwrap();
    assert_eq!(
        (answer.kind, answer.sequence, answer.nonce),
        (Kind::Reply, 1, 5)
    );
    assert!(answer.held.is_some());
    let counters = until("all are counted", || {
        let counters = probe.responder().counters;
        (counters.answered == 1).then_some(counters)
    });
    assert_eq!((counters.strays, counters.corrupt), (3, 1));
}

#[test]
fn who_is_not_on_the_controller_s_list_gets_no_answer() {
    let probe = Probe::start(options(Some(0))).unwrap();
    let socket = client(probe.port().unwrap());
    let only = |address: IpAddr| List {
        probers: Some([address].into()),
        ..List::default()
    };
    probe.set_list(only(Ipv4Addr::new(192, 0, 2, 1).into()));
    until("it is refused", || {
        socket.send(&request(1).encode()).unwrap();
        (probe.responder().counters.not_listed > 0).then_some(())
    });
    let before = probe.responder().counters.answered;
    probe.set_list(only(Ipv4Addr::LOCALHOST.into()));
    until("it is answered", || {
        socket.send(&request(2).encode()).unwrap();
        (probe.responder().counters.answered > before).then_some(())
    });
}

#[test]
fn a_source_that_asks_too_often_is_slowed_down() {
    let probe = Probe::start(options(Some(0))).unwrap();
    let socket = client(probe.port().unwrap());
    let started = Instant::now();
    until("it is slowed down", || {
        for n in 0..100 {
            socket.send(&request(n).encode()).unwrap();
        }
        (probe.responder().counters.too_fast > 500).then_some(())
    });
    let answered = probe.responder().counters.answered as f64;
    let most = 300.0 * (started.elapsed().as_secs_f64() + 1.0);
    assert!(answered <= most, "{answered} > {most}");
}

#[test]
fn a_port_that_is_taken_is_a_down_source_and_probing_goes_on() {
    let other = Probe::start(options(Some(0))).unwrap();
    let taken = other.port().unwrap();
    let probe = Probe::start(options(Some(taken))).unwrap();
    let source = probe.source();
    assert!(!source.up, "{source:?}");
    let words = [taken.to_string(), "probe.port".into(), "in use".into()];
    assert!(
        words.iter().all(|w| source.reason.contains(w)),
        "{source:?}"
    );
    assert!(probe.endpoints().is_empty());
    probe.set_list(list(vec![ping("b", (Ipv4Addr::LOCALHOST, taken).into())]));
    until("an answer", || {
        (probe.state().counters.answered > 0).then_some(())
    });
}

#[test]
fn where_nobody_listens_probes_are_refused_and_not_lost() {
    let probe = Probe::start(options(None)).unwrap();
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    probe.set_list(list(vec![ping("b", address)]));
    let counters = until("refusals", || {
        let counters = probe.state().counters;
        (counters.refused >= 20).then_some(counters)
    });
    assert_eq!(
        (counters.lost, counters.answered, counters.failed),
        (0, 0, 0)
    );
    assert!(probe.source().up);
}

#[test]
fn the_configured_rate_holds_whatever_a_list_asks_for() {
    let slow = Options {
        packets_per_s: 50,
        ..options(Some(0))
    };
    let probe = Probe::start(slow).unwrap();
    let port = probe.port().unwrap();
    let targets =
        (1..=60).map(|n| ping(&n.to_string(), (Ipv4Addr::new(127, 0, 0, n), port).into()));
    let started = Instant::now();
    probe.set_list(List {
        packets_per_s: 1_000_000,
        ..list(targets.collect())
    });
    let sent = until("probes", || {
        Some(probe.state().counters.sent).filter(|sent| *sent >= 100)
    });
    let most = 50.0 * (started.elapsed().as_secs_f64() + 1.0);
    assert!((sent as f64) <= most, "{sent} > {most}");
}

#[test]
fn targets_of_verbs_are_left_to_verbs_and_what_nobody_understands_is_said() {
    let probe = Probe::start(options(None)).unwrap();
    let ud = Ping {
        way: Way::Ud {
            gid: [0xfe; 16],
            qpn: 17,
            qkey: 1,
        },
        ..ping("b", (Ipv4Addr::LOCALHOST, 1).into())
    };
    probe.set_list(List {
        unusable: 1,
        ..list(vec![ud])
    });
    until("it is left out", || {
        (probe.state().left_out == 1).then_some(())
    });
    assert!(probe.source().reason.contains("1 targets left out"));
}
