//! Labelled cases: a fabric, flows over it with what they sent and lost, and what is really at fault.

use std::collections::BTreeMap;
use std::ops::Range;
use weir_controller_core::localise::Observations;

/// Loss of a fault, log-uniform.
const LOSS: Range<f64> = 5e-4..5e-2;
/// Loss of every link that is well, log-uniform for a case: bit errors that FEC lets through.
const NOISE: Range<f64> = 1e-7..1e-5;
/// Share of flows that lose a burst for a reason of their own, and packets of such a burst.
const BURSTS: Range<f64> = 0.0..0.02;
const BURST_MAX: u64 = 30;
/// Loss of a congested queue, which its switch counts.
const CONGESTION: Range<f64> = 1e-3..1e-2;
/// Packets of a flow, log-uniform, and of a series of probes.
const PACKETS: Range<f64> = 1e3..1e5;
const PROBES: u64 = 200;
/// A link that fewer flows cross cannot be expected to be found.
const FLOWS_MIN: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    LeafSpine,
    ThreeTier,
}

/// What is known of the paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Paths {
    Known,
    Unknown,
    /// Half of the flows', and those of probes.
    Mixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Faults {
    None,
    OneLink,
    TwoLinks,
    Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub shape: Shape,
    pub paths: Paths,
    pub faults: Faults,
}

impl Kind {
    pub fn all() -> Vec<Kind> {
        let mut all = Vec::new();
        for shape in [Shape::LeafSpine, Shape::ThreeTier] {
            for paths in [Paths::Known, Paths::Mixed, Paths::Unknown] {
                for faults in [
                    Faults::None,
                    Faults::OneLink,
                    Faults::TwoLinks,
                    Faults::Device,
                ] {
                    all.push(Kind {
                        shape,
                        paths,
                        faults,
                    });
                }
            }
        }
        all
    }
}

/// What is really at fault.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    Link(usize),
    /// A switch, with the links that leave it and that some flow crosses.
    Device(usize, Vec<usize>),
}

pub struct Case {
    pub seen: Observations,
    pub truth: Vec<Truth>,
    /// By link, then by switch: the first of those that no observation of this case can tell from it.
    pub link_class: Vec<usize>,
    pub device_class: Vec<usize>,
}

/// A directed fabric with hosts at its edge.
pub struct Fabric {
    /// By link: the switch that it leaves.
    pub leaves: Vec<Option<usize>>,
    shape: Shape,
    /// Edge switches of a pod (all of them in a leaf-spine fabric), aggregation switches of a pod or spines, hosts of an edge switch.
    edges: usize,
    uppers: usize,
    hosts_per_edge: usize,
    pods: usize,
}

impl Fabric {
    pub fn leaf_spine(leaves: usize, spines: usize, hosts: usize) -> Fabric {
        Fabric::new(Shape::LeafSpine, 1, leaves, spines, hosts)
    }

    /// Each aggregation switch of a pod has `uppers` cores, which it shares with its peers in other pods.
    pub fn three_tier(pods: usize, edges: usize, uppers: usize, hosts: usize) -> Fabric {
        Fabric::new(Shape::ThreeTier, pods, edges, uppers, hosts)
    }

    fn new(
        shape: Shape,
        pods: usize,
        edges: usize,
        uppers: usize,
        hosts_per_edge: usize,
    ) -> Fabric {
        let mut fabric = Fabric {
            leaves: Vec::new(),
            shape,
            edges,
            uppers,
            hosts_per_edge,
            pods,
        };
        let (hosts, all_edges) = (fabric.hosts(), pods * edges);
        let per_upper = pods * edges * uppers;
        let uppers_at = |pod: usize| match shape {
            Shape::LeafSpine => all_edges,
            Shape::ThreeTier => all_edges + pod * uppers,
        };
        fabric.leaves.resize(hosts, None);
        fabric
            .leaves
            .extend((0..hosts).map(|h| Some(h / hosts_per_edge)));
        // Edge up to upper, then upper down to edge.
        fabric
            .leaves
            .extend((0..per_upper).map(|n| Some(n / uppers)));
        let down = |n: usize| Some(uppers_at(n / uppers / edges) + n % uppers);
        fabric.leaves.extend((0..per_upper).map(down));
        if shape == Shape::ThreeTier {
            let per_core = pods * uppers * uppers;
            fabric
                .leaves
                .extend((0..per_core).map(|n| Some(all_edges + n / uppers)));
            let core = |n: usize| Some(all_edges + pods * uppers + n % (uppers * uppers));
            fabric.leaves.extend((0..per_core).map(core));
        }
        fabric
    }

    pub fn hosts(&self) -> usize {
        self.pods * self.edges * self.hosts_per_edge
    }

