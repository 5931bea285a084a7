use super::*;
use crate::ids::FlowKey;
use crate::io::{FlowSample, Inventory, PortInventory, Role};
use proptest::prelude::*;

fn server(n: u8) -> NodeId {
    NodeId::new(&format!("s{n:02}"))
}

/// Address of a server's NIC on a rail.
fn address(server: u8, rail: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, rail, 0, server)
}

/// Servers with two rails each.
fn topology(servers: u8) -> Topology {
    let mut topology = Topology::default();
    for n in 0..servers {
        topology.node_connected(&server(n), Role::Host);
        let port = |rail| PortInventory {
            name: format!("e{rail}").as_str().into(),
            up: true,
            addresses: vec![(address(n, rail), 16)],
            neighbours: vec![],
            speed_bps: None,
        };
        let ports = vec![port(0), port(1)];
        topology.inventory_reported(
            &server(n),
            Inventory {
                ports,
                ..Inventory::default()
            },
        );
    }
    topology.refresh();
    topology
}

fn flow(from: Ipv4Addr, to: Ipv4Addr, bytes: u64) -> FlowSample {
    FlowSample {
        key: FlowKey {
            src: from,
            dst: to,
            src_port: 4791,
            dst_port: 4791,
        },
        job: None,
        bytes,
        retransmits: 0,
        srtt_us: 0,
        delivered_ce: 0,
        received_ce: 0,
        cnps_sent: 0,
    }
}

/// Bytes by server of its flows in one sample.
type Sample = BTreeMap<u8, Vec<FlowSample>>;

fn ring(servers: &[u8], rails: u8, bytes: u64) -> Sample {
    let mut sample = Sample::new();
    for (n, from) in servers.iter().enumerate() {
        let to = servers[(n + 1) % servers.len()];
        let flows = (0..rails).map(|rail| flow(address(*from, rail), address(to, rail), bytes));
        sample.entry(*from).or_default().extend(flows);
    }
    sample
}

fn tell(
    inference: &mut Inference,
    topology: &Topology,
    sample: Sample,
    elapsed_s: f64,
    at: Duration,
) {
    for (n, flows) in sample {
        let mut sample = NodeSample {
            elapsed: Some(Duration::from_secs_f64(elapsed_s)),
            flows,
            ..NodeSample::default()
        };
        inference.sampled(&server(n), &mut sample, topology, at);
    }
}

