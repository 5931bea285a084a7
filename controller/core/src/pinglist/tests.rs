use super::*;
use proptest::prelude::*;

fn endpoint(leaf: usize, host: usize, rail: usize) -> Placed {
    let octet = |n: usize| u8::try_from(n).unwrap();
    Placed {
        endpoint: Endpoint {
            node: NodeId::new(&format!("h{leaf}-{host}")),
            port: format!("eth{rail}").into(),
            way: Way::Udp {
                address: IpAddr::from([10, octet(leaf), octet(host), octet(rail)]),
                port: 9744,
            },
        },
        leaf: Some(NodeId::new(&format!("leaf{leaf}-{rail}"))),
        rate_bps: None,
    }
}

fn fabric(leaves: usize, hosts: usize, rails: usize) -> Vec<Placed> {
    let host = |leaf, host| (0..rails).map(move |rail| endpoint(leaf, host, rail));
    let leaf = |leaf| (0..hosts).flat_map(move |h| host(leaf, h));
    (0..leaves).flat_map(leaf).collect()
}

fn plan(endpoints: &[Placed]) -> Plan {
    make(endpoints, |_| Some(4), &Settings::default())
}

fn leaf_of(endpoints: &[Placed]) -> BTreeMap<(NodeId, Arc<str>), Option<NodeId>> {
    let key = |p: &Placed| (p.endpoint.node.clone(), p.endpoint.port.clone());
    endpoints.iter().map(|p| (key(p), p.leaf.clone())).collect()
}

/// Targets as text, to be counted and compared.
fn edges(plan: &Plan) -> BTreeSet<String> {
    let of = |(node, list): (&NodeId, &Pinglist)| -> Vec<String> {
        let edge = |t: &Target| format!("{node}:{}>{}:{}", t.from, t.to.node, t.to.port);
        list.targets.iter().map(edge).collect()
    };
    plan.lists.iter().flat_map(of).collect()
}

#[test]
fn every_pair_of_leaves_has_two_probers_and_every_host_its_neighbours() {
    let endpoints = fabric(6, 8, 1);
    let (plan, leaves) = (plan(&endpoints), leaf_of(&endpoints));
    assert_eq!(
        (plan.pairs, plan.pairs_uncovered, plan.left_out),
        (30, 0, 0)
    );
    let mut pairs: BTreeMap<_, BTreeSet<&NodeId>> = BTreeMap::new();
    for (node, list) in &plan.lists {
        let leaf = |node: &NodeId, port: &Arc<str>| leaves[&(node.clone(), port.clone())].clone();
        let is_near = |t: &&Target| leaf(node, &t.from) == leaf(&t.to.node, &t.to.port);
        assert_eq!(list.targets.iter().filter(is_near).count(), SAME_LEAF);
        assert!(
            list.targets[..SAME_LEAF].iter().all(|t| is_near(&t)),
            "same leaf first"
        );
        for target in list.targets.iter().filter(|t| !is_near(t)) {
            let pair = (
                leaf(node, &target.from),
                leaf(&target.to.node, &target.to.port),
            );
            pairs.entry(pair).or_default().insert(node);
        }
    }
    assert_eq!(pairs.len(), 30);
    assert!(pairs.values().all(|probers| probers.len() == PROBERS));
}

#[test]
fn who_probes_is_who_is_answered() {
    let endpoints = fabric(3, 4, 2);
    let plan = plan(&endpoints);
    let address: BTreeMap<(NodeId, Arc<str>), IpAddr> = endpoints
        .iter()
        .map(|p| {
            (
                (p.endpoint.node.clone(), p.endpoint.port.clone()),
                p.endpoint.way.source(),
            )
        })
        .collect();
    let mut answered: BTreeMap<NodeId, BTreeSet<IpAddr>> = BTreeMap::new();
    for (node, list) in &plan.lists {
        for target in &list.targets {
            let from = address[&(node.clone(), target.from.clone())];
            answered
                .entry(target.to.node.clone())
                .or_default()
                .insert(from);
        }
    }
    for (node, list) in &plan.lists {
        assert_eq!(Some(&list.probers), answered.get(node));
    }
}

#[test]
fn a_node_that_goes_changes_little() {
    let endpoints = fabric(10, 16, 1);
    let before = edges(&plan(&endpoints));
    let gone = NodeId::new("h4-7");
    let fewer: Vec<Placed> = endpoints
        .iter()
        .filter(|p| p.endpoint.node != gone)
        .cloned()
        .collect();
    let after = edges(&plan(&fewer));
    let with_it = before.iter().filter(|e| e.contains("h4-7:")).count();
    let changed = before.symmetric_difference(&after).count();
    // Its own edges go; its neighbours close the ring, and others take over its pairs.
    assert!(
        changed <= 3 * with_it,
        "{changed} of {} for {with_it}",
        before.len()
    );
}