    /// Links that a packet passes whatever ECMP does, and the ways between them.
    pub fn paths(&self, src: usize, dst: usize) -> ([usize; 2], Vec<Vec<usize>>) {
        let hosts = self.hosts();
        let (a, b) = (src / self.hosts_per_edge, dst / self.hosts_per_edge);
        let known = [src, hosts + dst];
        if a == b {
            return (known, Vec::new());
        }
        let all = self.pods * self.edges * self.uppers;
        let up = |edge: usize, upper: usize| 2 * hosts + edge * self.uppers + upper;
        let down = |edge: usize, upper: usize| up(edge, upper) + all;
        let mut ways = Vec::new();
        for upper in 0..self.uppers {
            let (from, to) = (a / self.edges, b / self.edges);
            if self.shape == Shape::LeafSpine || from == to {
                ways.push(vec![up(a, upper), down(b, upper)]);
                continue;
            }
            for core in 0..self.uppers {
                // Cores of an upper stand together: core `upper * uppers + core`.
                let base = 2 * hosts + 2 * all;
                let rise = base + (from * self.uppers + upper) * self.uppers + core;
                let per_core = self.pods * self.uppers * self.uppers;
                let fall =
                    base + per_core + to * self.uppers * self.uppers + upper * self.uppers + core;
                ways.push(vec![up(a, upper), rise, fall, down(b, upper)]);
            }
        }
        (known, ways)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in 0.0..1.0.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.bits() % n.max(1) as u64).unwrap_or(0)
    }

    fn between(&mut self, range: &Range<f64>) -> f64 {
        range.start + self.unit() * (range.end - range.start)
    }

    fn log_uniform(&mut self, range: &Range<f64>) -> f64 {
        self.between(&(range.start.ln()..range.end.ln())).exp()
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "packets: positive and small"
    )]
    fn packets(&mut self) -> u64 {
        self.log_uniform(&PACKETS) as u64
    }

    /// How many of `n` packets are lost, each with probability `p`: exact, by the gaps between losses.
    fn binomial(&mut self, n: u64, p: f64) -> u64 {
        let (mut at, mut lost) = (0.0, 0);
        while p > 0.0 && lost < n {
            at += ((1.0 - self.unit()).ln() / (-p).ln_1p()).floor() + 1.0;
            if at > n as f64 {
                break;
            }
            lost += 1;
        }
        lost
    }
}

/// A flow before it is told.
struct Flow {
    known: [usize; 2],
    ways: Vec<Vec<usize>>,
    /// The way that ECMP took.
    way: usize,
    sent: u64,
    told: bool,
}

impl Flow {
    fn links(&self) -> Vec<usize> {
        let way = self.ways.get(self.way).into_iter().flatten();
        self.known.iter().chain(way).copied().collect()
    }
}

/// The case of a seed.
pub fn case(kind: Kind, seed: u64) -> Case {
    let rng = &mut Rng::new(seed);
    let fabric = match kind.shape {
        Shape::LeafSpine => {
            Fabric::leaf_spine(4 + rng.below(13), 2 + rng.below(7), 2 + rng.below(7))
        }
        Shape::ThreeTier => Fabric::three_tier(
            2 + rng.below(3),
            2 + rng.below(3),
            2 + rng.below(3),
            2 + rng.below(4),
        ),
    };
    let flows = flows(&fabric, kind.paths, rng);
    let mut crossed = vec![0; fabric.leaves.len()];
    for link in flows.iter().flat_map(Flow::links) {
        crossed[link] += 1;
    }
    let used: Vec<usize> = (0..crossed.len())
        .filter(|l| crossed[*l] >= FLOWS_MIN)
        .collect();
    let noise = rng.log_uniform(&NOISE);
    let mut loss = vec![noise; crossed.len()];
    let mut truth = Vec::new();
    let mut link_fails = |rng: &mut Rng, loss: &mut Vec<f64>| {
        let link = used[rng.below(used.len())];
        if loss[link] <= noise {
            loss[link] += rng.log_uniform(&LOSS);
            truth.push(Truth::Link(link));
        }
    };
    match kind.faults {
        Faults::None => {}
        Faults::OneLink => link_fails(rng, &mut loss),
        Faults::TwoLinks => {
            link_fails(rng, &mut loss);
            link_fails(rng, &mut loss);
        }
        Faults::Device => {
            let devices: Vec<usize> = used.iter().filter_map(|l| fabric.leaves[*l]).collect();
            let device = devices[rng.below(devices.len())];
            let of: Vec<usize> = (0..loss.len())
                .filter(|l| fabric.leaves[*l] == Some(device))
                .collect();
            let more = rng.log_uniform(&LOSS);
            for link in &of {
                loss[*link] += more;
            }
            let seen = of.into_iter().filter(|l| crossed[*l] > 0).collect();
            truth.push(Truth::Device(device, seen));
        }
    }
    let mut seen = Observations::new(fabric.leaves.clone());
    if rng.below(2) == 0 {
        let link = used[rng.below(used.len())];
        if loss[link] <= noise {
            loss[link] += rng.log_uniform(&CONGESTION);
            // As a switch counts it: over the interval of its own, not over these packets.
            seen.counted(link, loss[link] * rng.between(&(0.8..1.25)));
        }
    }
    let bursts = rng.between(&BURSTS);
    for flow in &flows {
        let kept: f64 = flow.links().iter().map(|l| 1.0 - loss[*l]).product();
        let mut bad = rng.binomial(flow.sent, 1.0 - kept);
        if rng.unit() < bursts {
            bad = (bad + 1 + rng.bits() % BURST_MAX).min(flow.sent);
        }
        tell(&mut seen, flow, bad);
    }
    let (link_class, device_class) = classes(&fabric, &flows);
    Case {
        seen,
        truth,
        link_class,
        device_class,
    }
}

