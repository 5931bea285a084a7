//! NICs and GPUs: each rule, events beside counters, what many have at once.

use super::*;

#[test]
fn each_rule_fires_after_n_of_m_on_its_device_and_clears() {
    for rule in RULES
        .iter()
        .filter(|r| !matches!(r.condition, Condition::Falls(_)))
    {
        for entity in rule.entities {
            let mut world = World::new();
            let subject = match entity {
                Entity::Port => "eth0",
                Entity::Rdma => "mlx5_0/1",
                Entity::Gpu => "0000:3b:00.0",
                Entity::Node | Entity::Probe => unreachable!(),
            };
            world.set("h2", subject, rule.signal, bad(rule));
            let held_back = usize::from(*entity == Entity::Rdma) * 2;
            let (after, found) = world.until_found(60);
            let least = match rule.condition {
                Condition::Counts { budget, .. } => {
                    let budget = budget(&Settings::default());
                    let enough = |n: &u16| f32::from(*n) * budget.each_s >= budget.burst;
                    (1u16..60).find(enough).unwrap().into()
                }
                Condition::Below { .. }
                | Condition::Above(_)
                | Condition::Bits(_)
                | Condition::Falls(_) => rule.n_of_m.0 as usize,
            };
            assert!(
                (least..=least + held_back + 1).contains(&after),
                "{} after {after} of {least}",
                rule.finding
            );
            let (class, entity, _) = one(&found);
            assert_eq!(class, rule.class, "{}", rule.finding);
            let cabled = *subject == *"eth0" && rules::is_of_cable(rule.class);
            let whole = if cabled {
                "leaf:p2".to_owned()
            } else {
                format!("h2:{subject}")
            };
            assert_eq!(entity, whole);
            assert_eq!(found[0].action, rule.action);
            world.clear();
            let stands = world.run(usize::from(rule.hold_s) - 2);
            assert_eq!(stands.len(), 1, "{} still stands", rule.finding);
            let found = world.run(40);
            assert!(found.is_empty(), "{}: {found:?}", rule.finding);
        }
    }
}

#[test]
fn a_bad_sample_now_and_then_is_no_fault() {
    for rule in RULES {
        if rule.n_of_m == (1, 1) {
            continue;
        }
        let mut world = World::new();
        let (n, m) = rule.n_of_m;
        let subject = match rule.entities[0] {
            Entity::Port => "eth0",
            Entity::Rdma => "mlx5_0/1",
            Entity::Gpu | Entity::Node | Entity::Probe => "0000:3b:00.0",
        };
        // One less than needed in each window: bad first, then good.
        for k in 0..200u32 {
            let is_bad = k % m < n - 1 && rule.signal != Signal::LinkUp;
            let good = healthy(&column(rule.entities[0], "", rule.signal));
            let value = if is_bad { bad(rule) } else { good };
            world.set("h2", subject, rule.signal, value);
            assert!(world.second().is_empty(), "{}", rule.finding);
        }
    }
}

#[test]
fn events_and_counters_of_one_gpu_are_one_incident() {
    let mut world = World::new();
    world.event("h0", "xid", "0000:3b:00.0", Severity::Critical);
    world.set("h0", "0000:3b:00.0", Signal::EccUncorrected, 1);
    world.set("h0", "0000:3b:00.0", Signal::RowRemapPending, 1);
    let found = world.run(3);
    let fault = (
        Class::GpuFault,
        "h0:0000:3b:00.0".to_owned(),
        Severity::Critical,
    );
    assert_eq!(one(&found), fault);
    assert_eq!(found[0].evidence.len(), 3);
    world.event("h0", "xid", "0000:1a:00.0", Severity::Critical);
    assert_eq!(world.second().len(), 2, "another GPU is another");
    world.event("h1", "xid", "0000:1a:00.0", Severity::Info);
    assert_eq!(world.second().len(), 2, "for people only");
}

#[test]
fn a_gpu_that_comes_back_is_well() {
    let mut world = World::new();
    world.event("h0", "gpu_lost", "0000:3b:00.0", Severity::Critical);
    assert_eq!(one(&world.run(7200)).0, Class::GpuFault);
    world.event("h0", "gpu_back", "0000:3b:00.0", Severity::Info);
    assert!(world.second().is_empty());
}

