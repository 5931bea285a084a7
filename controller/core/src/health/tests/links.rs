//! Cables: both ends, flaps, reboots, planned downs, rates.

use super::*;

#[test]
fn both_ends_of_a_cable_are_one_verdict_about_the_switch_port() {
    let mut world = World::new();
    world.set("h1", "eth0", Signal::LinkUp, 0);
    world.set("h1", "mlx5_0/1", Signal::LinkUp, 0);
    world.set("leaf", "p1", Signal::LinkUp, 0);
    let (after, found) = world.until_found(20);
    assert_eq!(after, 5);
    let down = (Class::LinkDown, "leaf:p1".to_owned(), Severity::Critical);
    assert_eq!(one(&found), down);
    assert_eq!(found[0].links, [port("leaf:p1"), port("h1:eth0")]);
    assert!(found[0].confidence > 0.95);
    assert_eq!(one(&world.run(60)), down, "and stays one");
}

#[test]
fn a_link_that_goes_up_and_down_is_a_flap_and_nothing_else() {
    let mut world = World::new();
    let mut found = Vec::new();
    for k in 0..40u64 {
        for (node, name) in [("h1", "eth0"), ("h1", "mlx5_0/1"), ("leaf", "p1")] {
            world.set(node, name, Signal::LinkUp, u64::from(k % 10 != 3));
            world.set(node, name, Signal::LinkDowns, u64::from(k % 10 == 3));
        }
        found = world.second();
        assert!(
            found.is_empty() || k >= 13,
            "not before the second down: {found:?}"
        );
    }
    let flap = (Class::LinkFlap, "leaf:p1".to_owned(), Severity::Warning);
    assert_eq!(one(&found), flap);
    world.clear();
    assert_eq!(one(&world.run(280)), flap);
    assert!(world.run(40).is_empty());
}

#[test]
fn two_downs_in_one_sample_are_a_flap_though_the_gauge_says_up() {
    let mut world = World::new();
    world.set("leaf", "p4", Signal::LinkDowns, 2);
    assert_eq!(one(&world.second()).0, Class::LinkFlap);
    let mut world = World::new();
    world.set("leaf", "p4", Signal::LinkDowns, 1);
    assert!(world.second().is_empty(), "one down is none");
}

#[test]
fn downs_that_only_events_saw_are_a_flap() {
    let mut world = World::new();
    for _ in 0..3 {
        assert!(world.run(100).is_empty());
        world.event("h1", "link_down", "eth0", Severity::Warning);
        world.event("h1", "link_up", "eth0", Severity::Info);
    }
    assert_eq!(one(&world.second()).0, Class::LinkFlap);
}

#[test]
fn a_rack_that_reboots_and_a_port_that_was_never_up_are_no_fault() {
    let mut world = World::new();
    let name = id("h9");
    let columns = world.columns[&id("h0")].clone();
    world.columns.insert(name.clone(), columns);
    world.set("h9", "mlx5_0/1", Signal::LinkUp, 0);
    world.connect(&name);
    let hosts: Vec<String> = (0..3).map(|n| format!("h{n}")).collect();
    for (n, host) in hosts.iter().enumerate() {
        world.lose(host);
        world.set("leaf", &format!("p{n}"), Signal::LinkUp, 0);
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 1);
    }
    let mut story = Vec::new();
    story.extend(world.second());
    for n in 0..3 {
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 0);
    }
    for _ in 0..90 {
        story.extend(world.second());
    }
    for (n, host) in hosts.iter().enumerate() {
        world.connect(&id(host));
        world.set(host, "eth0", Signal::LinkUp, 0);
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 1);
    }
    story.extend(world.second());
    for (n, host) in hosts.iter().enumerate() {
        world.set(host, "eth0", Signal::LinkUp, 1);
        world.set("leaf", &format!("p{n}"), Signal::LinkUp, 1);
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 1);
    }
    story.extend(world.second());
    for n in 0..3 {
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 0);
    }
    for _ in 0..400 {
        story.extend(world.second());
    }
    assert!(story.is_empty(), "{story:?}");
    world.set("h9", "eth0", Signal::LinkUp, 0);
    assert_eq!(one(&world.run(8)).1, "h9:eth0", "that one was up before");
}

