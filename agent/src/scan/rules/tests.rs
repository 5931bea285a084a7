use super::*;
use crate::source::Reading;

#[test]
fn a_healthy_node_gives_no_line() {
    let mut gathered = Gathered::default();
    for rule in RULES {
        let good = u64::from((rule.bad)(0));
        gathered.put(rule.kind, "x", rule.signal, None, Reading::wide(good));
    }
    assert!(findings(&gathered).is_empty());
}

#[test]
fn links_of_a_card_without_a_bridge_are_none() {
    let mut gathered = Gathered::default();
    for link in 0..12 {
        let reading = Reading::wide(0);
        gathered.put(
            Entity::Gpu,
            "0000:18:00.0",
            Signal::NvlinkUp,
            Some(link),
            reading,
        );
    }
    assert!(findings(&gathered).is_empty());
}

#[test]
fn links_that_are_down_are_one_line_that_names_them() {
    let mut gathered = Gathered::default();
    for link in [0, 3, 17] {
        let reading = Reading::wide(u64::from(link == 0));
        gathered.put(
            Entity::Gpu,
            "0000:18:00.0",
            Signal::NvlinkUp,
            Some(link),
            reading,
        );
    }
    let found = findings(&gathered);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].finding, "NVLink is not active (link 3, 17)");
    assert!(!found[0].action.is_empty());
}

fn gpu(values: &[(Signal, u64)]) -> Vec<(Level, String)> {
    let mut gathered = Gathered::default();
    for (signal, value) in values {
        let reading = Reading::wide(*value);
        gathered.put(Entity::Gpu, "0000:18:00.0", *signal, None, reading);
    }
    let lines = findings(&gathered).into_iter();
    lines.map(|f| (f.level, f.finding)).collect()
}

#[test]
fn clocks_are_judged_by_what_holds_them_back() {
    let said = |bits| {
        let lines = gpu(&[(Signal::ClockReasons, bits)]);
        let level = lines.iter().map(|(level, _)| *level).max();
        (lines.len(), level)
    };
    assert_eq!(
        said(0x1 | 0x2 | 0x10),
        (0, None),
        "idle, set by hand, sync boost"
    );
    assert_eq!(said(SW_POWER_CAP), (1, Some(Level::Ok)));
    for bits in [
        HW_SLOWDOWN,
        SW_THERMAL,
        HW_SLOWDOWN | HW_THERMAL,
        HW_SLOWDOWN | POWER_BRAKE,
    ] {
        assert_eq!(said(bits), (1, Some(Level::Warning)), "{bits:#x}");
    }
    let all = HW_SLOWDOWN | HW_THERMAL | POWER_BRAKE | SW_POWER_CAP;
    assert_eq!(said(all), (3, Some(Level::Warning)));
}

#[test]
fn a_link_below_its_most_is_told_unless_the_gpu_sleeps() {
    let narrow = [(Signal::PcieWidth, 8), (Signal::PcieMaxWidth, 16)];
    let words = "PCIe runs on 8 of 16 lanes".to_owned();
    assert_eq!(gpu(&narrow), [(Level::Warning, words)]);
    assert_eq!(gpu(&narrow[..1]), [], "the most is not known");
    let slow = |busy| {
        let slow = [(Signal::PcieGeneration, 1), (Signal::PcieMaxGeneration, 5)];
        gpu(&[slow[0], slow[1], (Signal::GpuUtilisation, busy)])[0].0
    };
    assert_eq!((slow(0), slow(50)), (Level::Ok, Level::Warning));
    // A NIC does not sleep.
    let mut gathered = Gathered::default();
    for (signal, value) in [(Signal::PcieGeneration, 3), (Signal::PcieMaxGeneration, 5)] {
        gathered.put(Entity::Port, "eth0", signal, None, Reading::wide(value));
    }
    assert_eq!(findings(&gathered)[0].level, Level::Warning);
}

#[test]
fn temperatures_are_held_against_the_device_s_own_limits() {
    let hot = |value| {
        gpu(&[
            (Signal::GpuTemperature, value),
            (Signal::GpuTemperatureLimit, 92_000),
        ])
    };
    assert_eq!(hot(91_999), []);
    let words = "is at 92 °C, its own limit is 92 °C".to_owned();
    assert_eq!(hot(92_000), [(Level::Warning, words)]);
    assert_eq!(gpu(&[(Signal::GpuTemperature, 200_000)]), []);
}

#[test]
fn a_link_below_what_is_expected_is_told() {
    let mut gathered = Gathered::default();
    let values = [
        (Signal::RateBps, 200_000_000_000),
        (Signal::RateExpectedBps, 400_000_000_000),
        (Signal::Lanes, 4),
        (Signal::LanesExpected, 4),
    ];
    for (signal, value) in values {
        gathered.put(Entity::Rdma, "mlx5_0/1", signal, None, Reading::wide(value));
    }
    let found = findings(&gathered);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].subject, "verbs port mlx5_0/1");
    assert_eq!(found[0].finding, "runs at 200 Gbit/s of 400 Gbit/s");
}

#[test]
fn what_the_driver_asks_for_is_told() {
    let asked = |action| {
        gpu(&[(Signal::RecoveryAction, action)])
            .first()
            .map(|f| f.0)
    };
    let critical = Some(Level::Critical);
    assert_eq!(
        [0, 1, 2, 3, 4].map(asked),
        [None, critical, critical, Some(Level::Warning), critical]
    );
}

#[test]
fn every_rule_is_of_a_signal_that_its_entity_has() {
    for rule in RULES {
        assert!(
            rule.signal.entities().contains(&rule.kind),
            "{}",
            rule.finding
        );
    }
    for pair in PAIRS {
        for kind in pair.kinds {
            assert!(pair.value.entities().contains(kind), "{:?}", pair.value);
            assert!(pair.limit.entities().contains(kind), "{:?}", pair.limit);
        }
    }
}
