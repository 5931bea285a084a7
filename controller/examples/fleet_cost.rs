//! What a large fleet costs the controller: frames of thousands of agents through the real decoder
//! and the real core, on one thread. Prints figures; `NODES` (default 10,000) and `SECONDS_RUN` (5)
//! choose the size. With `RECORD=DIRECTORY` all of it goes through the flight recorder too, and is replayed.
//!
//! Pods of 64 hosts with eight rails: eight leaves in each pod, eight spines over all.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement, for a person at a terminal"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weir_controller::brain::{Brain, Event};
use weir_controller::record::{About, Ask, Recorder, Settings, replay};
use weir_controller_core::Config;
use weir_controller_core::ids::{NodeId, PortId};
use weir_controller_core::io::Role;
use weir_controller_core::topology::{Cable, Plan};
use weir_wire::columns::Columns;
use weir_wire::signal::Signal;
use weir_wire::v1::{self, agent_message::Body};

const RAILS: usize = 8;
const HOSTS: usize = 64;
/// RDMA, GPU and driver columns of a host, beside those of its ports.
const OTHER_COLUMNS: usize = 240;
const PORT_SIGNALS: [Signal; 14] = [
    Signal::TxBytes,
    Signal::RxBytes,
    Signal::TxPackets,
    Signal::RxPackets,
    Signal::TxDrops,
    Signal::RxDrops,
    Signal::TxErrors,
    Signal::RxErrors,
    Signal::LinkUp,
    Signal::QueueBytes,
    Signal::QueueBytesMax,
    Signal::QueueDrops,
    Signal::EcnMarkedTx,
    Signal::KernelDrops,
];

struct Agent {
    name: String,
    role: Role,
    ports: Vec<String>,
    sent: Columns,
    values: Vec<Option<u64>>,
}

impl Agent {
    fn new(name: String, role: Role, ports: Vec<String>) -> Agent {
        let other = if role == Role::Host { OTHER_COLUMNS } else { 0 };
        let columns = ports.len() * PORT_SIGNALS.len() + other;
        Agent {
            name,
            role,
            ports,
            sent: Columns::new(columns),
            values: vec![Some(0); columns],
        }
    }

    fn hello(&self) -> v1::Hello {
        let column = |port: &str, signal: Signal, entity| v1::Column {
            port: port.to_owned(),
            signal: signal.number(),
            entity,
            ..v1::Column::default()
        };
        let port = v1::Entity::Port.into();
        let mut columns: Vec<v1::Column> = self
            .ports
            .iter()
            .flat_map(|p| PORT_SIGNALS.map(|s| column(p, s, port)))
            .collect();
        while columns.len() < self.values.len() {
            let device = format!("mlx5_{}/1", columns.len() % RAILS);
            columns.push(column(&device, Signal::TxBytes, v1::Entity::Rdma.into()));
        }
        v1::Hello {
            node: self.name.clone(),
            role: if self.role == Role::Host {
                v1::Role::Host.into()
            } else {
                v1::Role::Switch.into()
            },
            schema: Some(v1::Schema { epoch: 1, columns }),
            ..v1::Hello::default()
        }
    }

    fn inventory(&self) -> v1::Inventory {
        let ports = self.ports.iter().map(|name| v1::Port {
            name: name.clone(),
            up: true,
            ..v1::Port::default()
        });
        v1::Inventory {
            ports: ports.collect(),
            routes_epoch: 1,
            ..v1::Inventory::default()
        }
    }

    /// Ports at a third of their rate, a tenth of the other columns in motion.
    fn frame(&mut self, seq: u64) -> v1::Frame {
        let per_port = PORT_SIGNALS.len();
        let port_columns = self.ports.len() * per_port;
        for (n, value) in self.values.iter_mut().enumerate() {
            let moves = if n < port_columns {
                n % per_port < 4
            } else {
                n % 10 == 0
            };
            if moves {
                *value = value.map(|v| v + 15_000_000_000 + (n as u64 * seq) % 1000);
            }
        }
        let mut columns = Vec::new();
        self.sent.encode(&self.values, &mut columns);
        v1::Frame {
            seq,
            at_us: seq * 1_000_000,
            schema_epoch: 1,
            key: seq == 1,
            columns,
            ..v1::Frame::default()
        }
    }
}

