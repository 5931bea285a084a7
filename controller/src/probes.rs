//! What the agents' probes see, pair by pair, for the API and `/metrics`.

use crate::driver::View;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use weir_controller_core::ids::NodeId;
use weir_wire::signal::Signal;

/// Pairs that the API shows: the worst. More than a person reads, and bounded.
pub const PAIRS_SHOWN: usize = 4096;
/// What an agent has not repeated for this long is not shown.
const AGE_MAX: Duration = Duration::from_secs(30);

/// From one endpoint to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PairView {
    pub source: String,
    /// Interface that the probes leave by; empty: the kernel's choice.
    pub source_port: String,
    pub target: String,
    pub target_port: String,
    /// Answered or lost since the agent was told of the target.
    pub sent: u64,
    pub lost: u64,
    /// Share of the last window that was lost, 0 to 1; `None` before the first window ends.
    pub loss: Option<f64>,
    /// Seconds, without the responder's delay.
    pub rtt_min_s: Option<f64>,
    pub rtt_p50_s: Option<f64>,
    pub rtt_p99_s: Option<f64>,
    pub rtt_max_s: Option<f64>,
    /// 99th percentile of the time that the probes spent in the source's host, and in the target's.
    pub host_delay_s: Option<f64>,
    pub responder_delay_s: Option<f64>,
    /// Number of paths, and the one with the most loss (then the longest RTT).
    pub paths: usize,
    pub worst_path: Option<PathView>,
}

/// One path of a pair.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PathView {
    /// Number of the source port.
    pub path: u32,
    pub loss: Option<f64>,
    pub rtt_p50_s: Option<f64>,
}

/// Every pair, the worst first: by loss, then by the loss of its worst path, then by p99.
#[must_use]
pub fn pairs(view: &View<'_>) -> Vec<PairView> {
    let nodes = view.brain.core.nodes();
    let fresh = |node: &str| {
        let known = nodes.get(&NodeId::new(node));
        known.is_some_and(|n| view.now.saturating_sub(n.last_seen) <= AGE_MAX)
    };
    let mut pairs = Vec::new();
    for (node, ingest) in view.brain.probes().filter(|(node, _)| fresh(node)) {
        let mut of_node: BTreeMap<&str, Pair> = BTreeMap::new();
        for value in ingest.probes() {
            let pair = of_node.entry(value.target).or_default();
            pair.take(value.path, value.signal, value.value);
        }
        pairs.extend(
            of_node
                .into_iter()
                .map(|(target, pair)| pair.view(node, target)),
        );
    }
    let worst = |pair: &PairView| pair.worst_path.as_ref().and_then(|path| path.loss);
    let order = |a: Option<f64>, b: Option<f64>| b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0));
    pairs.sort_by(|a, b| {
        order(a.loss, b.loss)
            .then_with(|| order(worst(a), worst(b)))
            .then_with(|| order(a.rtt_p99_s, b.rtt_p99_s))
    });
    pairs
}

/// The worst pairs, for the API.
#[must_use]
pub fn shown(view: &View<'_>) -> Vec<PairView> {
    let mut pairs = pairs(view);
    pairs.truncate(PAIRS_SHOWN);
    pairs
}

#[derive(Debug, Default)]
struct Pair {
    all: PairView,
    paths: BTreeMap<u32, PathView>,
}

impl Pair {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a few of the signals are of probes"
    )]
    fn take(&mut self, path: Option<u32>, signal: Signal, value: u64) {
        let scaled = Some(value as f64 * signal.scale());
        let Some(path) = path else {
            let all = &mut self.all;
            match signal {
                Signal::ProbesSent => all.sent = value,
                Signal::ProbesLost => all.lost = value,
                Signal::ProbeLossPpm => all.loss = scaled,
                Signal::ProbeRttMinNs => all.rtt_min_s = scaled,
                Signal::ProbeRttNs => all.rtt_p50_s = scaled,
                Signal::ProbeRttP99Ns => all.rtt_p99_s = scaled,
                Signal::ProbeRttMaxNs => all.rtt_max_s = scaled,
                Signal::ProbeHostDelayNs => all.host_delay_s = scaled,
                Signal::ProbeResponderDelayNs => all.responder_delay_s = scaled,
                _ => {}
            }
            return;
        };
        let of_path = self.paths.entry(path).or_default();
        of_path.path = path;
        match signal {
            Signal::ProbeLossPpm => of_path.loss = scaled,
            Signal::ProbeRttNs => of_path.rtt_p50_s = scaled,
            _ => {}
        }
    }

    fn view(self, source: &str, target: &str) -> PairView {
        let (source_port, target) = target.split_once('/').unwrap_or(("", target));
        let (target, target_port) = target.split_once(':').unwrap_or((target, ""));
        let badness = |path: &PathView| {
            let loss = path.loss.unwrap_or(-1.0);
            (loss, path.rtt_p50_s.unwrap_or(-1.0))
        };
        let paths = self.paths.len();
        let worst = self.paths.into_values().max_by(|a, b| {
            let (a, b) = (badness(a), badness(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        PairView {
            source: source.to_owned(),
            source_port: source_port.to_owned(),
            target: target.to_owned(),
            target_port: target_port.to_owned(),
            paths,
            worst_path: worst,
            ..self.all
        }
    }
}