fn servers(groups: &[Group]) -> Vec<Vec<NodeId>> {
    groups
        .iter()
        .map(|g| g.servers.iter().cloned().collect())
        .collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_jobs_on_one_storage_server_are_two_groups_with_their_rings() {
    let topology = topology(9);
    let mut inference = Inference::default();
    let mut sample = ring(&[0, 1, 2, 3], 2, 50_000_000);
    sample.extend(ring(&[4, 5, 6], 1, 50_000_000));
    for n in [1, 5] {
        sample
            .entry(n)
            .or_default()
            .push(flow(address(n, 0), address(8, 0), 90_000_000));
    }
    tell(&mut inference, &topology, sample, 1.0, SECOND);
    inference.look(SECOND);
    let groups = inference.groups();
    let of = |range: std::ops::Range<u8>| range.map(server).collect::<Vec<_>>();
    assert_eq!(servers(groups), [of(0..4), of(4..7)]);
    let rail = |rail: u8| (0..4).map(|n| address(n, rail)).collect::<Vec<_>>();
    // Rail 0 of server 1 also writes to storage: that address sends to two.
    assert_eq!(groups[0].rings, [rail(1)]);
    assert!(groups[1].rings.is_empty(), "server 5 does too");
}

#[test]
fn flows_of_a_known_job_and_control_traffic_tie_nothing() {
    let topology = topology(4);
    let mut inference = Inference::default();
    let mut sample = ring(&[0, 1], 1, 50_000_000);
    for flow in sample.values_mut().flatten() {
        flow.job = Some(JobId::new("known"));
    }
    sample.extend(ring(&[2, 3], 1, 10_000));
    tell(&mut inference, &topology, sample, 1.0, SECOND);
    inference.look(SECOND);
    assert_eq!(inference.groups(), []);
}

/// A sample of one server, as the core goes on with it.
fn named(
    inference: &mut Inference,
    topology: &Topology,
    n: u8,
    mut sample: NodeSample,
    at: Duration,
) -> NodeSample {
    inference.sampled(&server(n), &mut sample, topology, at);
    sample
}

#[test]
fn flows_among_the_servers_of_a_group_bear_its_name_and_others_none() {
    let topology = topology(6);
    let mut inference = Inference::default();
    let mut sample = ring(&[0, 1, 2], 1, 50_000_000);
    let out = flow(address(0, 1), address(5, 1), 9_000_000);
    sample.entry(0).or_default().push(out.clone());
    tell(&mut inference, &topology, sample.clone(), 1.0, SECOND);
    assert_eq!(inference.look(SECOND), BTreeSet::new());
    let flows = sample.remove(&0).unwrap();
    let told = NodeSample {
        flows,
        ..NodeSample::default()
    };
    let told = named(&mut inference, &topology, 0, told, SECOND);
    let jobs: Vec<_> = told.flows.into_iter().map(|f| f.job).collect();
    assert_eq!(jobs, [Some(JobId::inferred(1)), None]);
}

#[test]
fn a_group_gives_way_as_soon_as_a_job_of_one_of_its_servers_is_reported() {
    let topology = topology(6);
    let mut inference = Inference::default();
    let at = Duration::from_secs;
    tell(
        &mut inference,
        &topology,
        ring(&[0, 1, 2, 3], 1, 50_000_000),
        1.0,
        at(1),
    );
    tell(
        &mut inference,
        &topology,
        ring(&[4, 5], 1, 50_000_000),
        1.0,
        at(1),
    );
    inference.look(at(1));
    assert!(!inference.is_due(at(2)));
    let flows = ring(&[0, 1, 2, 3], 1, 50_000_000).remove(&2).unwrap();
    let running = vec![crate::io::CollectiveRunning {
        job: JobId::new("real"),
        running: SECOND,
    }];
    let told = NodeSample {
        flows,
        running,
        ..NodeSample::default()
    };
    named(&mut inference, &topology, 2, told, at(2));
    assert!(inference.is_due(at(2)));
    assert_eq!(inference.look(at(2)), [JobId::inferred(1)].into());
    assert_eq!(servers(inference.groups()), [vec![server(4), server(5)]]);
    // No half of it comes back while the job is known, and all of it when it no longer is.
    for at_s in 3..=121 {
        tell(
            &mut inference,
            &topology,
            ring(&[0, 1, 2, 3], 1, 50_000_000),
            1.0,
            at(at_s),
        );
        inference.look(at(at_s));
        assert!(
            inference
                .groups()
                .iter()
                .all(|g| !g.servers.contains(&server(0))),
            "{at_s} s"
        );
    }
    inference.look(at(122));
    let of = |range: std::ops::Range<u8>| range.map(server).collect::<Vec<_>>();
    assert!(servers(inference.groups()).contains(&of(0..4)));
}

#[test]
fn half_of_a_job_whose_other_half_is_reported_is_none() {
    let topology = topology(8);
    let mut inference = Inference::default();
    let mut sample = ring(&[0, 1, 2, 3, 4, 5, 6, 7], 1, 50_000_000);
    for flow in sample.range_mut(..4).flat_map(|(_, flows)| flows) {
        flow.job = Some(JobId::new("real"));
    }
    tell(&mut inference, &topology, sample, 1.0, SECOND);
    inference.look(SECOND);
    assert_eq!(inference.groups(), []);
}

#[test]
fn what_is_kept_as_bytes_goes_on_alike() {
    use crate::keep::Keep;
    let topology = topology(4);
    let mut inference = Inference::default();
    let go_on = |inference: &mut Inference, seconds: std::ops::Range<u32>| {
        for (n, bytes) in (0..).zip(on_off(80, 1.0, 7.0, 0.4, 0.0)) {
            if seconds.contains(&n) {
                let sample = ring(&[0, 1, 2], 1, whole(bytes));
                tell(inference, &topology, sample, 1.0, SECOND * n);
                inference.look(SECOND * n);
            }
        }
    };
    go_on(&mut inference, 0..60);
    let mut bytes = Vec::new();
    inference.put(&mut bytes);
    let mut kept = Inference::take(&mut bytes.as_slice()).unwrap();
    go_on(&mut inference, 60..70);
    go_on(&mut kept, 60..70);
    assert!(inference.groups()[0].rhythm.is_some());
    assert_eq!(inference.groups(), kept.groups());
}

#[test]
fn a_group_keeps_its_name_through_a_pause_and_a_replaced_server() {
    let topology = topology(8);
    let mut inference = Inference::default();
    let mut look = |servers: &[u8], at_s: u64| {
        let at = Duration::from_secs(at_s);
        tell(
            &mut inference,
            &topology,
            ring(servers, 1, 50_000_000),
            1.0,
            at,
        );
        inference.look(at);
        let present = inference.groups().iter().filter(|g| g.last_seen == at);
        let present = present.map(|g| (g.job.to_string(), g.servers.len()));
        present.collect::<Vec<_>>()
    };
    let group = |n: u64, servers: usize| [(JobId::inferred(n).to_string(), servers)];
    assert_eq!(look(&[0, 1, 2, 3], 1), group(1, 4));
    assert_eq!(look(&[], 40), []);
    assert_eq!(look(&[0, 1, 2, 4], 100), group(1, 4));
    assert_eq!(look(&[5, 6], 140), group(2, 2));
    assert_eq!(look(&[], 200), []);
    assert_eq!(look(&[0, 1, 2, 4], 400), group(3, 4), "forgotten by then");
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes are positive and small"
)]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}