#[test]
fn a_host_that_dies_silently_takes_its_links_along() {
    let mut world = World::new();
    world.silent.insert(id("h3"));
    world.set("leaf", "p3", Signal::LinkUp, 0);
    for _ in 0..60 {
        assert!(world.second().is_empty());
    }
}

#[test]
fn a_port_that_somebody_took_down_is_no_fault_at_either_end() {
    let mut world = World::new();
    for (node, name) in [("h1", "eth0"), ("h1", "mlx5_0/1"), ("leaf", "p1")] {
        world.set(node, name, Signal::LinkUp, 0);
        world.set(node, name, Signal::LinkDowns, 0);
    }
    world.set("leaf", "p1", Signal::AdminUp, 0);
    for _ in 0..60 {
        assert!(world.second().is_empty());
    }
    world.set("leaf", "p1", Signal::AdminUp, 1);
    assert_eq!(one(&world.second()).0, Class::LinkDown, "it stays down");
}

#[test]
fn a_link_that_trained_low_from_the_start_is_seen_beside_its_like() {
    let mut world = World::new();
    world.clear();
    let name = id("h9");
    let columns = world.columns[&id("h0")].clone();
    world.columns.insert(name.clone(), columns);
    world.set("h9", "mlx5_0/1", Signal::RateBps, RATE / 2);
    world.connect(&name);
    assert!(world.run(15).is_empty());
    let found = world.run(15);
    assert_eq!(one(&found).1, "h9:mlx5_0/1");
    assert!(
        found[0].evidence[0].value.contains("200 Gbit/s"),
        "{found:?}"
    );
    assert!(
        found[0].evidence[0].value.contains("400 Gbit/s"),
        "{found:?}"
    );
}

#[test]
fn a_rate_below_the_plan_is_seen_at_once() {
    let mut plan = plan();
    plan.cables[2].rate_bps = Some(2.0 * RATE as f64);
    let mut world = World::new();
    world.topology = Topology::new(plan);
    world.connect(&id("leaf"));
    let found = world.run(30);
    assert_eq!(
        one(&found),
        (Class::DegradedLink, "leaf:p2".into(), Severity::Warning)
    );
}

#[test]
fn ports_that_no_plan_names_are_left_alone() {
    let mut world = World::new();
    world.topology = Topology::new(Plan {
        cables: plan()
            .cables
            .drain(1..)
            .chain([Cable {
                a: port("h0:eth7"),
                b: port("leaf:p0"),
                rate_bps: None,
            }])
            .collect(),
        ..plan()
    });
    let mut columns = world.columns[&id("h0")].to_vec();
    columns.push(column(Entity::Port, "eth7", Signal::LinkUp));
    world.columns.insert(id("h0"), columns.into());
    world.connect(&id("h0"));
    assert!(world.run(20).is_empty());
    world.set("h0", "eth0", Signal::LinkUp, 0);
    world.set("h0", "mlx5_0/1", Signal::LinkUp, 0);
    assert!(world.run(60).is_empty(), "a port for management");
}

#[test]
fn a_host_that_samples_seldom_and_dies_takes_its_link_along() {
    let mut world = World::new();
    world.silent.insert(id("h3"));
    let columns = world.columns[&id("h3")].clone();
    let values: Vec<Option<u64>> = columns.iter().map(|c| Some(healthy(c))).collect();
    let (node, ten) = (id("h3"), Some(10 * SECOND));
    world.health.sampled(&node, &values, ten, None, world.now);
    world.set("leaf", "p3", Signal::LinkUp, 0);
    for _ in 0..60 {
        assert!(world.second().is_empty());
    }
}

#[test]
fn a_plan_that_names_verbs_devices_finds_its_cables() {
    let mut world = World::new();
    let mut plan = plan();
    plan.cables[1].a = port("h1:mlx5_0");
    world.topology = Topology::new(plan);
    world.set("h1", "eth0", Signal::FecUncorrected, 9);
    let nic = (Class::LinkErrors, "h1:eth0".to_owned(), Severity::Warning);
    assert_eq!(one(&world.run(4)), nic, "no cable has that name");
    world.set("h1", "mlx5_0/1", Signal::SymbolErrors, 90);
    let (class, entity, _) = one(&world.run(8));
    assert_eq!((class, entity.as_str()), (Class::LinkErrors, "leaf:p1"));
}