#[test]
fn events_and_counters_of_one_nic_are_one_incident() {
    let mut world = World::new();
    world.event("h0", "nic_health", "0000:5c:00.0", Severity::Critical);
    world.set("h0", "mlx5_0/1", Signal::QpErrors, 50);
    world.set("h0", "eth0", Signal::PcieErrors, 5);
    world.event("h0", "aer_uncorrected", "0000:5c:00.0", Severity::Critical);
    let found = world.run(14);
    assert_eq!(one(&found).1, "h0:0000:5c:00.0");
    assert_eq!(found[0].evidence.len(), 4, "{found:?}");
    world.event("h1", "aer_uncorrected", "0000:99:00.0", Severity::Critical);
    assert_eq!(world.second().len(), 1, "who knows what device that is");
}

#[test]
fn a_driver_and_a_kernel_that_tell_the_same_down_do_not_make_two() {
    let mut world = World::new();
    world.event("h1", "link_down", "mlx5_0/1", Severity::Warning);
    world.event("h1", "port_error", "mlx5_0/1", Severity::Warning);
    world.event("h1", "link_down", "eth0", Severity::Warning);
    for _ in 0..30 {
        assert!(world.second().is_empty());
    }
}

#[test]
fn what_its_slot_does_to_a_device_is_a_fault_only_where_few_have_it() {
    let mut world = World::new();
    for n in 0..3 {
        let verdicts = world.second();
        assert_eq!(verdicts.len(), n, "{verdicts:?}");
        let name = format!("h{n}");
        world.event(&name, "pcie_downgraded", "0000:5c:00.0", Severity::Warning);
    }
    assert!(world.second().is_empty());
}

#[test]
fn a_switch_that_is_gone_is_one_incident() {
    let mut world = World::new();
    world.health.forget(&id("leaf"));
    world.silent.insert(id("leaf"));
    for n in 0..HOSTS {
        world.set(&format!("h{n}"), "eth0", Signal::LinkUp, 0);
    }
    let found = world.run(10);
    assert_eq!(
        one(&found),
        (Class::LinkDown, "leaf".into(), Severity::Critical)
    );
    assert_eq!(found[0].links.len(), 2 * HOSTS);
}

#[test]
fn what_all_nodes_have_is_no_nic_fault() {
    let mut world = World::new();
    for n in 0..HOSTS {
        world.set(&format!("h{n}"), "mlx5_0/1", Signal::QpErrors, 50);
    }
    for _ in 0..60 {
        assert!(world.second().is_empty());
    }
}

#[test]
fn a_fault_that_stays_or_returns_becomes_critical() {
    let mut world = World::new();
    world.set("h0", "0000:3b:00.0", Signal::RowRemapPending, 1);
    assert_eq!(one(&world.run(10)).2, Severity::Warning);
    assert_eq!(one(&world.run(1800)).2, Severity::Critical);
    let mut world = World::new();
    for round in 0..4 {
        world.set("h0", "0000:3b:00.0", Signal::RowRemapPending, 1);
        let severity = one(&world.run(5)).2;
        assert_eq!(severity == Severity::Critical, round == 3, "{round}");
        world.clear();
        assert!(world.run(90).is_empty());
    }
}

#[test]
fn one_of_eight_gpus_with_half_the_lanes_is_seen_in_a_fleet_of_one_node() {
    let mut world = World::new();
    for name in world.columns.clone().into_keys() {
        world.health.forget(&name);
    }
    let names = (0..8).map(|n| format!("0000:{n}b:00.0"));
    let columns = names.map(|name| column(Entity::Gpu, &name, Signal::PcieWidth));
    world.columns = [(id("h0"), columns.collect())].into();
    world.connect(&id("h0"));
    world.set("h0", "0000:5b:00.0", Signal::PcieWidth, 8);
    let found = world.run(7);
    assert_eq!(one(&found).1, "h0:0000:5b:00.0");
    let value = &found[0].evidence[0].value;
    assert!(value.contains("16 lanes that like devices have"), "{value}");
}
