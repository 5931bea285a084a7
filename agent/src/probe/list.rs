//! Whom to probe: the controller's list, or the configuration's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use weir_wire::v1;

/// How a target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Udp(SocketAddr),
    /// A queue pair for unreliable datagrams.
    Ud {
        gid: [u8; 16],
        qpn: u32,
        qkey: u32,
    },
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    pub node: String,
    /// Port of the target's endpoint; empty if nobody told.
    pub port: String,
    /// Interface or verbs port of ours to probe from; empty: the kernel's choice.
    pub from: String,
    pub paths: u8,
    pub way: Way,
}

impl Ping {
    /// What its results are called: `SOURCE/NODE:PORT`, taken apart by [`super::labels`].
    #[must_use]
    pub fn name(&self) -> String {
        // A verbs port is DEVICE/PORT.
        format!(
            "{}/{}:{}",
            self.from.replace('/', ":"),
            self.node,
            self.port
        )
    }
}

/// A list of targets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    pub targets: Vec<Ping>,
    pub packets_per_s: u32,
    /// Who may probe us; `None`: everybody, within the responder's rates.
    pub probers: Option<BTreeSet<IpAddr>>,
    /// Targets that cannot be understood; of a newer controller, or broken.
    pub unusable: usize,
}

impl List {
    /// Probes in a second for so many of the targets: UDP and verbs have one rate between them.
    #[must_use]
    pub fn share(&self, targets: usize, most: u32) -> u32 {
        let rate = u64::from(self.packets_per_s.min(most));
        let part = rate * targets as u64 / self.targets.len().max(1) as u64;
        u32::try_from(part).unwrap_or(u32::MAX)
    }
}

impl From<&v1::Pinglist> for List {
    fn from(list: &v1::Pinglist) -> List {
        let targets: Vec<Ping> = list.targets.iter().filter_map(ping).collect();
        let probers = list.probers.iter().filter_map(|text| text.parse().ok());
        List {
            unusable: list.targets.len() - targets.len(),
            targets,
            packets_per_s: list.packets_per_second,
            probers: Some(probers.collect()),
        }
    }
}

fn ping(target: &v1::PingTarget) -> Option<Ping> {
    let way = match target.kind.as_ref()? {
        v1::ping_target::Kind::Udp(udp) => {
            let ip: IpAddr = udp.address.parse().ok()?;
            let port = u16::try_from(udp.port).ok().filter(|port| *port != 0)?;
            Way::Udp(SocketAddr::new(ip, port))
        }
        v1::ping_target::Kind::Ud(ud) => Way::Ud {
            gid: ud.gid.as_slice().try_into().ok()?,
            qpn: ud.qpn,
            qkey: ud.qkey,
        },
    };
    // Names become labels and are taken apart at the colon.
    let usable = !target.node.is_empty() && !target.node.contains(':') && target.paths > 0;
    usable.then(|| Ping {
        node: target.node.clone(),
        port: target.port.clone(),
        from: target.from.clone(),
        paths: u8::try_from(target.paths).unwrap_or(u8::MAX),
        way,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(address: &str, port: u32) -> v1::PingTarget {
        v1::PingTarget {
            node: "h2".into(),
            port: "eth0".into(),
            from: "eth1".into(),
            paths: 4,
            kind: Some(v1::ping_target::Kind::Udp(v1::UdpEndpoint {
                address: address.into(),
                port,
                source_ports: vec![],
            })),
        }
    }

    #[test]
    fn a_list_is_understood_and_what_is_not_is_counted() {
        let gid = v1::UdEndpoint {
            gid: vec![0xfe; 16],
            qpn: 17,
            qkey: 5,
        };
        let ud = v1::PingTarget {
            kind: Some(v1::ping_target::Kind::Ud(gid)),
            ..target("", 0)
        };
        let newer = v1::PingTarget {
            kind: None,
            ..target("", 0)
        };
        let list = List::from(&v1::Pinglist {
            targets: vec![
                target("10.0.0.2", 9744),
                target("10.0.0.999", 9744),
                target("10.0.0.2", 0),
                target("::1", 99_999),
                ud,
                newer,
            ],
            packets_per_second: 30,
            probers: vec!["10.0.0.2".into(), "2001:db8::1".into(), "nonsense".into()],
        });
        assert_eq!((list.targets.len(), list.unusable), (2, 4));
        assert_eq!(list.targets[0].name(), "eth1/h2:eth0");
        assert!(matches!(list.targets[1].way, Way::Ud { qpn: 17, .. }));
        assert_eq!(list.probers.map(|p| p.len()), Some(2));
    }

    proptest! {
        #[test]
        fn whatever_it_holds_nothing_panics_and_every_name_comes_apart(
            node in ".{0,8}", port in ".{0,8}", from in ".{0,8}", address in ".{0,12}", number: u32, paths: u32,
        ) {
            let kind = Some(v1::ping_target::Kind::Udp(v1::UdpEndpoint { address, port: number, source_ports: vec![] }));
            let good = v1::PingTarget { node, port, from, paths, ..target("10.0.0.2", 1) };
            let odd = v1::PingTarget { kind, ..good.clone() };
            let list = List::from(&v1::Pinglist { targets: vec![good, odd], ..v1::Pinglist::default() });
            for ping in list.targets {
                let name = ping.name();
                let from = ping.from.replace('/', ":");
                prop_assert_eq!(super::super::labels(&name), [from.as_str(), &ping.node, &ping.port]);
            }
        }
    }
}
