//! Carriers that come and go, in the words of each driver.

use super::{Origin, event};
use crate::source::{Event, Severity};

/// What a message about a carrier begins with, in lower case.
const PHRASES: &[&str] = &["link ", "nic link is ", "link is "];

/// `Link up` (mlx5, ionic), `NIC Link is Down` (bnxt_en, i40e, igb, igc), `NIC Link is up 100 Gbps`
/// (ice), `Link is Up - 1Gbps/Full` (phylib), `Port: 1 Link ACTIVE` (mlx5_ib).
pub(super) fn change(origin: &Origin<'_>, body: &str) -> Option<Event> {
    if let Some(rest) = body.strip_prefix("Port: ") {
        return verbs_port(origin, rest);
    }
    // mlx4_en: `mlx4_en: eth0: Link Down`.
    let (interface, message) = match body.split_once(": ") {
        Some((word, rest)) if !word.contains(' ') => (Some(word), rest),
        Some(_) | None => (origin.interface, body),
    };
    // Older Intel drivers: `e1000e: eth0 NIC Link is Down`.
    let (interface, message) = match message.split_once(' ') {
        Some((word, rest)) if rest.starts_with("NIC Link is ") => (Some(word), rest),
        Some(_) | None => (interface, message),
    };
    let up = carrier(message)?;
    let subject = interface.map_or_else(|| origin.subject(), str::to_owned);
    (!subject.is_empty()).then(|| changed(subject, up))
}

fn carrier(message: &str) -> Option<bool> {
    PHRASES.iter().find_map(|phrase| {
        let start = message.get(..phrase.len())?;
        let rest = message.get(phrase.len()..)?;
        let state = rest.split(|c: char| !c.is_ascii_alphabetic()).next()?;
        match (start.eq_ignore_ascii_case(phrase), state) {
            (true, "up" | "Up" | "UP") => Some(true),
            (true, "down" | "Down" | "DOWN") => Some(false),
            _ => None,
        }
    })
}

/// `1 Link ACTIVE` of a verbs device, which stands where others have an interface.
fn verbs_port(origin: &Origin<'_>, rest: &str) -> Option<Event> {
    let (port, state) = rest.split_once(" Link ")?;
    let port: u8 = port.parse().ok()?;
    let up = match state.trim() {
        "ACTIVE" => true,
        "DOWN" => false,
        _ => return None,
    };
    Some(changed(format!("{}/{port}", origin.interface?), up))
}

fn changed(subject: String, up: bool) -> Event {
    if up {
        event(
            "link_up",
            subject,
            Severity::Info,
            "link came up".to_owned(),
            "",
        )
    } else {
        let action = "check cable and peer, if nobody took it down";
        event(
            "link_down",
            subject,
            Severity::Warning,
            "link went down".to_owned(),
            action,
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::kmsg::classify_line;

    fn found(line: &str) -> Option<(&'static str, String)> {
        classify_line(line).map(|e| (e.name, e.subject))
    }

    #[test]
    fn every_driver_has_its_words() {
        for (line, name, subject) in [
            ("mlx5_core 0000:41:00.0 eth2: Link up", "link_up", "eth2"),
            (
                "mlx5_core 0000:41:00.0 eth2: Link down",
                "link_down",
                "eth2",
            ),
            (
                "mlx5_core 0000:41:00.0 eth2 (unregistered): Link down",
                "link_down",
                "eth2",
            ),
            (
                "bnxt_en 0000:41:00.0 ens3f0: NIC Link is Down",
                "link_down",
                "ens3f0",
            ),
            (
                "bnxt_en 0000:41:00.0 ens3f0: NIC Link is Up, 200000 Mbps (PAM4 56Gbps) full duplex",
                "link_up",
                "ens3f0",
            ),
            (
                "ice 0000:31:00.0 ens801f0: NIC Link is up 100 Gbps Full Duplex, Requested FEC: RS-FEC",
                "link_up",
                "ens801f0",
            ),
            (
                "ice 0000:31:00.0 ens801f0: NIC Link is Down",
                "link_down",
                "ens801f0",
            ),
            (
                "ionic 0000:b5:00.0 eth4: Link up - 100 Gbps",
                "link_up",
                "eth4",
            ),
            ("e1000e: eth1 NIC Link is Down", "link_down", "eth1"),
            (
                "igb 0000:01:00.0 eth1: igb: eth1 NIC Link is Down",
                "link_down",
                "eth1",
            ),
            ("mlx4_en: ens2: Link Down", "link_down", "ens2"),
            (
                "r8169 0000:02:00.0 enp2s0: Link is Up - 1Gbps/Full - flow control off",
                "link_up",
                "enp2s0",
            ),
            ("eth0: Link is Down", "link_down", "eth0"),
            (
                "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link ACTIVE",
                "link_up",
                "mlx5_5/1",
            ),
            (
                "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link DOWN",
                "link_down",
                "mlx5_5/1",
            ),
        ] {
            assert_eq!(found(line), Some((name, subject.to_owned())), "{line}");
        }
    }

    #[test]
    fn links_of_other_things_are_none() {
        for line in [
            "ata3: SATA link down (SStatus 0 SControl 300)",
            "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
            "IPv6: ADDRCONF(NETDEV_UP): eth0: link is not ready",
            "pcieport 0000:00:1c.0: pciehp: Slot(0): Link Down",
            "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link INIT",
            "Link down",
            "eth0: Link upset",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }
}
