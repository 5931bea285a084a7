//! What every run must keep, whatever is sent, and what congestion control must reach.

use proptest::prelude::*;
use weir_sim::change::Change;
use weir_sim::port::EcnParams;
use weir_sim::rp::RpParams;
use weir_sim::scenario::Scenario;
use weir_sim::sim::Sim;
use weir_sim::time::{MS, Time, US};

const SMALL: &str =
    "topology: {shape: {kind: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 4}}\n";

const ONE_FLOW: &str = "jobs: [{name: one, traffic: {kind: incast, bytes: 1}, hosts: [0, 1]}]\n";

#[expect(
    clippy::unwrap_used,
    reason = "a test's scenario is right or the test is wrong"
)]
fn build(text: &str) -> Sim {
    Scenario::parse(text).unwrap().build().unwrap()
}

/// Every packet made has arrived, was lost, or is on its way; no buffer holds what no queue has.
fn check_conservation(sim: &Sim) {
    let t = sim.totals();
    let lost = t.lost_buffer + t.lost_error + t.lost_link;
    assert_eq!(t.made, t.delivered + lost + sim.alive(), "{t:?}");
    assert_eq!(sim.buffered(), sim.queued());
}

/// Payload of all iterations that crossed the fabric; what stays inside a server does not.
fn payload(sim: &Sim) -> u64 {
    let sent = |j: &weir_sim::job::Job| -> u64 {
        let fabric = j
            .spec
            .plan
            .ops
            .iter()
            .filter(|o| j.qps[o.connection as usize] != u32::MAX);
        fabric.map(|o| o.bytes).sum()
    };
    sim.jobs()
        .iter()
        .map(|j| sent(j) * j.iterations.len() as u64)
        .sum()
}

#[test]
fn pfc_loses_nothing_in_an_incast_and_without_it_packets_are_lost() {
    let incast = |pfc: bool| {
        let mut sim = build(&format!(
            "{SMALL}config: {{seed: 3, ecn: {{enabled: false}}, buffer: {{bytes: 400000, pfc: {pfc}}}}}\n\
             jobs: [{{name: incast, traffic: {{kind: incast, bytes: 500000}}, hosts: [0-7], iterations: 2}}]\n"
        ));
        assert!(sim.run_jobs(200 * MS));
        sim
    };
    let mut with = incast(true);
    assert_eq!(with.totals().lost_buffer, 0);
    let sample = with.sample();
    assert!(sample.ports.iter().map(|p| p.pause_tx).sum::<u64>() > 0);
    assert!(sample.hosts.iter().all(|h| h.retransmits == 0));
    let mut without = incast(false);
    assert!(without.totals().lost_buffer > 0);
    assert!(
        without
            .sample()
            .hosts
            .iter()
            .map(|h| h.retransmits)
            .sum::<u64>()
            > 0
    );
    for sim in [&with, &without] {
        check_conservation(sim);
        assert_eq!(sim.totals().goodput, payload(sim));
    }
}

#[test]
fn pauses_never_lock_each_other_up() {
    for shape in [
        "{kind: fat_tree, k: 4}",
        "{kind: leaf_spine, leaves: 4, spines: 2, hosts_per_leaf: 4}",
    ] {
        let mut sim = build(&format!(
            "topology: {{shape: {shape}}}\nconfig: {{seed: 9, ecn: {{enabled: false}}, buffer: {{bytes: 320000}}}}\n\
             jobs: [{{name: all, traffic: {{kind: all_to_all, bytes: 3200000}}, hosts: [0-15], iterations: 2}},\n\
                    {{name: tree, traffic: {{kind: tree_all_reduce, bytes: 1000000, chunks: 4}}, hosts: [15, 3, 7, 11, 0, 4]}}]\n"
        ));
        assert!(sim.run_jobs(100 * MS), "{shape}");
        assert_eq!(sim.totals().lost_buffer, 0);
        assert!(sim.sample().ports.iter().map(|p| p.pause_rx).sum::<u64>() > 100);
        check_conservation(&sim);
        // Acknowledgements that are still on their way when the jobs have ended drain too.
        let end = sim.now() + 10 * MS;
        sim.run_until(end);
        assert_eq!((sim.alive(), sim.buffered()), (0, 0));
    }
}