/// Bytes in each of `n` samples of `interval_s`, of bursts of `duty * period_s` each `period_s`.
fn on_off(n: usize, interval_s: f64, period_s: f64, duty: f64, phase_s: f64) -> Vec<f64> {
    let sent_until = |t: f64| {
        let t = t + phase_s;
        (t / period_s).floor() * duty * period_s + (t % period_s).min(duty * period_s)
    };
    (0..n)
        .map(|k| {
            (sent_until((k as f64 + 1.0) * interval_s) - sent_until(k as f64 * interval_s)) * 1e9
        })
        .collect()
}

#[test]
fn the_rhythm_of_a_group_is_its_jobs() {
    for (interval_s, period_s) in [(1.0, 7.3), (0.1, 0.62), (0.1, 0.98)] {
        let topology = topology(4);
        let mut inference = Inference::default();
        let bytes = on_off(120, interval_s, period_s, 0.4, 0.0);
        let mut at = Duration::from_secs(1);
        for bytes in bytes {
            at += Duration::from_secs_f64(interval_s);
            let sample = ring(&[0, 1, 2], 1, whole(bytes));
            tell(&mut inference, &topology, sample, interval_s, at);
        }
        inference.look(at);
        let rhythm = inference.groups()[0].rhythm.as_ref().unwrap();
        assert!(
            (rhythm.period.as_secs_f64() / period_s - 1.0).abs() < 0.03,
            "{rhythm:?}"
        );
        assert!((rhythm.duty - 0.4).abs() < 0.1, "{rhythm:?}");
        // Bursts start at whole periods after the first second.
        let phase = (rhythm.started.as_secs_f64() - 1.0) / period_s;
        assert!(
            (phase - phase.round()).abs() * period_s < interval_s,
            "{phase} {rhythm:?}"
        );
        assert!(at - rhythm.started < Duration::from_secs_f64(period_s + interval_s));
        let seconds: f64 = rhythm.iterations.iter().map(|i| i.seconds).sum();
        assert!((seconds / rhythm.iterations.len() as f64 / period_s - 1.0).abs() < 0.03);
    }
}

#[test]
fn a_gap_in_the_samples_starts_the_rhythm_anew() {
    let topology = topology(2);
    let mut inference = Inference::default();
    let mut at = SECOND;
    for (n, bytes) in on_off(60, 1.0, 8.0, 0.4, 0.0).into_iter().enumerate() {
        at += SECOND;
        let sample = ring(&[0, 1], 1, whole(bytes));
        let elapsed_s = if n == 50 { 3.0 } else { 1.0 };
        tell(&mut inference, &topology, sample, elapsed_s, at);
    }
    inference.look(at);
    assert_eq!(inference.groups()[0].rhythm, None);
}

