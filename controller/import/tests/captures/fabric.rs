//! Captures of fabrics and switches.

use super::{capture, count, document};
use weir_import::check::check;
use weir_import::collection::{Collection, Picture};
use weir_import::fabric::{Fabric, Role};
use weir_import::finding::{Finding, Kind};
use weir_import::format::{Document, Format, read};
use weir_import::graph::{Graph, Tier};
use weir_import::guid::Guid;
use weir_import::rails::rails;
use weir_wire::signal::Signal;

fn fabric(path: &str, expected: Format) -> Option<Fabric> {
    let Document::Fabric(fabric) = document(path, expected)? else {
        panic!("{path} is no fabric");
    };
    Some(fabric)
}

/// Hosts, switches, links, aggregation nodes.
fn sizes(fabric: &Fabric) -> [usize; 4] {
    [
        fabric.count(Role::Host),
        fabric.count(Role::Switch),
        fabric.links.len(),
        fabric.aggregation_nodes,
    ]
}

fn tiers(fabric: &Fabric) -> [usize; 4] {
    let graph = Graph::new(fabric);
    [Tier::Leaf, Tier::Spine, Tier::Core, Tier::Apart].map(|t| graph.count(t))
}

#[test]
fn selene() {
    let Some(fabric) = fabric("fabric/ufm_sdk/selene.compute.txt", Format::Ibnetdiscover) else {
        return;
    };
    assert_eq!(sizes(&fabric), [469, 666, 12_186, 666]);
    assert_eq!(
        fabric
            .nodes
            .values()
            .map(|n| n.devices.len())
            .sum::<usize>(),
        666 + 3675
    );
    assert_eq!(tiers(&fabric), [203, 321, 142, 0]);
    assert!(fabric.links.iter().all(|l| l.rate_bps == Some(200e9)));
    let graph = Graph::new(&fabric);
    let rails = rails(&fabric, &graph);
    let sizes: Vec<(u32, usize, usize)> = rails
        .iter()
        .map(|r| (r.rail, r.leaves.len(), r.adapters))
        .collect();
    let compute = |rail| (rail, 25, 458);
    // Rail 1 has the storage and login nodes as well.
    let expected = [
        compute(0),
        (1, 27, 467),
        compute(2),
        compute(3),
        compute(6),
        compute(7),
        compute(8),
        compute(9),
    ];
    assert_eq!(sizes, expected);
    // Trailing blanks of a description, and a port's GUID without its leading zero.
    let login = &fabric.nodes["selene-login-01"].devices[0];
    assert_eq!(
        login.port_guids[&1],
        Guid::parse("0x0c42a10300303dbe").unwrap()
    );
    assert!(
        fabric.nodes["selene-cache-02"]
            .devices
            .iter()
            .any(|d| d.name == "mlx5_1")
    );
    let findings = check(&fabric);
    assert_eq!(
        (findings.len(), count(&findings, Kind::Asymmetry)),
        (30, 30),
        "{findings:#?}"
    );
    let text = &findings
        .iter()
        .find(|f| f.subject == "LG01-01")
        .unwrap()
        .text;
    assert!(
        text.contains("19 uplink(s)") && text.contains("1 instead of 2 to CSPINE1-08"),
        "{text}"
    );
}

#[test]
fn an_ndr_fabric_with_two_swapped_cables() {
    let path = "fabric/topograph/ibnetdiscover-example.out";
    let Some(fabric) = fabric(path, Format::Ibnetdiscover) else {
        return;
    };
    assert_eq!(sizes(&fabric), [194, 40, 1074, 40]);
    assert_eq!(tiers(&fabric), [31, 9, 0, 0]);
    let findings = check(&fabric);
    assert_eq!(count(&findings, Kind::Asymmetry), 12);
    assert_eq!(count(&findings, Kind::Nameless), 1);
    let swapped: Vec<&Finding> = findings
        .iter()
        .filter(|f| f.kind == Kind::RailMismatch)
        .collect();
    assert_eq!(findings.len(), 15);
    let ports: Vec<&str> = swapped.iter().map(|f| f.subject.as_str()).collect();
    assert_eq!(
        ports,
        ["b08-p1-dgx-08-c01:HCA-5/1", "b08-p1-dgx-08-c01:HCA-6/1"]
    );
    assert!(
        swapped
            .iter()
            .all(|f| f.text.contains("the two cables are swapped"))
    );
}

#[test]
fn a_small_fabric_with_loops() {
    let Some(fabric) = fabric("fabric/ufm_sdk/small_topo_file", Format::Ibnetdiscover) else {
        return;
    };
    assert_eq!(sizes(&fabric), [5, 2, 15, 1]);
    assert_eq!(count(&check(&fabric), Kind::SelfLoop), 2);
    let rates: Vec<f64> = fabric.links.iter().filter_map(|l| l.rate_bps).collect();
    let at = |bps: f64| rates.iter().filter(|r| **r == bps).count();
    assert_eq!(
        (at(100e9), at(56e9), at(40e9)),
        (2, 12, 1),
        "EDR, FDR, FDR10"
    );
}

