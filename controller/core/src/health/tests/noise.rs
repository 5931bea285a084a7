//! What is no fault, and arbitrary sequences.

use super::*;

#[test]
fn a_fleet_at_work_gives_no_verdict() {
    let mut world = World::new();
    // A linear congruential generator (Knuth's MMIX).
    let mut state = 7u64;
    let mut chance = |one_in: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).is_multiple_of(one_in)
    };
    for second in 0..7200u64 {
        world.clear();
        for n in 0..HOSTS {
            let (name, port) = (format!("h{n}"), format!("p{n}"));
            let noise = [
                ("eth0", Signal::SymbolErrors, 3, 20),
                ("eth0", Signal::FecUncorrected, 1, 900),
                ("eth0", Signal::RxErrors, 1, 120),
                ("eth0", Signal::PcieErrors, 1, 1800),
                ("mlx5_0/1", Signal::IcrcErrors, 1, 1800),
                ("mlx5_0/1", Signal::QpErrors, 40, 600),
                ("0000:1a:00.0", Signal::PcieReplays, 2, 40),
                ("0000:1a:00.0", Signal::NvlinkErrors, 90, 2),
                ("0000:1a:00.0", Signal::ClockReasons, 0x24, 5),
                ("0000:3b:00.0", Signal::ClockReasons, 0x4c, 60),
                ("0000:3b:00.0", Signal::PcieGeneration, 1, 30),
                ("0000:3b:00.0", Signal::GpuUtilisation, 0, 40),
            ];
            for (subject, signal, value, one_in) in noise {
                if chance(one_in) {
                    world.set(&name, subject, signal, value);
                }
            }
            if chance(50) {
                world.set(&name, "eth0", Signal::LinkUp, None);
            }
            if chance(7000) {
                world.set("leaf", &port, Signal::LinkDowns, 1);
            }
            if chance(20_000) {
                world.lose(&name);
                world.connect(&id(&name));
            }
        }
        let found = world.second();
        assert!(found.is_empty(), "{second}: {found:#?}");
    }
}

#[test]
fn optical_noise_within_the_limit_is_no_fault() {
    let mut world = World::new();
    // 400 Gbit/s at 1e-12 tolerates 0.4 a second.
    for k in 0..3000u64 {
        world.set("leaf", "p1", Signal::SymbolErrors, u64::from(k % 4 == 0));
        world.set(
            "leaf",
            "p2",
            Signal::SymbolErrors,
            if k % 100 == 0 { 25 } else { 0 },
        );
        assert!(world.second().is_empty(), "{k}");
    }
    world.set("leaf", "p1", Signal::SymbolErrors, 4);
    assert_eq!(one(&world.run(13)).0, Class::LinkErrors);
}

#[test]
fn an_agent_that_samples_ten_times_a_second_finds_the_same() {
    let mut world = World::new();
    let node = id("h2");
    world.set("h2", "0000:3b:00.0", Signal::RowRemapFailure, 1);
    let columns = world.columns[&node].clone();
    let values: Vec<Option<u64>> = columns
        .iter()
        .enumerate()
        .map(|(n, c)| {
            world
                .values
                .get(&(node.clone(), n))
                .copied()
                .unwrap_or(Some(healthy(c)))
        })
        .collect();
    let mut seen = Vec::new();
    for _ in 0..30 {
        world.now += SECOND / 10;
        let tenth = Some(SECOND / 10);
        world.health.sampled(&node, &values, tenth, None, world.now);
        seen.push(world.health.verdicts(&world.topology, world.now).len());
    }
    assert!(
        seen[..10].iter().all(|n| *n == 0),
        "not within a second: {seen:?}"
    );
    assert_eq!(seen[29], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in whatever order: no panic, bounds hold, the same again gives the same, and
    /// silence ends it.
    #[test]
    fn any_sequence_is_survived(steps in proptest::collection::vec(
        (0usize..8, 0usize..HOSTS, any::<u64>(), 0u64..20_000), 0..120)) {
        let tell = || {
            let mut world = World::new();
            let mut told = Vec::new();
            for (what, host, value, millis) in &steps {
                let pick = usize::from(value.to_le_bytes()[0]);
                let name = format!("h{host}");
                world.now += Duration::from_millis(*millis);
                let columns = world.columns[&id(&name)].clone();
                match what {
                    0 => world.health.lost(&id(&name)),
                    1 => world.connect(&id(&name)),
                    2 => world.health.forget(&id(&name)),
                    3 => {
                        let sign = events::SIGNS[pick % events::SIGNS.len()];
                        let subject = ["eth0", "mlx5_0", "mlx5_0/1", "0000:1a:00.0", ""];
                        let subject = subject[pick % 5];
                        world.event(&name, sign.event, subject, Severity::Warning);
                    }
                    4 => {
                        let topology = &world.topology;
                        let half = columns[..columns.len() / 2].into();
                        world.health.declared(&id(&name), half, topology);
                    }
                    _ => {
                        let wild = |n: usize| match (value >> (n % 60)) & 3 {
                            0 => None,
                            1 => Some(0),
                            2 => Some(*value),
                            _ => Some(value >> (n % 64)),
                        };
                        let values: Vec<_> = (0..columns.len() + 3).map(wild).collect();
                        let elapsed = (*what > 5).then_some(Duration::from_millis(*millis));
                        world.health.sampled(&id(&name), &values, elapsed, None, world.now);
                    }
                }
                let verdicts = world.health.verdicts(&world.topology, world.now);
                for verdict in &verdicts {
                    prop_assert!((0.0..1.0).contains(&verdict.confidence));
                    prop_assert!(!verdict.evidence.is_empty() && verdict.evidence.len() <= 12);
                }
                told.push(verdicts);
            }
            world.now += 2 * Duration::from_secs(86_400);
            prop_assert!(world.health.verdicts(&world.topology, world.now).is_empty());
            Ok(told)
        };
        prop_assert_eq!(tell()?, tell()?);
    }
}