fn fabric(nodes: usize) -> (Vec<Agent>, Plan) {
    let pods = nodes.div_ceil(HOSTS + RAILS).max(1);
    let (mut agents, mut plan) = (Vec::new(), Plan::default());
    let mut cable = |a: (&str, String), b: (&str, String)| {
        plan.cables.push(Cable {
            a: PortId::new(&NodeId::new(a.0), &a.1),
            b: PortId::new(&NodeId::new(b.0), &b.1),
            rate_bps: Some(400e9),
        });
    };
    for pod in 0..pods {
        for rail in 0..RAILS {
            let leaf = format!("p{pod}l{rail}");
            for host in 0..HOSTS {
                let name = format!("p{pod}h{host}");
                cable((&name, format!("eth{rail}")), (&leaf, format!("h{host}")));
            }
            for spine in 0..RAILS {
                let down = format!("p{pod}r{rail}");
                cable((&leaf, format!("up{spine}")), (&format!("s{spine}"), down));
            }
            let ports = (0..HOSTS).map(|h| format!("h{h}"));
            let ports = ports.chain((0..RAILS).map(|s| format!("up{s}"))).collect();
            agents.push(Agent::new(leaf, Role::Switch, ports));
        }
        for host in 0..HOSTS {
            let ports = (0..RAILS).map(|r| format!("eth{r}")).collect();
            agents.push(Agent::new(format!("p{pod}h{host}"), Role::Host, ports));
        }
    }
    for spine in 0..RAILS {
        let rails = |pod| (0..RAILS).map(move |r| format!("p{pod}r{r}"));
        let ports = (0..pods).flat_map(rails).collect();
        agents.push(Agent::new(format!("s{spine}"), Role::Switch, ports));
    }
    for agent in &agents {
        plan.nodes.insert(NodeId::new(&agent.name), agent.role);
    }
    (agents, plan)
}

/// The plan as the file that an operator would write.
fn topology_text(plan: &Plan) -> String {
    let nodes = plan.nodes.iter().map(|(name, role)| {
        let role = if *role == Role::Host {
            "host"
        } else {
            "switch"
        };
        format!("  - {{name: {name}, role: {role}}}\n")
    });
    let links = plan.cables.iter();
    let links = links.map(|c| format!("  - {{a: \"{}\", b: \"{}\", rate: 400Gbit}}\n", c.a, c.b));
    format!(
        "nodes:\n{}links:\n{}",
        nodes.collect::<String>(),
        links.collect::<String>()
    )
}

/// The controller's task without its queue: records, decides, records again.
struct Controller {
    brain: Brain,
    recorder: Option<Recorder>,
}

impl Controller {
    fn new(plan: Plan, record: Option<&Path>) -> Controller {
        let recorder = record.map(|directory| Self::recorder(directory, &plan));
        Controller {
            brain: Brain::new(Config::default(), plan, false, 1 << 20),
            recorder,
        }
    }

    fn recorder(directory: &Path, plan: &Plan) -> Recorder {
        let settings = Settings {
            directory: directory.to_owned(),
            segment_bytes: 64 << 20,
            total_bytes: 1 << 40,
        };
        let about = About {
            lease_base: 1 << 20,
            frozen: false,
            started: Duration::ZERO,
            config: Config::default(),
            plan: plan.clone(),
            config_text: String::new(),
            topology_text: topology_text(plan),
        };
        Recorder::create(settings, about).unwrap()
    }

    fn event(&mut self, event: Event, now: Duration) {
        if let Some(recorder) = &mut self.recorder {
            recorder.append(now, &event);
        }
        for action in self.brain.handle(event, now) {
            if let Some(recorder) = &mut self.recorder {
                recorder.acted(now, &action);
            }
        }
    }

    fn tick(&mut self, now: Duration) {
        if now < self.brain.core.poll_timeout().0 {
            return;
        }
        self.event(Event::Tick, now);
        let memory = || self.brain.memory();
        if let Some(event) = self.recorder.as_mut().and_then(|r| r.tick(now, memory)) {
            self.event(event, now);
        }
    }
}

/// Prints what appending a frame takes, without what the brain does with it.
fn appended(agents: &mut [Agent], seq: u64, directory: &Path) {
    let mut recorder = Controller::recorder(directory, &Plan::default());
    let at = Duration::from_secs(seq);
    let frames: Vec<Event> = agents
        .iter_mut()
        .map(|a| Event::Message {
            node: a.name.clone(),
            message: v1::AgentMessage {
                body: Some(Body::Frame(a.frame(seq))),
            },
        })
        .collect();
    let start = cpu();
    for frame in &frames {
        recorder.append(at, frame);
    }
    let took = cpu() - start;
    let each = took.as_secs_f64() * 1e9 / frames.len() as f64;
    println!("recorder: {each:.0} ns of CPU a frame on the brain's task");
}

