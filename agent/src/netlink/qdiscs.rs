//! Queueing disciplines: backlog, drops and marks of each port.

use super::{Attributes, Netlink, NetlinkError, Request, text, u32_at};
use std::collections::BTreeMap;

const RTM_GETQDISC: u16 = 38;
const TCA_KIND: u16 = 1;
const TCA_XSTATS: u16 = 4;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_APP: u16 = 4;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;

/// The queue of one port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qdisc {
    pub kind: String,
    /// Backlog of the root, which includes its children's.
    pub backlog_bytes: u32,
    pub backlog_packets: u32,
    /// Packets dropped by the root, which includes its children's; 32 bits in the kernel.
    pub drops: u32,
    /// Packets marked CE; `None` where no qdisc of the port marks.
    pub ecn_marked: Option<u64>,
}

impl Netlink {
    /// The root queue of each port, by ifindex. Ports without a queue (`noqueue`) are left out.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn qdiscs(&mut self) -> Result<BTreeMap<u32, Qdisc>, NetlinkError> {
        let mut roots = BTreeMap::new();
        let mut marks: BTreeMap<u32, u64> = BTreeMap::new();
        self.query(
            Request::dump("list qdiscs", RTM_GETQDISC, &[0; 20]),
            |_, m| {
                let Some((ifindex, parent, qdisc)) = parse(m) else {
                    return;
                };
                if let Some(marked) = qdisc.ecn_marked {
                    *marks.entry(ifindex).or_default() += marked;
                }
                if parent == TC_H_ROOT && qdisc.kind != "noqueue" {
                    roots.insert(ifindex, qdisc);
                }
            },
        )?;
        for (ifindex, qdisc) in &mut roots {
            qdisc.ecn_marked = marks.get(ifindex).copied();
        }
        Ok(roots)
    }
}

/// Reads tcmsg and its attributes: (ifindex, parent, qdisc).
pub(crate) fn parse(message: &[u8]) -> Option<(u32, u32, Qdisc)> {
    let (ifindex, parent) = (u32_at(message, 4)?, u32_at(message, 12)?);
    if parent == TC_H_INGRESS {
        return None;
    }
    let mut qdisc = Qdisc::default();
    let mut xstats: Option<&[u8]> = None;
    for (kind, value) in Attributes(message.get(20..)?) {
        match kind {
            TCA_KIND => qdisc.kind = text(value),
            TCA_XSTATS => xstats = Some(value),
            TCA_STATS2 => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        // gnet_stats_queue: qlen, backlog, drops, requeues, overlimits.
                        TCA_STATS_QUEUE => {
                            qdisc.backlog_packets = u32_at(value, 0)?;
                            qdisc.backlog_bytes = u32_at(value, 4)?;
                            qdisc.drops = u32_at(value, 8)?;
                        }
                        TCA_STATS_APP => xstats = Some(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // tc_red_xstats: early, pdrop, other, marked. tc_fq_codel_xstats: type 0 (qdisc), maxpacket,
    qdisc.ecn_marked = match (qdisc.kind.as_str(), xstats) {
        ("red", Some(x)) => u32_at(x, 12).map(u64::from),
        ("fq_codel", Some(x)) if u32_at(x, 0) == Some(0) => u32_at(x, 12).map(u64::from),
        _ => None,
    };
    Some((ifindex, parent, qdisc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, xstats: &[u32]) -> Vec<u8> {
        let mut m = vec![0u8; 20];
        m[4..8].copy_from_slice(&7u32.to_ne_bytes());
        m[12..16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
        let words = |w: &[u32]| w.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
        let request = Request::new("", 0, 0, &m)
            .attribute(TCA_KIND, format!("{kind}\0").as_bytes())
            .attribute(TCA_XSTATS, &words(xstats));
        request.bytes[16..].to_vec()
    }

    #[test]
    fn red_counts_its_marks_and_a_fifo_has_none() {
        assert_eq!(
            parse(&message("red", &[1, 2, 3, 40])).unwrap().2.ecn_marked,
            Some(40)
        );
        assert_eq!(
            parse(&message("bfifo", &[1, 2, 3, 40]))
                .unwrap()
                .2
                .ecn_marked,
            None
        );
    }
}