#[test]
fn an_address_of_two_nodes_is_nobody_s_and_a_place_is_preferred() {
    let mut endpoints = fabric(2, 2, 1);
    let bridge = |node: &str, address: [u8; 4]| Placed {
        endpoint: Endpoint {
            node: NodeId::new(node),
            port: "docker0".into(),
            way: Way::Udp {
                address: address.into(),
                port: 9744,
            },
        },
        leaf: None,
        rate_bps: None,
    };
    endpoints.push(bridge("h0-0", [172, 17, 0, 1]));
    endpoints.push(bridge("lost1", [172, 17, 0, 1]));
    endpoints.push(bridge("lost2", [192, 168, 0, 9]));
    endpoints.push(bridge("lost3", [192, 168, 0, 7]));
    let plan = plan(&endpoints);
    assert_eq!(
        plan.left_out, 1,
        "lost1; the bridge of h0-0 has a better one beside it"
    );
    assert!(
        edges(&plan)
            .iter()
            .all(|e| !e.contains("docker0") || e.contains("lost"))
    );
    let alone = &plan.lists[&NodeId::new("lost2")];
    assert_eq!(alone.targets.len(), 1);
    assert_eq!(alone.targets[0].paths, PATHS_UNKNOWN);
}

#[test]
fn a_slow_link_gets_a_thousandth_with_the_replies_and_the_probes_of_others() {
    let mut endpoints = fabric(2, 20, 1);
    let free = plan(&endpoints);
    let rates = |plan: &Plan| plan.lists.values().map(|l| l.packets_per_s).max();
    assert!(rates(&free) > Some(5));
    for placed in &mut endpoints {
        placed.rate_bps = Some(90e6);
    }
    let slow = rates(&plan(&endpoints)).unwrap();
    assert_eq!(slow, 5);
    // With twice as many that come, and the answers to both.
    assert!(f64::from(slow) * 150.0 * 8.0 * 3.0 * 5.0 <= 90e6 / 1000.0);
}

#[test]
fn kinds_do_not_mix() {
    let mut endpoints = fabric(1, 2, 1);
    for n in 0..2u8 {
        let mut ud = endpoint(0, usize::from(n), 1);
        ud.leaf = endpoints[0].leaf.clone();
        ud.endpoint.way = Way::Ud {
            gid: [n; 16],
            qpn: 17,
            qkey: 3,
        };
        endpoints.push(ud);
    }
    for list in plan(&endpoints).lists.values() {
        let kinds: Vec<u8> = list.targets.iter().map(|t| t.to.way.kind()).collect();
        assert_eq!(kinds, [0, 2]);
        assert_eq!(list.probers.len(), 2);
    }
}

#[test]
fn more_equal_paths_take_more_source_ports() {
    let of = |group| paths([Some(group), Some(1)]);
    assert_eq!((of(1), of(2), of(4), of(8)), (2, 4, 11, 16));
    assert_eq!(paths([None, None]), PATHS_UNKNOWN);
    // 11 flows of each of two probers: 4 (3/4)^22 is below a hundredth.
    assert!(4.0 * 0.75f64.powi(22) < MISSED);
}

#[test]
fn a_fabric_that_is_too_large_for_its_limits_says_what_it_does_not_cover() {
    let plan = plan(&fabric(40, 2, 1));
    assert_eq!(plan.pairs, 40 * 39);
    assert_eq!(plan.pairs_uncovered, 40 * 39 - 40 * 2 * ACROSS);
}

proptest! {
    #[test]
    fn what_a_node_is_told_is_bounded_and_the_same_again(
        leaves in 1usize..12, hosts in 1usize..12, rails in 1usize..12, seed: u64, group in prop::option::of(0usize..200),
    ) {
        let endpoints = fabric(leaves, hosts, rails);
        let settings = Settings { seed, ..Settings::default() };
        let plan = make(&endpoints, |_| group, &settings);
        let mut shuffled = endpoints.clone();
        shuffled.reverse();
        prop_assert_eq!(&make(&shuffled, |_| group, &settings), &plan);
        for (node, list) in &plan.lists {
            prop_assert!(list.targets.len() <= ENDPOINTS_MAX * (SAME_LEAF + ACROSS));
            let paths: u32 = list.targets.iter().map(|t| u32::from(t.paths)).sum();
            prop_assert!(paths <= 1024, "what an agent takes: {}", paths);
            prop_assert!(list.probers.len() <= ENDPOINTS_MAX * (SAME_LEAF + ACROSS_IN));
            prop_assert!(list.packets_per_s <= settings.packets_per_s);
            prop_assert!(list.targets.iter().all(|t| t.to.node != *node));
            let twice: BTreeSet<String> = list.targets.iter().map(|t| format!("{} {:?}", t.from, t.to)).collect();
            prop_assert_eq!(twice.len(), list.targets.len());
        }
    }
}