/// Prints what the recording takes, and how fast it is replayed.
fn replayed(
    controller: Controller,
    directory: &Path,
    node_seconds: f64,
    [connected, first]: [u64; 2],
) {
    let recorded = controller.recorder.as_ref().unwrap().recorded();
    drop(controller);
    println!(
        "recording: {:.0} bytes a node and second; {} KiB of topology, Hellos and inventories, {} KiB of first key frames; {} records lost",
        (recorded.bytes - first) as f64 / node_seconds,
        connected >> 10,
        (first - connected) >> 10,
        recorded.lost
    );
    let start = cpu();
    let report = replay(directory, &Ask::default(), |_, _| {}).unwrap();
    let took = (cpu() - start).as_secs_f64();
    println!(
        "replay: {} records of {} segments in {took:.2} s of CPU, {:.0} a second; {} actions compared, {} differ",
        report.records,
        report.segments,
        report.records as f64 / took,
        report.compared,
        report.differences_total
    );
}

/// CPU time of this thread: the machine may be busy with other things.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

fn main() {
    let number = |key: &str, default: usize| {
        std::env::var(key).map_or(default, |v| v.parse().expect("a whole number"))
    };
    let seconds = number("SECONDS_RUN", 5) as u64;
    let (mut agents, plan) = fabric(number("NODES", 10_000));
    let links = plan.cables.len() * 2;
    let record: Option<PathBuf> = std::env::var_os("RECORD").map(Into::into);
    let mut controller = Controller::new(plan, record.as_deref());
    let before = resident_mib();
    let (start, wall) = (cpu(), Instant::now());
    let mut now = Duration::ZERO;
    let step = Duration::from_nanos(1_000_000_000 / agents.len() as u64);
    for agent in &agents {
        now += step;
        let node = agent.name.clone();
        let hello = agent.hello();
        let connected = Event::Connected {
            node: node.clone(),
            hello,
        };
        controller.event(connected, now);
        let message = v1::AgentMessage {
            body: Some(Body::Inventory(agent.inventory())),
        };
        controller.event(Event::Message { node, message }, now);
        controller.tick(now);
    }
    println!(
        "{} nodes, {links} directed links: connected in {:.2} s of CPU ({:.2} s)",
        agents.len(),
        (cpu() - start).as_secs_f64(),
        wall.elapsed().as_secs_f64()
    );
    let recorded = |controller: &mut Controller, now| {
        let recorder = controller.recorder.as_mut();
        recorder.map_or(0, |recorder| {
            // What is measured is the cost, not the disk: this clock is faster than it.
            recorder.wait(now);
            recorder.recorded().bytes
        })
    };
    let connected = recorded(&mut controller, now);
    let mut first = 0;
    for seq in 1..=seconds {
        let frames: Vec<(String, v1::AgentMessage)> = agents
            .iter_mut()
            .map(|a| {
                let frame = a.frame(seq);
                let message = v1::AgentMessage {
                    body: Some(Body::Frame(frame)),
                };
                (a.name.clone(), message)
            })
            .collect();
        let samples = controller.brain.samples;
        let start = cpu();
        let mut ticks = Duration::ZERO;
        for (node, message) in frames {
            now += step;
            controller.event(Event::Message { node, message }, now);
            let at = cpu_if_due(&controller.brain, now);
            controller.tick(now);
            if let Some(at) = at {
                ticks += cpu() - at;
            }
        }
        let took = cpu() - start;
        let samples = controller.brain.samples - samples;
        println!(
            "second {seq}: {:.3} s of CPU, {:.3} s of it in the detector's ticks; {:.0} ns a sample ({samples})",
            took.as_secs_f64(),
            ticks.as_secs_f64(),
            took.as_secs_f64() * 1e9 / samples as f64
        );
        let bytes = recorded(&mut controller, now);
        if seq == 1 {
            first = bytes;
        }
    }
    let after = resident_mib();
    println!(
        "memory: {after:.0} MiB, {:.1} KiB a node",
        (after - before) * 1024.0 / agents.len() as f64
    );
    let start = cpu();
    let kept = controller.brain.memory().len() as f64;
    println!(
        "a segment begins with {:.2} KiB of the brain's memory a node, written in {:.3} s of CPU",
        kept / 1024.0 / agents.len() as f64,
        (cpu() - start).as_secs_f64()
    );
    if let Some(directory) = record {
        let node_seconds = agents.len() as f64 * (seconds - 1) as f64;
        replayed(controller, &directory, node_seconds, [connected, first]);
        appended(&mut agents, seconds + 1, &directory.join("cost"));
    }
}

fn cpu_if_due(brain: &Brain, now: Duration) -> Option<Duration> {
    (now >= brain.core.poll_timeout().0).then(cpu)
}
