//! What the health of single devices costs: samples of healthy hosts with eight NICs and eight GPUs of 18
//! NVLinks each, on one thread. Prints nanoseconds for a value and bytes for a column; `NODES` (default 500) and
//! `SECONDS_RUN` (60) choose the size.

#![expect(
    clippy::print_stdout,
    reason = "a measurement, for a person at a terminal"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_controller_core::config;
use weir_controller_core::health::{self, Health};
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::io::{Column, Role};
use weir_controller_core::topology::Topology;
use weir_signal::{Entity, Kind, Signal};

fn columns() -> Arc<[Column]> {
    let mut columns = Vec::new();
    for n in 0..8 {
        let devices = [
            (Entity::Port, format!("eth{n}")),
            (Entity::Rdma, format!("mlx5_{n}/1")),
            (Entity::Gpu, format!("0000:{n}b:00.0")),
        ];
        for (entity, name) in devices {
            let subject: Arc<str> = name.into();
            for signal in Signal::ALL {
                if !signal.entities().contains(&entity) || !health::watches(entity, *signal) {
                    continue;
                }
                let indexes: Vec<Option<u32>> = match signal.index() {
                    None => vec![None],
                    Some("link") => (0..18).map(Some).collect(),
                    Some(_) => (0..8).map(Some).collect(),
                };
                columns.extend(indexes.into_iter().map(|index| Column {
                    entity,
                    subject: subject.clone(),
                    index,
                    signal: *signal,
                }));
            }
        }
    }
    columns.into()
}

/// What a busy host shows: traffic moves, nothing fails.
fn value(column: &Column, second: u64) -> u64 {
    match (column.signal, column.signal.kind()) {
        (Signal::TxBytes | Signal::RxBytes, _) => 30_000_000_000 + second % 97 * 1_000_000,
        (Signal::RxPackets, _) => 7_000_000,
        (Signal::PauseRxUs | Signal::PauseTxUs, _) => second % 50,
        (Signal::LinkUp | Signal::AdminUp | Signal::NvlinkUp, _) => 1,
        (Signal::RateBps, _) => 400_000_000_000,
        (Signal::GpuUtilisation, _) => 98,
        (Signal::GpuPower, _) => 650_000 + second % 13 * 1000,
        (Signal::GpuTemperature | Signal::ModuleTemperature, _) => 60_000 + second % 3 * 1000,
        (Signal::ClockReasons, _) => 0x4,
        (Signal::FabricState, _) => 3,
        (_, Kind::Gauge) if column.signal.unit() == "bool" => 0,
        (_, Kind::Gauge) => 16,
        (_, Kind::Counter) => 0,
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn size(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|t| t.parse().ok()).unwrap_or(default)
}

fn main() {
    let (nodes, seconds) = (size("NODES", 500), size("SECONDS_RUN", 60));
    let ids: Vec<NodeId> = (0..nodes).map(|n| NodeId::new(&format!("h{n}"))).collect();
    let columns = columns();
    let job = JobId::new("train");
    let topology = Topology::default();
    let mut health = Health::new(config::Health::default());
    let before = resident_bytes();
    for id in &ids {
        health.connected(id, Role::Host, Duration::ZERO);
        // A stream has columns of its own.
        health.declared(id, columns.iter().cloned().collect(), &topology);
    }
    let held = resident_bytes() - before;
    let (mut spent, mut spent_verdicts, mut verdicts) = (Duration::ZERO, Duration::ZERO, 0);
    for second in 1..=seconds {
        let now = Duration::from_secs(second);
        let values = columns.iter().map(|c| Some(value(c, second)));
        let values: Vec<Option<u64>> = values.collect();
        let start = Instant::now();
        for id in &ids {
            health.sampled(id, &values, Some(Duration::from_secs(1)), Some(&job), now);
        }
        spent += start.elapsed();
        let start = Instant::now();
        for quarter in 0..4 {
            verdicts += health
                .verdicts(&topology, now + Duration::from_millis(250 * quarter))
                .len();
        }
        spent_verdicts += start.elapsed();
    }
    let count = columns.len() as f64;
    let samples = (nodes * seconds) as f64;
    println!("{nodes} nodes with {count} columns each, {seconds} s: {verdicts} verdicts");
    println!(
        "{:.1} ns a value, {:.1} us a node and second, verdicts and peers {:.2} ms a second",
        spent.as_secs_f64() * 1e9 / samples / count,
        spent.as_secs_f64() * 1e6 / samples,
        spent_verdicts.as_secs_f64() * 1e3 / seconds as f64
    );
    println!(
        "{:.0} bytes a node, {:.0} a column, its description included",
        held as f64 / nodes as f64,
        held as f64 / nodes as f64 / count
    );
}