#[test]
fn lists_of_ports() {
    let of = |name: &str| {
        let path = format!("fabric/treydock/ibnetdiscover/{name}");
        fabric(&path, Format::IbnetdiscoverList)
    };
    let (Some(one), Some(two), Some(three)) = (of("test.out"), of("test2.out"), of("test3.out"))
    else {
        return;
    };
    assert_eq!((sizes(&one), one.ports_down), ([3, 4, 4, 0], 2));
    assert_eq!((sizes(&two), two.ports_down), ([1, 5, 1, 1], 3));
    assert_eq!((sizes(&three), three.ports_down), ([0, 1, 0, 0], 1));
    assert!(
        two.nodes.contains_key("5FB0406-spine-IB02"),
        "blanks on both sides"
    );
    assert!(one.findings.is_empty() && two.findings.is_empty() && three.findings.is_empty());
}

#[test]
fn downgraded_links() {
    let path = "fabric/snippets/iblinkinfo-quantum-downgraded.txt";
    let Some(fabric) = fabric(path, Format::Iblinkinfo) else {
        return;
    };
    assert_eq!((sizes(&fabric), fabric.ports_down), ([4, 2, 5, 1], 35));
    assert_eq!(count(&fabric.findings, Kind::Downgraded), 4);
    let text = &fabric.findings[0].text;
    assert!(
        text.contains("100Gbit where both ends can do 200Gbit"),
        "{text}"
    );
}

#[test]
fn lldp() {
    for (name, neighbours, nodes, links) in [
        ("lldpctl", 33, 3, 32),
        ("interface_only", 2, 3, 2),
        ("lldpctl_mgmt_only", 1, 2, 1),
        ("lldpctl_no_neighbors_loc_mgmt_ip", 0, 1, 0),
        ("lldpctl_single_loc_mgmt_ip", 2, 2, 1),
        ("short_short", 0, 1, 0),
    ] {
        let path = format!("lldp/sonic-dbsyncd/{name}.json");
        let Some(Document::Neighbours(seen)) = document(&path, Format::Lldp) else {
            return;
        };
        let fabric = seen.fabric("here");
        let sizes = (
            seen.neighbours.len(),
            fabric.nodes.len(),
            fabric.links.len(),
        );
        assert_eq!(sizes, (neighbours, nodes, links), "{name}");
        let local = if name.contains("loc_") || name == "lldpctl" {
            "arc-switch1025"
        } else {
            "here"
        };
        assert!(fabric.nodes.contains_key(local), "{name}");
    }
}

#[test]
fn a_sonic_switch_with_a_queue_in_a_pfc_storm() {
    let mut collection = Collection::default();
    for name in ["appl", "asic", "config", "counters", "state"] {
        let path = format!("sonic/{name}_db.json");
        let Some(database) = document(&path, Format::Sonic) else {
            return;
        };
        collection.add(database, name, "sonic");
    }
    let Picture {
        fabric,
        switches,
        findings,
        ..
    } = collection.finish();
    let [switch] = switches.as_slice() else {
        panic!("{switches:?}")
    };
    assert_eq!(switch.name.as_deref(), Some("sonic-switch"));
    assert_eq!(
        switch.ports.len(),
        32 + 2,
        "32 configured, two only in the running state"
    );
    let port = &switch.ports["Ethernet0"];
    assert_eq!(
        (port.lanes.as_slice(), port.alias.as_deref()),
        ([25, 26, 27, 28].as_slice(), Some("etp1"))
    );
    assert_eq!(
        (port.configured_bps, port.rate_bps, port.pfc.as_slice()),
        (Some(40e9), Some(100e9), [3, 4].as_slice())
    );
    // Ten of the thirty queues of each port have no counters.
    let queues: usize = switch.ports.values().map(|p| p.queues.len()).sum();
    assert_eq!((port.queues.len(), queues), (20, 60));
    let of = |signal, index| {
        port.readings
            .iter()
            .find(|r| (r.signal, r.index) == (signal, index))
            .map(|r| r.value)
    };
    assert_eq!(of(Signal::RxBytes, None), Some(800));
    assert_eq!(of(Signal::PauseRx, Some(3)), Some(203));
    assert_eq!(of(Signal::PauseTx, Some(3)), Some(213));
    assert_eq!(of(Signal::PauseRxUs, Some(3)), Some(20_000_003));
    assert_eq!(of(Signal::FecUncorrected, None), Some(3));
    assert_eq!(of(Signal::PauseStorms, None), Some(1));
    assert_eq!(of(Signal::ModuleTemperature, None), Some(30_926));
    let dog = port.queues[&3].watchdog.as_ref().unwrap();
    assert_eq!(
        (dog.stormed, dog.tx_dropped_packets, dog.detection_time_us),
        (true, 300, Some(600_000))
    );
    let storms: Vec<&str> = findings
        .iter()
        .filter(|f| f.kind == Kind::PauseStorm)
        .map(|f| f.subject.as_str())
        .collect();
    assert_eq!(
        storms,
        [
            "sonic-switch:Ethernet0:3",
            "sonic-switch:Ethernet8:4",
            "sonic-switch:Ethernet4:3"
        ]
    );
    assert!(
        findings[0].text.contains("Ethernet0:3 is in a PFC storm"),
        "{}",
        findings[0].text
    );
    let fabric = fabric.unwrap();
    assert_eq!(sizes(&fabric), [25, 5, 29, 0]);
    // The map of databases is none of them.
    let text = capture("sonic/database_config.json").unwrap();
    assert_eq!(read(&text, Format::Sonic).unwrap_err().line, 81);
}