/// What each link and each switch cannot be told from, as the first of its class: those that the same flows cross
/// on as many of their candidate paths, since nothing else of an element enters the likelihood of a fault.
fn classes(fabric: &Fabric, flows: &[Flow]) -> (Vec<usize>, Vec<usize>) {
    let devices = fabric.leaves.iter().flatten().max().map_or(0, |d| d + 1);
    let mut links: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); fabric.leaves.len()];
    let mut switches = vec![BTreeMap::new(); devices];
    for (n, flow) in flows.iter().enumerate() {
        let ways = if flow.told || flow.ways.is_empty() {
            vec![flow.links()]
        } else {
            let whole = |way: &Vec<usize>| flow.known.iter().chain(way).copied().collect();
            flow.ways.iter().map(whole).collect()
        };
        for way in ways {
            for link in way {
                *links[link].entry(n).or_default() += 1;
                if let Some(device) = fabric.leaves[link] {
                    *switches[device].entry(n).or_default() += 1;
                }
            }
        }
    }
    let first = |all: Vec<BTreeMap<usize, usize>>| {
        let mut firsts: BTreeMap<BTreeMap<usize, usize>, usize> = BTreeMap::new();
        (0..)
            .zip(all)
            .map(|(n, crossed)| *firsts.entry(crossed).or_insert(n))
            .collect()
    };
    (first(links), first(switches))
}

fn flows(fabric: &Fabric, paths: Paths, rng: &mut Rng) -> Vec<Flow> {
    let hosts = fabric.hosts();
    let mut flows = Vec::new();
    for n in 0..hosts * (6 + rng.below(10)) {
        let src = rng.below(hosts);
        let dst = (src + 1 + rng.below(hosts - 1)) % hosts;
        let (known, ways) = fabric.paths(src, dst);
        let probe = paths == Paths::Mixed && n % 4 == 0;
        flows.push(Flow {
            known,
            way: rng.below(ways.len()),
            ways,
            sent: if probe { PROBES } else { rng.packets() },
            told: match paths {
                Paths::Known => true,
                Paths::Unknown => false,
                Paths::Mixed => probe || rng.below(2) == 0,
            },
        });
    }
    flows
}

fn tell(seen: &mut Observations, flow: &Flow, bad: u64) {
    if flow.told || flow.ways.is_empty() {
        seen.flow(&flow.links(), None, flow.sent, bad);
        return;
    }
    let ways: Vec<&[usize]> = flow.ways.iter().map(Vec::as_slice).collect();
    if let Some(stage) = seen.stage(&ways) {
        seen.flow(&flow.known, Some(stage), flow.sent, bad);
    }
}

/// Observations of a large fabric with one fault, to measure the time that an explanation takes: 256 hosts,
/// 16 leaves, 16 spines, 1,024 directed links.
pub fn large(flows: usize, told: bool, seed: u64) -> Observations {
    let rng = &mut Rng::new(seed);
    let fabric = Fabric::leaf_spine(16, 16, 16);
    let mut seen = Observations::new(fabric.leaves.clone());
    let faulty = 2 * fabric.hosts() + 5;
    for _ in 0..flows {
        let src = rng.below(fabric.hosts());
        let dst = (src + 16 + rng.below(fabric.hosts() - 32)) % fabric.hosts();
        let (known, ways) = fabric.paths(src, dst);
        let way = rng.below(ways.len());
        let sent = rng.packets();
        let flow = Flow {
            known,
            ways,
            way,
            sent,
            told,
        };
        let loss = if flow.links().contains(&faulty) {
            1e-3
        } else {
            1e-6
        };
        let bad = rng.binomial(sent, loss);
        tell(&mut seen, &flow, bad);
    }
    seen
}
