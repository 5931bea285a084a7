//! The real agent against a controller that misbehaves: what it keeps, what it says again, how it leaves.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weir_wire::v1::controller_message::Body as Order;
use weir_wire::v1::fabric_server::{Fabric, FabricServer};
use weir_wire::v1::{self, agent_message::Body};
use weir_wire::version;

/// Within this time a healthy agent does what a test waits for.
const DEADLINE: Duration = Duration::from_secs(20);

type Orders = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

/// One stream as the test sees it; `answer` accepts or refuses it.
struct Opened {
    messages: Streaming<v1::AgentMessage>,
    answer: tokio::sync::oneshot::Sender<Result<mpsc::Receiver<Answered>, Status>>,
}

type Answered = Result<v1::ControllerMessage, Status>;

struct Service(mpsc::Sender<Opened>);

#[tonic::async_trait]
impl Fabric for Service {
    type StreamStream = ReceiverStream<Answered>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let messages = request.into_inner();
        let gone = |_| Status::unavailable("the test is over");
        let opened = Opened { messages, answer };
        self.0
            .send(opened)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        let orders = answered.await.map_err(gone)??;
        Ok(Response::new(ReceiverStream::new(orders)))
    }
}

impl Opened {
    async fn next(&mut self) -> Option<Body> {
        let message = tokio::time::timeout(DEADLINE, self.messages.message()).await;
        message
            .expect("the agent says nothing")
            .unwrap()
            .map(|m| m.body.unwrap())
    }

    /// Takes the Hello and welcomes the agent.
    async fn welcome(mut self) -> (Streaming<v1::AgentMessage>, Orders, v1::Hello) {
        let Some(Body::Hello(hello)) = self.next().await else {
            panic!("the first message is no Hello");
        };
        let (orders, receiver) = mpsc::channel(16);
        let welcome = v1::Welcome {
            protocol_major: version::PROTOCOL_MAJOR,
            protocol_minor: version::PROTOCOL_MINOR,
            controller_version: "test".into(),
        };
        order(&orders, Order::Welcome(welcome)).await;
        assert!(self.answer.send(Ok(receiver)).is_ok());
        (self.messages, orders, hello)
    }
}

async fn order(orders: &Orders, body: Order) {
    let message = v1::ControllerMessage { body: Some(body) };
    orders.send(Ok(message)).await.unwrap();
}

async fn next_frame(messages: &mut Streaming<v1::AgentMessage>) -> v1::Frame {
    loop {
        let message = tokio::time::timeout(DEADLINE, messages.message()).await;
        let message = message.expect("no frame comes").unwrap().unwrap();
        if let Some(Body::Frame(frame)) = message.body {
            return frame;
        }
    }
}

struct Agent(Child);

impl Agent {
    fn start(dir: &Path, port: u16) -> Agent {
        Agent::start_with(dir, port, "")
    }

