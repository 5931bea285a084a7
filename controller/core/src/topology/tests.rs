use super::*;
use crate::io::PortInventory;

fn inventory(ports: &[(&str, &str, u8)]) -> Inventory {
    let ports = ports
        .iter()
        .map(|(name, address, prefix)| PortInventory {
            name: (*name).into(),
            up: true,
            addresses: vec![(address.parse().unwrap(), *prefix)],
            neighbours: vec![],
            speed_bps: None,
        })
        .collect();
    Inventory {
        ports,
        ..Inventory::default()
    }
}

fn port(text: &str) -> PortId {
    PortId::parse(text).unwrap()
}

#[test]
fn a_link_nobody_wrote_down_is_inferred_from_the_subnet() {
    let mut t = Topology::default();
    t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.0", 31)]));
    t.inventory_reported(&NodeId::new("b"), inventory(&[("e1", "10.0.0.1", 31)]));
    assert_eq!(t.peer(&port("a:e0")), None, "not taken in yet");
    assert!(t.refresh());
    let link = t.link(&port("a:e0")).unwrap();
    assert_eq!(t.peer(&port("a:e0")), Some(&port("b:e1")));
    assert_eq!(t.port(link), &port("a:e0"));
    t.inventory_reported(&NodeId::new("b"), inventory(&[("e1", "10.9.0.1", 31)]));
    t.refresh();
    assert_eq!(t.link(&port("a:e0")), None);
    t.inventory_reported(&NodeId::new("b"), inventory(&[("e1", "10.0.0.1", 31)]));
    t.refresh();
    assert_eq!(
        t.link(&port("a:e0")),
        Some(link),
        "a number is not given twice"
    );
}

#[test]
fn a_planned_port_that_the_node_lacks_is_a_finding() {
    let cable = Cable {
        a: port("a:e9"),
        b: port("b:e1"),
        rate_bps: None,
    };
    let mut t = Topology::new(Plan {
        cables: vec![cable],
        ..Plan::default()
    });
    assert!(
        t.findings().is_empty(),
        "nothing reported yet, nothing contradicted"
    );
    t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.0", 31)]));
    t.refresh();
    let finding = t.findings().first().unwrap();
    assert!(
        finding.contains("a:e9") && finding.contains("e0"),
        "{finding}"
    );
}

#[test]
fn wrong_cabling_is_a_finding_and_the_file_stands() {
    let cable = Cable {
        a: port("a:e0"),
        b: port("c:e1"),
        rate_bps: None,
    };
    let mut t = Topology::new(Plan {
        cables: vec![cable],
        ..Plan::default()
    });
    t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.0", 31)]));
    t.inventory_reported(&NodeId::new("b"), inventory(&[("e1", "10.0.0.1", 31)]));
    t.refresh();
    assert_eq!(t.peer(&port("a:e0")), Some(&port("c:e1")));
    assert!(t.findings().iter().any(|f| f.contains("b:e1")));
}

#[test]
fn one_address_twice_is_a_finding() {
    let mut t = Topology::default();
    t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.9", 24)]));
    t.inventory_reported(&NodeId::new("b"), inventory(&[("e0", "10.0.0.9", 24)]));
    t.refresh();
    assert_eq!(t.findings().len(), 1);
}