#[test]
fn a_step_with_two_bursts_and_a_checkpoint_has_one_period() {
    let step = [0.0, 0.0, 9.0, 9.0, 0.0, 0.0, 0.0, 5.0, 0.0];
    let mut bytes = step.repeat(6);
    bytes.extend([0.0; 14]);
    bytes.extend(step.repeat(6));
    let beat = rhythm::find(&bytes).unwrap();
    assert!((beat.period - 9.0).abs() < 0.1, "{beat:?}");
    assert_eq!(beat.periods.len(), 10);
}

#[test]
fn what_is_always_on_or_off_or_random_has_no_rhythm() {
    assert_eq!(rhythm::find(&[1e9; 100]), None);
    assert_eq!(rhythm::find(&[0.0; 100]), None);
    let mut x = 7u32;
    let random: Vec<f64> = (0..200)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(x >> 31)
        })
        .collect();
    assert_eq!(rhythm::find(&random), None);
}

proptest! {
    /// Below two samples to a period nothing is told, whatever it would look like.
    #[test]
    fn no_alias_is_taken_for_a_rhythm(period in 0.05..2.0f64, duty in 0.02..0.98f64, phase in 0.0..2.0f64, n in 24..256usize) {
        prop_assert_eq!(rhythm::find(&on_off(n, 1.0, period, duty, phase)), None);
    }

    #[test]
    fn a_rhythm_that_samples_can_show_is_found(period in 6.0..20.0f64, duty in 0.15..0.5f64, phase in 0.0..20.0f64) {
        let beat = rhythm::find(&on_off(200, 1.0, period, duty, phase));
        let beat = beat.ok_or_else(|| TestCaseError::fail("none"))?;
        prop_assert!((beat.period / period - 1.0).abs() < 0.05, "{:?}", beat);
    }

    #[test]
    fn any_series_is_taken(bytes in proptest::collection::vec(0.0..1e12f64, 0..256)) {
        if let Some(beat) = rhythm::find(&bytes) {
            prop_assert!(beat.period > 2.0 && (0.0..=1.0).contains(&beat.duty) && beat.strength <= 1.0);
            prop_assert!(beat.periods.windows(2).all(|p| p[0].1 <= p[1].0));
        }
    }

    /// Jobs on servers of their own are never merged, and each is found whole; a shared storage server ties none.
    #[test]
    fn jobs_are_merged_only_by_a_server_that_they_share(
        sizes in proptest::collection::vec(2..6u8, 1..6),
        share in any::<bool>(),
        writes in any::<bool>(),
        all_to_all in any::<bool>(),
    ) {
        let count: u8 = sizes.iter().sum();
        let topology = topology(count + 1);
        let mut inference = Inference::default();
        let mut sample = Sample::new();
        let (mut jobs, mut next): (Vec<BTreeSet<NodeId>>, u8) = (Vec::new(), 0);
        for size in &sizes {
            // One server of the job before, if they share.
            let first = if share && next > 0 { next - 1 } else { next };
            let members: Vec<u8> = (first..next + size).collect();
            next += size;
            let mut add = |servers: &[u8]| for (n, flows) in ring(servers, 1, 50_000_000) {
                sample.entry(n).or_default().extend(flows);
            };
            if all_to_all {
                for (n, a) in members.iter().enumerate() {
                    members[n + 1..].iter().for_each(|b| add(&[*a, *b]));
                }
            } else {
                add(&members);
            }
            if writes {
                sample.entry(members[0]).or_default().push(flow(address(members[0], 0), address(count, 1), 30_000_000));
            }
            let members: BTreeSet<NodeId> = members.into_iter().map(server).collect();
            match jobs.last_mut().filter(|job| !job.is_disjoint(&members)) {
                Some(job) => job.extend(members),
                None => jobs.push(members),
            }
        }
        tell(&mut inference, &topology, sample, 1.0, SECOND);
        inference.look(SECOND);
        let mut found: Vec<BTreeSet<NodeId>> = inference.groups().iter().map(|g| g.servers.clone()).collect();
        found.sort();
        prop_assert_eq!(found, jobs);
    }
}