#[test]
fn every_byte_comes_once_and_in_order_over_a_link_that_loses() {
    let mut sim = build(&format!(
        "{SMALL}config: {{seed: 5, transport: {{rto_us: 300}}}}\n\
         jobs: [{{name: ring, traffic: {{kind: ring_all_reduce, bytes: 1600000}}, hosts: [0-7], iterations: 3}}]\n\
         events: [{{at_us: 0, what: loss, port: leaf0/5, share: 0.03}}, {{at_us: 0, what: loss, port: leaf0/6, share: 0.03}}]\n"
    ));
    assert!(sim.run_jobs(500 * MS));
    check_conservation(&sim);
    assert!(sim.totals().lost_error > 20);
    // The receiver hands on only what it expects next, so the sum tells that nothing came twice or was left out.
    assert_eq!(sim.totals().goodput, payload(&sim));
    let sample = sim.sample();
    let sum = |f: fn(&weir_sim::port::HostCounters) -> u64| sample.hosts.iter().map(f).sum::<u64>();
    assert!(
        sum(|h| h.sequence_naks) > 0 && sum(|h| h.ack_timeouts) > 0 && sum(|h| h.retransmits) > 0
    );
    assert_eq!(sum(|h| h.tx_packets), sim.totals().data_made);
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_does_not() {
    let run = |seed: u64| {
        let text = format!(
            "{SMALL}config: {{seed: {seed}}}\n\
             jobs: [{{name: incast, traffic: {{kind: incast, bytes: 900000}}, hosts: [0-7], iterations: 2, jitter_us: 3}}]\n"
        );
        let scenario = Scenario::parse(&text).unwrap();
        let mut sim = scenario.build().unwrap();
        let (report, _) = weir_sim::report::run(&scenario, &mut sim, |_| ());
        serde_json::to_string(&report).unwrap()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Rates of `senders` long flows into host 0, Gb/s, from bytes delivered between two times.
fn rates(sim: &mut Sim, from: Time, to: Time) -> Vec<f64> {
    sim.run_until(from);
    let before: Vec<u64> = (0..sim.qp_count()).map(|q| sim.qp_delivered(q)).collect();
    sim.run_until(to);
    let span = (to - from) as f64;
    (0..sim.qp_count())
        .zip(before)
        .map(|(q, b)| (sim.qp_delivered(q) - b) as f64 * 8e3 / span)
        .collect()
}

#[test]
fn one_flow_keeps_the_line_and_is_never_marked() {
    let mut sim = build(&format!(
        "{SMALL}jobs: [{{name: one, traffic: {{kind: incast, bytes: 100000000}}, hosts: [0, 4]}}]\n"
    ));
    let rate = rates(&mut sim, MS, 2 * MS)[0];
    // 1000 of 1048 bytes of 100 Gb/s are payload.
    assert!((rate - 95.4).abs() < 0.1, "{rate}");
    assert_eq!(
        sim.sample()
            .ports
            .iter()
            .map(|p| p.ecn_marked_tx)
            .sum::<u64>(),
        0
    );
}

#[test]
fn two_flows_share_a_link_evenly_and_use_it() {
    let mut sim = build(&format!(
        "{SMALL}config: {{seed: 2, rp: {{rpg_ai_rate: 200, rpg_hai_rate: 200, rpg_time_reset: 55, rpg_threshold: 5}}, ecn: {{kmin_kb: 20, kmax_kb: 400, pmax: 0.1}}}}\n\
         jobs: [{{name: two, traffic: {{kind: incast, bytes: 1000000000}}, hosts: [0, 4, 5]}}]\n"
    ));
    let r = rates(&mut sim, 20 * MS, 40 * MS);
    let sum: f64 = r.iter().sum();
    assert!(sum > 80.0, "{r:?}");
    assert!((r[0] / sum - 0.5).abs() < 0.1, "{r:?}");
    assert_eq!(sim.totals().lost_buffer, 0);
    check_conservation(&sim);
}

#[test]
fn a_flow_alone_again_gets_its_line_back() {
    let mut sim = build(&format!(
        "{SMALL}config: {{rp: {{rpg_time_reset: 55, rpg_ai_rate: 100, rpg_hai_rate: 1000}}}}\n\
         jobs: [{{name: long, traffic: {{kind: incast, bytes: 1000000000}}, hosts: [0, 4]}},\n\
                {{name: short, traffic: {{kind: incast, bytes: 1000000}}, hosts: [0, 5-7], start_us: 100}}]\n"
    ));
    let slowed = rates(&mut sim, 200 * US, 300 * US)[0];
    assert!(slowed < 60.0, "{slowed}");
    let rate = rates(&mut sim, 30 * MS, 31 * MS)[0];
    assert!(rate > 90.0, "{rate}");
}

#[test]
fn a_pause_spreads_from_a_slow_receiver_to_whoever_shares_its_path() {
    let run = |slow: bool| {
        let events = if slow {
            "events: [{at_us: 0, what: slow_receiver, host: 0, gbps: 10}]\n"
        } else {
            ""
        };
        let mut sim = build(&format!(
            "topology: {{shape: {{kind: leaf_spine, leaves: 2, spines: 1, hosts_per_leaf: 4}}}}\n\
             config: {{ecn: {{enabled: false}}, buffer: {{bytes: 1000000}}}}\n\
             jobs: [{{name: victim, traffic: {{kind: incast, bytes: 2000000}}, hosts: [1, 5], iterations: 3}},\n\
                    {{name: bystander, traffic: {{kind: incast, bytes: 10000000}}, hosts: [0, 4], iterations: 0}}]\n{events}"
        ));
        assert!(sim.run_jobs(500 * MS));
        check_conservation(&sim);
        assert_eq!(sim.totals().lost_buffer, 0);
        (sim.jobs()[0].mean_us().unwrap(), sim.sample())
    };
    let topology = build(&format!(
        "topology: {{shape: {{kind: leaf_spine, leaves: 2, spines: 1, hosts_per_leaf: 4}}}}\n{ONE_FLOW}"
    ));
    let sim_port = |name: &str| topology.topology().port_named(name).unwrap() as usize;
    let (well, _) = run(false);
    let (slow, sample) = run(true);
    assert!(slow > 2.0 * well, "{well} {slow}");
    // The root pauses and is never paused itself; its leaf passes the pause on.
    let leaf = &sample.ports[sim_port("leaf0/1")];
    let root = &sample.ports[sim_port("host0/1")];
    assert!(root.pause_tx > 0 && root.pause_rx == 0, "{root:?}");
    assert!(leaf.pause_rx > 0 && leaf.pause_rx_ps > 0);
    assert!(sample.ports[sim_port("spine0/1")].pause_rx > 0);
}

#[test]
fn knobs_and_routes_change_in_mid_run() {
    let text = "topology: {shape: {kind: leaf_spine, leaves: 4, spines: 4, hosts_per_leaf: 4}}\nconfig: {seed: 11}\n\
        jobs: [{name: ring, traffic: {kind: ring_all_reduce, bytes: 4000000, channels: 2}, \
        hosts: [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15], gap_us: 50, iterations: 8}]\n";
    let mut sim = build(text);
    while sim.jobs()[0].iterations.len() < 3 {
        let t = sim.now() + 100 * US;
        sim.run_until(t);
    }
    // Every host is reached by an uplink of its own, so that nothing collides any more.
    for switch in 16..20 {
        for dst in (0..16).filter(|dst| 16 + dst / 4 != switch) {
            let port = sim.topology().nodes[switch as usize].ports[4 + (dst % 4) as usize];
            sim.apply(Change::Pin {
                switch,
                dst,
                port: Some(port),
            });
        }
    }
    sim.apply(Change::Ecn {
        switch: None,
        ecn: EcnParams {
            enabled: false,
            ..EcnParams::default()
        },
    });
    // The shipped steps would take hundreds of milliseconds from where the collisions left the rates.
    let rp = RpParams {
        rpg_hai_rate: 10_000.0,
        rpg_time_reset: 55.0,
        ..*sim.rp(0)
    };
    sim.apply(Change::Rp { host: None, rp });
    let marked: u64 = sim.sample().ports.iter().map(|p| p.ecn_marked_tx).sum();
    assert!(sim.run_jobs(200 * MS));
    assert_eq!(
        sim.sample()
            .ports
            .iter()
            .map(|p| p.ecn_marked_tx)
            .sum::<u64>(),
        marked
    );
    let d: Vec<Time> = sim.jobs()[0].durations().collect();
    // The independent simulator's ring takes 772 us on collision-free paths.
    assert!(d[1] > 1000 * US && d[7] < 790 * US, "{d:?}");
    check_conservation(&sim);
}

#[test]
fn a_copy_goes_on_as_the_original_does_and_alone() {
    let mut sim = build(&format!(
        "{SMALL}config: {{seed: 6}}\n\
         jobs: [{{name: incast, traffic: {{kind: incast, bytes: 600000}}, hosts: [0-7], iterations: 6, gap_us: 20}}]\n"
    ));
    assert!(sim.run_iterations(0, 2, 100 * MS));
    assert_eq!(sim.take_flow_ns(0).len(), 2 * 7);
    let (mut same, mut other) = (sim.clone(), sim.clone());
    let gentle = EcnParams {
        kmin_kb: 800.0,
        kmax_kb: 3200.0,
        pmax: 0.1,
        ..EcnParams::default()
    };
    other.apply(Change::Ecn {
        switch: None,
        ecn: gentle,
    });
    for s in [&mut sim, &mut same, &mut other] {
        assert!(s.run_jobs(100 * MS));
    }
    assert_eq!(sim.sample(), same.sample());
    assert_eq!(sim.jobs()[0].iterations, same.jobs()[0].iterations);
    assert_ne!(sim.jobs()[0].iterations, other.jobs()[0].iterations);
    assert_eq!(sim.take_flow_ns(0).len(), 4 * 7);
}

#[test]
fn traffic_goes_round_a_dead_link_and_comes_back() {
    let mut sim = build(&format!(
        "{SMALL}config: {{seed: 4, transport: {{rto_us: 500}}}}\n\
         jobs: [{{name: ring, traffic: {{kind: ring_all_reduce, bytes: 1600000}}, hosts: [0, 4, 1, 5, 2, 6, 3, 7], iterations: 30}}]\n\
         events: [{{at_us: 500, what: link_down, port: leaf0/5, reroute_us: 100}}, {{at_us: 4000, what: link_up, port: leaf0/5, reroute_us: 100}}]\n"
    ));
    let port = sim.topology().port_named("leaf0/5").unwrap() as usize;
    sim.run_until(700 * US);
    let down = sim.sample().ports[port];
    sim.run_until(4 * MS);
    assert_eq!(sim.sample().ports[port].tx_packets, down.tx_packets);
    assert_eq!(down.link_downs, 1);
    assert!(sim.run_jobs(500 * MS));
    assert!(sim.sample().ports[port].tx_packets > down.tx_packets);
    check_conservation(&sim);
    assert_eq!(sim.totals().goodput, payload(&sim));
}

#[test]
fn a_straggler_is_late_at_its_start_and_the_others_at_their_end() {
    let mut sim = build(&format!(
        "{SMALL}jobs: [{{name: ring, traffic: {{kind: ring_all_reduce, bytes: 800000}}, hosts: [0-7], iterations: 2}}]\n\
         events: [{{at_us: 0, what: straggler, job: ring, rank: 3, us: 500}}]\n"
    ));
    assert!(sim.run_jobs(100 * MS));
    let last = &sim.jobs()[0].iterations[1];
    for (rank, (start, end)) in last.ranks.iter().enumerate() {
        assert_eq!(*start == last.start + 500 * US, rank == 3);
        assert!(*end > last.start + 500 * US);
    }
}

#[test]
fn a_thousand_hosts_run_on_every_shape() {
    for (shape, hosts) in [
        ("{kind: fat_tree, k: 16}", 1024),
        (
            "{kind: rail, groups: 4, servers_per_group: 32, rails: 8, spines: 16}",
            1024,
        ),
        (
            "{kind: leaf_spine, leaves: 32, spines: 16, hosts_per_leaf: 32}",
            1024,
        ),
    ] {
        let mut sim = build(&format!(
            "topology: {{shape: {shape}}}\njobs: [{{name: half, traffic: {{kind: reduce_scatter, bytes: 40960}}, hosts: [0-{}]}}]\nlimit_ms: 100\n",
            hosts / 8 - 1
        ));
        assert_eq!(sim.topology().hosts, hosts);
        assert!(sim.run_jobs(100 * MS), "{shape}");
        check_conservation(&sim);
    }
}

fn traffic() -> impl Strategy<Value = String> {
    (0u8..8, 1u64..400_000, 1u32..4).prop_map(|(kind, bytes, parts)| match kind {
        0 => format!("{{kind: ring_all_reduce, bytes: {bytes}, channels: {parts}}}"),
        1 => format!("{{kind: tree_all_reduce, bytes: {bytes}, chunks: {parts}}}"),
        2 => format!("{{kind: all_gather, bytes: {bytes}, channels: {parts}}}"),
        3 => format!("{{kind: reduce_scatter, bytes: {bytes}}}"),
        4 => format!("{{kind: all_to_all, bytes: {bytes}}}"),
        5 => format!("{{kind: pipeline, bytes: {bytes}, micro_batches: {parts}}}"),
        6 => format!("{{kind: incast, bytes: {bytes}}}"),
        _ => format!("{{kind: checkpoint, bytes: {bytes}, storage: {parts}}}"),
    })
}

fn shape() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("{kind: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 4}"),
        Just("{kind: fat_tree, k: 4}"),
        Just("{kind: rail, groups: 2, servers_per_group: 2, rails: 4, spines: 2}"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any traffic on any fabric, with any of the faults, comes to its end, and every packet is accounted for.
    #[test]
    fn any_small_scenario_ends_and_conserves(
        shape in shape(), a in traffic(), b in traffic(), seed in any::<u64>(), loss in 0.0f64..0.05,
        flap in any::<bool>(), high in any::<bool>(), ack_every in 1u32..5, bytes in 400_000u64..2_000_000,
        window in prop_oneof![Just(0u64), 20_000u64..200_000], slow in any::<bool>(), stop in 1u64..400,
    ) {
        let class = if high { "high" } else { "data" };
        let mut text = format!(
            "topology: {{shape: {shape}}}\nconfig: {{seed: {seed}, buffer: {{bytes: {bytes}}}, \
             transport: {{rto_us: 400, ack_class: {class}, cnp_on_ack: {flap}, ack_every: {ack_every}, window: {window}}}}}\n\
             jobs: [{{name: a, traffic: {a}, hosts: [0-7], iterations: 2, jitter_us: 2}}, {{name: b, traffic: {b}, hosts: [3, 1, 5], start_us: 7}}]\n\
             events:\n  - {{at_us: 3, what: loss, port: leaf0/1, share: {loss}}}\n"
        );
        if flap {
            text.push_str("  - {at_us: 20, what: link_down, port: spine0/1, reroute_us: 15}\n  - {at_us: 300, what: link_up, port: spine0/1, reroute_us: 15}\n");
        }
        if slow {
            text.push_str("  - {at_us: 10, what: slow_receiver, host: 1, gbps: 5}\n");
        }
        let mut sim = build(&text);
        sim.run_until(stop * US);
        check_conservation(&sim);
        prop_assert!(sim.run_jobs(2000 * MS), "{}", text);
        check_conservation(&sim);
        prop_assert_eq!(sim.totals().goodput, payload(&sim));
        // A link that goes down forgets who was paused, so only then may a headroom run over.
        prop_assert!(flap || sim.totals().lost_buffer == 0, "{}", text);
    }
}