    /// With more lines of configuration.
    fn start_with(dir: &Path, port: u16, more: &str) -> Agent {
        let config = dir.join("agent.yaml");
        let text = format!(
            "node: t1\ncontroller: \"http://127.0.0.1:{port}\"\nlisten_metrics: \"127.0.0.1:0\"\n\
             state_dir: \"{}\"\nsample_interval: 100ms\nbpf: {{enabled: false, tcp: false}}\n{more}",
            dir.join("state").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .args(["run", "--config", config.to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn();
        Agent(child.unwrap())
    }

    fn tell_to_stop(&self) {
        let kill = format!("kill -TERM {}", self.0.id());
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails if it has ended already, which is fine.
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

async fn controller() -> (u16, mpsc::Receiver<Opened>) {
    let (sender, streams) = mpsc::channel(4);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tonic::transport::Server::builder()
        .add_service(FabricServer::new(Service(sender)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (port, streams)
}

async fn opened(streams: &mut mpsc::Receiver<Opened>) -> Opened {
    let opened = tokio::time::timeout(DEADLINE, streams.recv()).await;
    opened.expect("the agent opens no stream").unwrap()
}

#[tokio::test]
async fn a_refusal_costs_no_sample_and_a_welcome_starts_with_a_key_frame() {
    let (port, mut streams) = controller().await;
    let dir = tempfile::tempdir().unwrap();
    let _agent = Agent::start(dir.path(), port);
    let mut first = opened(&mut streams).await;
    assert!(matches!(first.next().await, Some(Body::Hello(_))));
    assert!(first.answer.send(Err(Status::unavailable("no"))).is_ok());
    // All that comes in the refused stream is its end.
    assert!(matches!(first.messages.message().await, Ok(None) | Err(_)));

    let (mut messages, _orders, hello) = opened(&mut streams).await.welcome().await;
    assert_eq!((hello.node.as_str(), hello.role()), ("t1", v1::Role::Host));
    let frame = next_frame(&mut messages).await;
    assert!(frame.key && frame.seq == 1 && frame.frames_dropped == 0);
    let second = next_frame(&mut messages).await;
    assert!(!second.key && second.seq == 2 && second.at_us > frame.at_us);
}

#[tokio::test]
async fn after_a_lost_stream_and_after_a_resync_the_next_frame_is_a_key_frame() {
    let (port, mut streams) = controller().await;
    let dir = tempfile::tempdir().unwrap();
    let _agent = Agent::start(dir.path(), port);
    let (mut messages, orders, hello) = opened(&mut streams).await.welcome().await;
    let before = next_frame(&mut messages).await;
    drop((messages, orders));

    let (mut messages, orders, again) = opened(&mut streams).await.welcome().await;
    assert_eq!(again.instance, hello.instance);
    assert!(again.schema.unwrap().epoch > hello.schema.unwrap().epoch);
    let frame = next_frame(&mut messages).await;
    assert!(frame.key && frame.seq > before.seq);

    order(&orders, Order::Resync(v1::Resync {})).await;
    let is_key = async { while !next_frame(&mut messages).await.key {} };
    tokio::time::timeout(DEADLINE, is_key).await.unwrap();
}

#[tokio::test]
async fn a_change_is_refused_without_limits_and_a_stop_ends_the_stream_in_order() {
    let (port, mut streams) = controller().await;
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(dir.path(), port);
    let (mut messages, orders, _) = opened(&mut streams).await.welcome().await;
    let pin = v1::Pin {
        prefix: "192.0.2.1/32".into(),
        port: "nosuch0".into(),
    };
    let grant = v1::LeaseGrant {
        id: 7,
        ttl_ms: 5000,
        incident: "i".into(),
        verdict: "v".into(),
        changes: vec![v1::Change {
            body: Some(v1::change::Body::Pin(pin)),
        }],
    };
    order(&orders, Order::Grant(grant)).await;
    let report = loop {
        let message = tokio::time::timeout(DEADLINE, messages.message()).await;
        if let Some(Body::Lease(report)) = message.unwrap().unwrap().unwrap().body {
            break report;
        }
    };
    assert_eq!(
        (report.id, report.state()),
        (7, v1::lease_report::State::Refused)
    );

    agent.tell_to_stop();
    // The agent's half ends first and without an error; then ours.
    let ended = async { while messages.message().await.unwrap().is_some() {} };
    tokio::time::timeout(DEADLINE, ended).await.unwrap();
    drop((orders, messages));
    let status = tokio::task::spawn_blocking(move || agent.0.wait().unwrap()).await;
    assert!(status.unwrap().success());
}

/// The next message of the agent that gives something.
async fn wanted<T>(
    messages: &mut Streaming<v1::AgentMessage>,
    mut look: impl FnMut(Body) -> Option<T>,
) -> T {
    let next = async {
        loop {
            let message = messages.message().await.unwrap().unwrap();
            if let Some(found) = message.body.and_then(&mut look) {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(DEADLINE, next).await;
    found.expect("the agent does not say it")
}

#[tokio::test]
async fn a_pinglist_is_probed_and_its_results_have_columns() {
    let (port, mut streams) = controller().await;
    let dir = tempfile::tempdir().unwrap();
    let _agent = Agent::start(dir.path(), port);
    let (mut messages, orders, _) = opened(&mut streams).await.welcome().await;
    // A target of ours that answers nothing.
    let target = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp = v1::UdpEndpoint {
        address: "127.0.0.1".into(),
        port: target.local_addr().unwrap().port().into(),
        source_ports: vec![],
    };
    let ping = v1::PingTarget {
        node: "t2".into(),
        port: "eth0".into(),
        from: String::new(),
        paths: 2,
        kind: Some(v1::ping_target::Kind::Udp(udp)),
    };
    let list = v1::Pinglist {
        targets: vec![ping],
        packets_per_second: 50,
        probers: vec![],
    };
    order(&orders, Order::Pinglist(list)).await;
    let mut ports = std::collections::BTreeSet::new();
    let mut buffer = [0; 256];
    while ports.len() < 2 {
        let came = tokio::time::timeout(DEADLINE, target.recv_from(&mut buffer)).await;
        let (length, from) = came.expect("no probe comes").unwrap();
        assert!(length == 64 && buffer.starts_with(b"WPRB"), "{length}");
        ports.insert(from.port());
    }
    let columns = wanted(&mut messages, |body| match body {
        Body::Schema(schema) => {
            let columns = schema.columns.into_iter();
            let of_probes = columns.filter(|c| c.entity() == v1::Entity::Probe);
            Some(of_probes.collect::<Vec<_>>()).filter(|columns| !columns.is_empty())
        }
        Body::Hello(_)
        | Body::Frame(_)
        | Body::Inventory(_)
        | Body::Sources(_)
        | Body::Path(_)
        | Body::Lease(_) => None,
    })
    .await;
    assert!(columns.iter().all(|column| column.port == "/t2:eth0"));
    let paths: std::collections::BTreeSet<_> = columns.iter().map(|c| c.index).collect();
    assert_eq!(paths, [None, Some(0), Some(1)].into());
}

/// The event of this subject, when a frame tells it.
async fn told(messages: &mut Streaming<v1::AgentMessage>, subject: &str) -> v1::Event {
    loop {
        let events = next_frame(messages).await.events;
        if let Some(event) = events.into_iter().find(|e| e.subject == subject) {
            return event;
        }
    }
}

/// Frames that come before an inventory with this queue pair.
async fn frames_until(messages: &mut Streaming<v1::AgentMessage>, qpn: u32) -> usize {
    let mut frames = 0;
    loop {
        let message = tokio::time::timeout(DEADLINE, messages.message()).await;
        let message = message.expect("the agent says nothing").unwrap().unwrap();
        match message.body {
            Some(Body::Inventory(inventory)) => {
                let has = |endpoint: &v1::Endpoint| matches!(&endpoint.kind, Some(v1::endpoint::Kind::Ud(ud)) if ud.qpn == qpn);
                if inventory.endpoints.iter().any(has) {
                    return frames;
                }
            }
            Some(Body::Frame(_)) => frames += 1,
            Some(_) | None => {}
        }
    }
}

#[tokio::test]
async fn an_event_is_told_again_until_it_is_acknowledged() {
    let (port, mut streams) = controller().await;
    let dir = tempfile::tempdir().unwrap();
    let _agent = Agent::start(dir.path(), port);
    let (mut messages, orders, hello) = opened(&mut streams).await.welcome().await;
    // Its sources are open by now.
    next_frame(&mut messages).await;
    // XID 106 is NVIDIA's own test message, on a device that is this test's alone.
    let place = format!("{:04x}:fe:1f", std::process::id());
    let log = |text: &str| {
        let line = format!("NVRM: Xid (PCI:{place}): 106, pid=1, name=weir-test, {text}\n");
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/kmsg")
            .and_then(|mut log| log.write_all(line.as_bytes()))
    };
    if let Err(error) = log("only a test") {
        writeln!(std::io::stderr(), "SKIPPED: /dev/kmsg: {error}").unwrap();
        return;
    }
    let subject = format!("{place}.0");
    let first = told(&mut messages, &subject).await;
    assert!(first.seq > 0 && first.code == Some(106), "{first:?}");
    drop((messages, orders));

    let (mut messages, orders, again) = opened(&mut streams).await.welcome().await;
    assert_eq!(again.instance, hello.instance);
    let second = told(&mut messages, &subject).await;
    assert!(second.seq == first.seq && second.age_us > first.age_us);
    let taken = v1::EventsTaken { seq: second.seq };
    order(&orders, Order::EventsTaken(taken)).await;
    // What the agent answers to it shows that the agent has heard what was said before.
    order(&orders, Order::Path(v1::PathQuery { keys: vec![] })).await;
    wanted(&mut messages, |body| {
        matches!(body, Body::Path(_)).then_some(())
    })
    .await;
    drop((messages, orders));

    let (mut messages, _orders, _) = opened(&mut streams).await.welcome().await;
    let events = next_frame(&mut messages).await.events;
    assert!(events.iter().all(|e| e.seq > second.seq), "{events:?}");
}

#[tokio::test]
async fn another_queue_pair_is_told_at_once_and_not_with_the_next_look_at_the_ports() {
    use std::os::unix::fs::PermissionsExt as _;
    let (port, mut streams) = controller().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("sys/class/infiniband/rxe1")).unwrap();
    // In place of weir-verbs: says its endpoint, waits for the test, and has another.
    let endpoint = |qpn: u32| {
        format!(
            r#"echo '{{"endpoint":{{"device":"rxe1","port":1,"gid":"::ffff:10.0.0.1","gid_index":1,"qpn":{qpn},"qkey":5,"queue_pairs":8,"active":true,"rate_bps":null,"timestamps":"software"}}}}'"#
        )
    };
    let script = format!(
        "#!/bin/sh\n{}\nread go <'{}'\n{}\nexec cat >/dev/null\n",
        endpoint(17),
        at("go").display(),
        endpoint(18)
    );
    std::fs::write(at("verbs"), script).unwrap();
    std::fs::set_permissions(at("verbs"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let made = Command::new("mkfifo").arg(at("go")).status().unwrap();
    assert!(made.success());
    let more = format!(
        "verbs_program: \"{}\"\npath_sysfs: \"{}\"\n",
        at("verbs").display(),
        at("sys").display()
    );
    let _agent = Agent::start_with(dir.path(), port, &more);
    let (mut messages, _orders, _) = opened(&mut streams).await.welcome().await;
    frames_until(&mut messages, 17).await;
    std::fs::write(at("go"), "go\n").unwrap();
    // The ports are looked at every ten seconds, which are a hundred frames.
    let frames = frames_until(&mut messages, 18).await;
    assert!(frames < 60, "{frames} frames later");
}
