//! Flows of real TCP connections.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use super::rig::{Pair, inside, is_root, load, until};
use crate::bpf::{BpfOptions, BpfSample, FlowSample};

const BYTES: u64 = 1_000_000;

fn options(netns_filter: bool) -> BpfOptions {
    BpfOptions {
        netns_filter,
        tcp: true,
        ..BpfOptions::default()
    }
}

/// A connection from the first to the second namespace: (client, server).
fn connect(pair: &Pair) -> (TcpStream, TcpStream) {
    let listener = inside(&pair.second, || TcpListener::bind("10.77.0.2:0")).expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let client = inside(&pair.first, || TcpStream::connect(addr)).expect("connected");
    let (server, _) = listener.accept().expect("connected");
    (client, server)
}

fn transfer(client: &mut TcpStream, server: &mut TcpStream) {
    let bytes = vec![7; usize::try_from(BYTES).expect("small")];
    let mut left = bytes.len();
    thread::scope(|scope| {
        scope.spawn(|| client.write_all(&bytes).expect("sent"));
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            left -= server.read(&mut buffer).expect("received");
        }
    });
}

fn flow_of(sample: &BpfSample, stream: &TcpStream) -> Option<FlowSample> {
    let ends = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let mut flows = sample.flows.iter();
    flows
        .find(|flow| (flow.local, flow.remote) == ends)
        .cloned()
}

#[test]
fn a_flow_is_counted_from_its_start_to_its_end() {
    if !is_root() {
        return;
    }
    let Some(pair) = Pair::make() else { return };
    let Some(mut bpf) = inside(&pair.first, || load(&options(true))) else {
        return;
    };
    let Some(mut everywhere) = load(&options(false)) else {
        return;
    };
    let (mut client, mut server) = connect(&pair);
    let ends = (
        client.local_addr().expect("open"),
        client.peer_addr().expect("open"),
    );
    transfer(&mut client, &mut server);
    // The kernel counts one for the connection's first acknowledgement. It takes no round-trip sample
    // of a segment sent twice, which a busy machine may make of the last one: one more byte brings it.
    let mut most = BYTES + 1;
    let flow = until(&mut bpf, "all bytes acknowledged", |sample, _| {
        let flow = flow_of(sample, &client)?;
        assert!(flow.bytes_acked <= most, "{flow:?}");
        if flow.bytes_acked < BYTES {
            client.write_all(&[7]).expect("sent");
            most += 1;
            return None;
        }
        Some(flow)
    });
    assert!(
        !flow.closed && flow.srtt_us.is_some_and(|srtt| srtt > 0),
        "{flow:?}"
    );
    assert!(
        flow.delivered.is_some_and(|segments| segments > 10),
        "{flow:?}"
    );
    until(&mut everywhere, "both ends", |sample, _| {
        flow_of(sample, &client).and(flow_of(sample, &server))
    });
    // The other end lives in the other namespace.
    let sample = until(&mut bpf, "a poll", |sample, _| Some(sample.clone()));
    assert_eq!(flow_of(&sample, &server), None);
    assert_eq!(sample.lost_records, 0);
    drop((client, server));
    let last = until(&mut bpf, "the end", |sample, _| {
        let mut flows = sample.flows.iter();
        flows
            .find(|flow| (flow.local, flow.remote) == ends && flow.closed)
            .cloned()
    });
    assert!(last.bytes_acked >= BYTES);
    until(&mut bpf, "the flow forgotten", |sample, _| {
        sample
            .flows
            .iter()
            .all(|flow| (flow.local, flow.remote) != ends)
            .then_some(())
    });
}

#[test]
fn a_flow_older_than_the_program_is_seen_too() {
    if !is_root() {
        return;
    }
    let Some(pair) = Pair::make() else { return };
    let (mut client, mut server) = connect(&pair);
    inside(&pair.first, || {
        let Some(mut bpf) = load(&options(true)) else {
            return;
        };
        transfer(&mut client, &mut server);
        until(&mut bpf, "all bytes acknowledged", |sample, _| {
            flow_of(sample, &client).filter(|flow| flow.bytes_acked >= BYTES)
        });
        let ends = (
            client.local_addr().expect("open"),
            client.peer_addr().expect("open"),
        );
        drop((client, server));
        until(&mut bpf, "the end", |sample, _| {
            let mut flows = sample.flows.iter();
            flows
                .find(|flow| (flow.local, flow.remote) == ends && flow.closed)
                .cloned()
        });
    });
}

#[test]
fn loopback_is_left_out() {
    if !is_root() {
        return;
    }
    let Some(mut bpf) = load(&options(false)) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (mut server, _) = listener.accept().expect("connected");
    transfer(&mut client, &mut server);
    let sample = until(&mut bpf, "a poll", |sample, _| Some(sample.clone()));
    assert_eq!(flow_of(&sample, &client), None);
}
