//! What a broken or foreign agent can do to the controller: have its own stream closed with a
//! reason, and nothing else.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use weir_controller::brain::Brain;
use weir_controller::driver::{Driver, Handle, MESSAGES_QUEUED_MAX};
use weir_controller::{server, views};
use weir_controller_core::Config;
use weir_controller_core::topology::Plan;
use weir_wire::frame::SERIES_MAX;
use weir_wire::rows::Rows;
use weir_wire::v1::fabric_client::FabricClient;
use weir_wire::v1::{self, agent_message::Body};
use weir_wire::{MESSAGE_BYTES_MAX, version};

struct Controller {
    handle: Handle,
    url: String,
    _state: tempfile::TempDir,
}

async fn controller() -> Controller {
    let state = tempfile::tempdir().unwrap();
    let handle = Driver::spawn(
        Brain::new(Config::default(), Plan::default(), false, 0),
        None,
        state.path().join("frozen"),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(server::serve_on(listener, handle.clone()));
    Controller {
        handle,
        url,
        _state: state,
    }
}

struct Agent {
    out: mpsc::Sender<v1::AgentMessage>,
    incoming: tonic::Streaming<v1::ControllerMessage>,
}

/// A newer minor, with a signal that this version does not know.
fn hello(node: &str, instance: u64) -> v1::Hello {
    let columns = vec![
        v1::Column {
            port: "eth0".into(),
            signal: 1,
            ..v1::Column::default()
        },
        v1::Column {
            port: "eth0".into(),
            signal: 9_999,
            ..v1::Column::default()
        },
    ];
    v1::Hello {
        protocol_major: version::PROTOCOL_MAJOR,
        protocol_minor: version::PROTOCOL_MINOR + 5,
        agent_version: "test".into(),
        node: node.into(),
        instance,
        schema: Some(v1::Schema { epoch: 1, columns }),
        ..v1::Hello::default()
    }
}

impl Controller {
    async fn open(&self, first: Body) -> Result<Agent, Status> {
        let channel = tonic::transport::Endpoint::from_shared(self.url.clone())
            .unwrap()
            .connect()
            .await
            .unwrap();
        let (out, outgoing) = mpsc::channel(16);
        out.send(v1::AgentMessage { body: Some(first) })
            .await
            .unwrap();
        let response = FabricClient::new(channel)
            .stream(ReceiverStream::new(outgoing))
            .await?;
        Ok(Agent {
            out,
            incoming: response.into_inner(),
        })
    }

    async fn connected(&self) -> Vec<String> {
        let read = self.handle.read(|v| {
            v.brain
                .core
                .nodes()
                .iter()
                .filter(|(_, n)| n.connected)
                .map(|(id, _)| id.to_string())
                .collect()
        });
        read.await.unwrap()
    }

    async fn wait_for_frame(&self) {
        while self.handle.read(|v| v.brain.frames).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    }
}

impl Agent {
    async fn send(&self, body: Body) {
        self.out
            .send(v1::AgentMessage { body: Some(body) })
            .await
            .unwrap();
    }

    /// How the stream ends.
    async fn end(&mut self) -> Status {
        let ended = async {
            loop {
                match self.incoming.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ended)
            .await
            .unwrap()
    }
}

fn frame(seq: u64, columns: &[u8]) -> Body {
    Body::Frame(v1::Frame {
        seq,
        at_us: seq * 1_000_000,
        schema_epoch: 1,
        key: seq == 1,
        columns: columns.to_vec(),
        ..v1::Frame::default()
    })
}

#[tokio::test]
async fn another_major_version_is_refused_and_both_are_named() {
    let controller = controller().await;
    let foreign = v1::Hello {
        protocol_major: 7,
        protocol_minor: 3,
        ..hello("h1", 1)
    };
    let status = controller.open(Body::Hello(foreign)).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let ours = format!("{}.{}", version::PROTOCOL_MAJOR, version::PROTOCOL_MINOR);
    assert!(
        status.message().contains("7.3") && status.message().contains(&ours),
        "{status}"
    );
}

#[tokio::test]
async fn a_newer_minor_with_unknown_signals_is_welcome() {
    let controller = controller().await;
    let agent = controller.open(Body::Hello(hello("h1", 1))).await.unwrap();
    agent.send(frame(1, &[0, 2, 11, 11])).await;
    controller.wait_for_frame().await;
    assert_eq!(controller.connected().await, ["h1"]);
}

#[tokio::test]
async fn a_stream_must_begin_with_hello() {
    let controller = controller().await;
    let status = controller.open(frame(1, &[])).await.err().unwrap();
    assert!(status.message().contains("Hello"), "{status}");
}

#[tokio::test]
async fn garbage_closes_its_own_stream_with_the_reason_and_no_other() {
    let controller = controller().await;
    let _healthy = controller
        .open(Body::Hello(hello("healthy", 1)))
        .await
        .unwrap();
    let bad: [(&[u8], &str); 3] = [
        (&[0, 2, 11], "middle of a number"),
        (&[9, 1, 1], "schema has 2"),
        (&[0xff; 12], "65 bits"),
    ];
    for (n, (columns, reason)) in (1..).zip(bad) {
        let mut agent = controller
            .open(Body::Hello(hello("broken", n)))
            .await
            .unwrap();
        agent.send(frame(1, columns)).await;
        let status = agent.end().await;
        assert!(
            status.code() == Code::InvalidArgument && status.message().contains(reason),
            "{status}"
        );
        assert_eq!(controller.connected().await, ["healthy"]);
    }
}

#[tokio::test]
async fn calls_and_flows_that_were_not_announced_close_their_stream() {
    let controller = controller().await;
    let row = Rows::<4>::default().encode([(5, [1, 2, 3, 4])]);
    let series = v1::Series {
        id: SERIES_MAX,
        ..v1::Series::default()
    };
    let long = v1::Series {
        job: "j".repeat(5000),
        ..v1::Series::default()
    };
    let bad: [(v1::Frame, &str); 4] = [
        (
            v1::Frame {
                flows: row.clone(),
                ..v1::Frame::default()
            },
            "flows of frame 1: the body names row 5",
        ),
        (
            v1::Frame {
                collectives: row,
                ..v1::Frame::default()
            },
            "collectives of frame 1: the body names row 5",
        ),
        (
            v1::Frame {
                series: vec![series],
                ..v1::Frame::default()
            },
            "series 4096 is out of range",
        ),
        (
            v1::Frame {
                series: vec![long],
                ..v1::Frame::default()
            },
            "(5000 bytes) is no name",
        ),
    ];
    for (n, (frame, reason)) in (1..).zip(bad) {
        let frame = Body::Frame(v1::Frame {
            seq: 1,
            schema_epoch: 1,
            key: true,
            ..frame
        });
        let mut agent = controller
            .open(Body::Hello(hello("broken", n)))
            .await
            .unwrap();
        agent.send(frame).await;
        let status = agent.end().await;
        assert!(
            status.code() == Code::InvalidArgument && status.message().contains(reason),
            "{status}"
        );
    }
}

#[tokio::test]
async fn an_oversized_message_closes_its_own_stream() {
    let controller = controller().await;
    let mut agent = controller.open(Body::Hello(hello("h1", 1))).await.unwrap();
    agent.send(frame(1, &vec![0; MESSAGE_BYTES_MAX + 1])).await;
    let status = agent.end().await;
    assert_ne!(status.code(), Code::Ok, "{status}");
    while !controller.connected().await.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_lost_frame_is_answered_by_a_wish_for_a_key_frame() {
    let controller = controller().await;
    let mut agent = controller.open(Body::Hello(hello("h1", 1))).await.unwrap();
    agent.send(frame(1, &[])).await;
    agent.send(frame(3, &[])).await;
    loop {
        let message = agent.incoming.message().await.unwrap().unwrap();
        if matches!(message.body, Some(v1::controller_message::Body::Resync(_))) {
            return;
        }
    }
}

#[tokio::test]
async fn a_second_agent_of_the_same_name_is_refused_and_the_first_stays() {
    let controller = controller().await;
    let first = controller.open(Body::Hello(hello("h1", 1))).await.unwrap();
    let status = controller
        .open(Body::Hello(hello("h1", 2)))
        .await
        .err()
        .unwrap();
    assert!(
        status.code() == Code::AlreadyExists && status.message().contains("h1"),
        "{status}"
    );
    first.send(frame(1, &[])).await;
    controller.wait_for_frame().await;
}

#[tokio::test]
async fn an_agent_that_leaves_its_messages_is_given_up() {
    let controller = controller().await;
    let holding_much = v1::Hello {
        held_leases: (1..=2 * u64::try_from(MESSAGES_QUEUED_MAX).unwrap()).collect(),
        ..hello("h1", 1)
    };
    let mut agent = controller.open(Body::Hello(holding_much)).await.unwrap();
    assert!(controller.connected().await.is_empty());
    agent.end().await;
}

#[tokio::test]
async fn a_freeze_that_cannot_be_kept_says_so_and_still_freezes() {
    let state = tempfile::tempdir().unwrap();
    let handle = Driver::spawn(
        Brain::new(Config::default(), Plan::default(), false, 0),
        None,
        state.path().join("gone/frozen"),
    );
    let frozen = async || handle.read(|v| v.brain.core.is_frozen()).await.unwrap();
    let error = handle.freeze(true).await.unwrap().unwrap_err();
    assert!(
        error.contains("a restart of the controller forgets it"),
        "{error}"
    );
    assert!(frozen().await);
    std::fs::create_dir(state.path().join("gone")).unwrap();
    handle.freeze(true).await.unwrap().unwrap();
    assert!(state.path().join("gone/frozen").exists());
    handle.freeze(false).await.unwrap().unwrap();
    assert!(!frozen().await && !state.path().join("gone/frozen").exists());
}

fn udp_inventory(address: &str) -> Body {
    let udp = v1::UdpEndpoint {
        address: address.into(),
        port: 9744,
        source_ports: vec![40_000, 40_001],
    };
    Body::Inventory(v1::Inventory {
        endpoints: vec![v1::Endpoint {
            port: "eth0".into(),
            kind: Some(v1::endpoint::Kind::Udp(udp)),
        }],
        ..v1::Inventory::default()
    })
}

impl Agent {
    /// The next pinglist that satisfies `wanted`.
    async fn pinglist(&mut self, wanted: impl Fn(&v1::Pinglist) -> bool) -> v1::Pinglist {
        let next = async {
            loop {
                let message = self.incoming.message().await.unwrap().unwrap();
                if let Some(v1::controller_message::Body::Pinglist(list)) = message.body
                    && wanted(&list)
                {
                    return list;
                }
            }
        };
        let list = tokio::time::timeout(Duration::from_secs(20), next).await;
        list.expect("no such pinglist comes")
    }
}

#[tokio::test]
async fn pinglists_reach_agents_and_change_when_an_agent_goes() {
    let controller = controller().await;
    let mut agents = Vec::new();
    for n in 1..=3 {
        let agent = controller
            .open(Body::Hello(hello(&format!("h{n}"), n)))
            .await;
        let agent = agent.unwrap();
        agent.send(udp_inventory(&format!("10.0.0.{n}"))).await;
        agents.push(agent);
    }
    for (n, agent) in (1..).zip(&mut agents) {
        let list = agent.pinglist(|list| list.targets.len() == 2).await;
        let others: Vec<String> = (1..=3)
            .filter(|m| *m != n)
            .map(|m| format!("h{m}"))
            .collect();
        let mut targets: Vec<&str> = list.targets.iter().map(|t| t.node.as_str()).collect();
        targets.sort_unstable();
        assert_eq!(targets, others);
        assert!(list.targets.iter().all(|t| t.from == "eth0" && t.paths > 0));
        assert!((1..=200).contains(&list.packets_per_second));
        assert_eq!(list.probers.len(), 2);
    }
    // It goes without a word.
    drop(agents.remove(0));
    for agent in &mut agents {
        let list = agent.pinglist(|list| list.targets.len() == 1).await;
        assert!(list.targets[0].node != "h1" && !list.probers.contains(&"10.0.0.1".into()));
    }
}

#[tokio::test]
async fn what_probes_saw_is_shown_the_worst_first() {
    use weir_wire::signal::Signal;
    let controller = controller().await;
    let column = |target: &str, signal: Signal, index| v1::Column {
        port: target.into(),
        signal: signal.number(),
        entity: v1::Entity::Probe.into(),
        index,
    };
    let mut columns = Vec::new();
    for target in ["eth0/h2:eth0", "eth0/h3:eth1"] {
        columns.push(column(target, Signal::ProbeLossPpm, None));
        columns.push(column(target, Signal::ProbeRttNs, None));
        columns.push(column(target, Signal::ProbeLossPpm, Some(4)));
        columns.push(column(target, Signal::ProbeLossPpm, Some(9)));
    }
    let mut encoder = weir_wire::columns::Columns::new(columns.len());
    let mut body = Vec::new();
    let clean = [Some(0), Some(7_000), Some(0), Some(0)];
    let lossy = [Some(250_000), None, Some(0), Some(500_000)];
    encoder.encode(&[clean, lossy].concat(), &mut body);
    let hello = v1::Hello {
        schema: Some(v1::Schema { epoch: 1, columns }),
        ..hello("h1", 1)
    };
    let agent = controller.open(Body::Hello(hello)).await.unwrap();
    agent.send(frame(1, &body)).await;
    controller.wait_for_frame().await;
    let read = controller.handle.read(weir_controller::probes::shown);
    let pairs = read.await.unwrap();
    assert_eq!(pairs.len(), 2);
    let (worst, best) = (&pairs[0], &pairs[1]);
    assert_eq!(
        (worst.source.as_str(), worst.source_port.as_str()),
        ("h1", "eth0")
    );
    assert_eq!(
        (worst.target.as_str(), worst.target_port.as_str()),
        ("h3", "eth1")
    );
    assert_eq!(
        (worst.loss, worst.rtt_p50_s, worst.paths),
        (Some(0.25), None, 2)
    );
    let path = worst.worst_path.clone().unwrap();
    assert_eq!((path.path, path.loss), (9, Some(0.5)));
    assert_eq!((best.target.as_str(), best.loss), ("h2", Some(0.0)));
    assert!(best.rtt_p50_s.is_some_and(|s| (s - 7e-6).abs() < 1e-12));
    let page = controller
        .handle
        .read(weir_controller::metrics::render)
        .await;
    let page = page.unwrap().unwrap();
    let labels = "{source=\"h1\",source_port=\"eth0\",target=\"h3\",target_port=\"eth1\"}";
    for line in [
        format!("weir_probe_pair_loss_ratio{labels} 0.25"),
        format!("weir_probe_pair_worst_path_loss_ratio{labels} 0.5"),
        "weir_probe_pairs 2".into(),
        "weir_probe_pairs_lossy 1".into(),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
    assert!(
        !page.contains(&format!("weir_probe_pair_rtt_seconds{labels}")),
        "absent is not zero"
    );
}

#[tokio::test]
async fn an_event_is_acknowledged_each_time_and_shown_once() {
    let controller = controller().await;
    let event = v1::Event {
        source: "kmsg".into(),
        name: "xid".into(),
        subject: "0000:18:00.0".into(),
        code: Some(79),
        severity: v1::Severity::Critical.into(),
        seq: 7,
        ..v1::Event::default()
    };
    // The stream breaks before the acknowledgement is heard; then the agent is started anew.
    for (instance, shown) in [(1, 1), (1, 1), (2, 2)] {
        let hello = Body::Hello(hello("h1", instance));
        let mut agent = controller.open(hello).await.unwrap();
        let frame = v1::Frame {
            seq: 1,
            schema_epoch: 1,
            key: true,
            events: vec![event.clone()],
            ..v1::Frame::default()
        };
        agent.send(Body::Frame(frame)).await;
        let taken = async {
            loop {
                let message = agent.incoming.message().await.unwrap().unwrap();
                if let Some(v1::controller_message::Body::EventsTaken(taken)) = message.body {
                    return taken.seq;
                }
            }
        };
        let taken = tokio::time::timeout(Duration::from_secs(20), taken).await;
        assert_eq!(taken.expect("no acknowledgement comes"), 7);
        let shown_of = async |node: Option<&'static str>| {
            let read = controller.handle.read(move |v| views::events(v, node));
            read.await.unwrap()
        };
        let events = shown_of(None).await;
        assert_eq!((events.len(), shown_of(Some("h2")).await.len()), (shown, 0));
        assert!(
            events
                .iter()
                .all(|e| e.node == "h1" && e.severity == "critical")
        );
        drop(agent);
        while !controller.connected().await.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
