//! Queue pairs over RoCE as flows of a frame: announced while they are connected; their rows come
//! where the kernel sees their packets.

use super::FrameEncoder;
use crate::bpf::QpSample;
use crate::qps::Seen;
use crate::sample::{QpId, QueuePair, Sample};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use weir_ebpf_abi::ROCE_PORT;
use weir_wire::frame::{FlowRow, RoceRow};
use weir_wire::v1;

/// What was told of queue pairs.
#[derive(Debug, Default)]
pub struct Told {
    flows: BTreeMap<QpId, Flow>,
    /// The pairs of the sample before: nothing is new while they are the same allocation.
    seen: Arc<Vec<QueuePair>>,
}

#[derive(Debug)]
struct Flow {
    id: u32,
    opened: v1::FlowOpened,
    counted: Seen,
    announced: bool,
}

impl Told {
    /// A new stream: everything is told afresh.
    pub fn restart(&mut self) {
        for flow in self.flows.values_mut() {
            flow.announced = false;
        }
    }
}

impl FrameEncoder {
    /// Announces and closes pairs in `frame`, and tells what came back to them; returns the rows of those
    /// that sent something or heard of marks.
    pub(super) fn roce_flows(
        &mut self,
        sample: &Sample,
        frame: &mut v1::Frame,
    ) -> Vec<(u32, [u64; 4])> {
        if !Arc::ptr_eq(&self.roce.seen, &sample.qps) {
            self.roce.seen = Arc::clone(&sample.qps);
            self.compare(sample, frame);
        }
        let (mut rows, mut came_back) = (Vec::new(), Vec::new());
        for (qp, flow) in &mut self.roce.flows {
            if !flow.announced || frame.key {
                flow.announced = true;
                self.flow_rows.announce(flow.id);
                self.roce_rows.announce(flow.id);
                frame.flows_opened.push(flow.opened.clone());
            }
            let Some(now) = sample.qps_seen.get(qp) else {
                continue;
            };
            // An entry that gave way and was made anew counts from zero.
            let since = |of: fn(&Seen) -> u64| {
                let (now, before) = (of(now), of(&flow.counted));
                now.checked_sub(before).unwrap_or(now)
            };
            let row = FlowRow {
                bytes: since(|seen| seen.sent.bytes),
                delivered_ce: since(|seen| seen.received.cnps),
                ..FlowRow::default()
            };
            if row != FlowRow::default() {
                rows.push((flow.id, row.into()));
            }
            let row = RoceRow {
                received_ce: since(|seen| seen.received.ce),
                cnps_sent: since(|seen| seen.sent.cnps),
            };
            if row != RoceRow::default() {
                came_back.push((flow.id, row.into()));
            }
            flow.counted = *now;
        }
        frame.roce = self.roce_rows.encode(came_back);
        rows
    }

    /// Finds pairs that were connected, disconnected or connected to another peer.
    fn compare(&mut self, sample: &Sample, frame: &mut v1::Frame) {
        let mut before = std::mem::take(&mut self.roce.flows);
        for pair in sample.qps.iter() {
            let Some(mut opened) = opened(pair) else {
                continue;
            };
            let known = before.remove(&pair.id());
            opened.id = known.as_ref().map_or(0, |flow| flow.id);
            let flow = match known {
                Some(flow) if flow.opened == opened => flow,
                other => {
                    if let Some(flow) = other {
                        self.close(&flow, frame);
                    }
                    self.next_flow = self.next_flow.wrapping_add(1);
                    opened.id = self.next_flow;
                    Flow {
                        id: opened.id,
                        opened,
                        counted: Seen::default(),
                        announced: false,
                    }
                }
            };
            self.roce.flows.insert(pair.id(), flow);
        }
        for flow in before.into_values() {
            self.close(&flow, frame);
        }
    }

    fn close(&mut self, flow: &Flow, frame: &mut v1::Frame) {
        if flow.announced {
            frame.flows_closed.push(flow.id);
        }
        self.flow_rows.forget(flow.id);
        self.roce_rows.forget(flow.id);
    }
}

/// The flow of a connected pair over RoCE version 2 whose peer is known; its number is still to be given.
fn opened(pair: &QueuePair) -> Option<v1::FlowOpened> {
    let QpSample {
        local_gid: Some(local),
        peer_gid: Some(peer),
        peer_qpn: Some(peer_qpn),
        ..
    } = &pair.qp
    else {
        return None;
    };
    let qp = &pair.qp;
    if !qp.roce_v2 || !qp.kind.is_connected() || !qp.state.is_open() {
        return None;
    }
    let ipv4 = |gid: &Ipv6Addr| gid.to_ipv4_mapped().map_or(0, |address| address.to_bits());
    Some(v1::FlowOpened {
        id: 0,
        src_ipv4: ipv4(local),
        dst_ipv4: ipv4(peer),
        src_port: u32::from(qp.src_port.unwrap_or(0)),
        dst_port: u32::from(ROCE_PORT),
        job: pair.job.clone(),
        pid: qp.pid.unwrap_or(0),
        kind: v1::FlowKind::Roce.into(),
        roce: Some(v1::RoceFlow {
            device: qp.device.clone(),
            port: u32::from(qp.port.unwrap_or(0)),
            local_gid: local.octets().to_vec(),
            peer_gid: peer.octets().to_vec(),
            local_qpn: qp.qpn,
            peer_qpn: *peer_qpn,
            dscp: u32::from(qp.traffic_class.unwrap_or(0) >> 2),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{QpKind, QpState, RoceTotal};
    use crate::testing::pair;
    use weir_wire::frame::{FlowRows, RoceRows};

    fn sample(pairs: Vec<QueuePair>, sent_bytes: u64) -> Sample {
        let sent = RoceTotal {
            bytes: sent_bytes,
            packets: 1,
            ..RoceTotal::default()
        };
        let seen = Seen {
            sent,
            ..Seen::default()
        };
        Sample {
            qps_seen: [((0, 17), seen)].into(),
            qps: Arc::new(pairs),
            ..Sample::default()
        }
    }

    /// What the controller hears: numbers opened, bytes of rows, numbers closed.
    #[derive(Default)]
    struct Heard(FlowRows);

    impl Heard {
        fn of(&mut self, encoder: &mut FrameEncoder, sample: &Sample) -> [Vec<u64>; 3] {
            let (_, frame) = encoder.encode(sample, 0);
            if frame.key {
                self.0 = FlowRows::default();
            }
            let opened = frame.flows_opened.iter().map(|opened| opened.id);
            opened.clone().for_each(|id| self.0.announce(id));
            let rows = self.0.decode(&frame.flows).unwrap();
            [
                opened.map(u64::from).collect(),
                rows.iter()
                    .map(|(_, row)| FlowRow::from(*row).bytes)
                    .collect(),
                frame.flows_closed.iter().copied().map(u64::from).collect(),
            ]
        }
    }

    #[test]
    fn a_pair_is_a_flow_from_its_connection_to_its_end() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        let init = QueuePair {
            qp: QpSample {
                state: QpState::Init,
                ..pair(17).qp
            },
            ..pair(17)
        };
        let mut heard = Heard::default();
        let mut check = |sample: &Sample, opened: &[u64], bytes: &[u64], closed: &[u64]| {
            let expected = [opened.to_vec(), bytes.to_vec(), closed.to_vec()];
            assert_eq!(heard.of(&mut encoder, sample), expected);
            encoder.roce.flows.len()
        };
        check(&sample(vec![init], 0), &[], &[], &[]);
        let mut connected = sample(vec![pair(17), pair(18)], 100);
        check(&connected, &[1, 2], &[100], &[]);
        check(&connected, &[], &[], &[]);
        connected.qps_seen = sample(vec![], 250).qps_seen;
        check(&connected, &[], &[150], &[]);
        let mut elsewhere = pair(17);
        elsewhere.qp.peer_qpn = Some(99);
        check(&sample(vec![elsewhere], 30), &[3], &[30], &[1, 2]);
        assert_eq!(check(&sample(vec![], 0), &[], &[], &[3]), 0);
    }

    #[test]
    fn marks_and_notifications_go_with_the_flow_that_they_concern() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        let mut connected = sample(vec![pair(17)], 0);
        let (mut flows, mut roce) = (FlowRows::default(), RoceRows::default());
        let mut heard = |received: [u64; 2], cnps_sent| {
            let seen = connected.qps_seen.get_mut(&(0, 17)).unwrap();
            [seen.received.ce, seen.received.cnps] = received;
            seen.sent.cnps = cnps_sent;
            let (_, frame) = encoder.encode(&connected, 0);
            for opened in &frame.flows_opened {
                flows.announce(opened.id);
                roce.announce(opened.id);
            }
            let flow = flows.decode(&frame.flows).unwrap();
            let flow = flow.iter().map(|(_, row)| FlowRow::from(*row).delivered_ce);
            let roce = roce.decode(&frame.roce).unwrap().into_iter();
            let roce = roce.map(|(_, row)| RoceRow::from(row));
            (flow.collect::<Vec<_>>(), roce.collect::<Vec<_>>())
        };
        let row = |received_ce, cnps_sent| RoceRow {
            received_ce,
            cnps_sent,
        };
        assert_eq!(heard([5, 2], 3), (vec![2], vec![row(5, 3)]));
        assert_eq!(heard([5, 2], 3), (vec![], vec![]));
        assert_eq!(heard([9, 2], 3), (vec![], vec![row(4, 0)]));
        assert_eq!(heard([9, 6], 3), (vec![4], vec![]));
        // The kernel's entries made room and were made anew.
        assert_eq!(heard([1, 1], 0), (vec![1], vec![row(1, 0)]));
    }

    #[test]
    fn a_key_frame_announces_what_is_open() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        let connected = sample(vec![pair(17), pair(18)], 100);
        let mut heard = Heard::default();
        heard.of(&mut encoder, &connected);
        encoder.resync();
        assert_eq!(
            heard.of(&mut encoder, &connected),
            [vec![1, 2], vec![], vec![]]
        );
        encoder.restart(None);
        let mut anew = Heard::default();
        assert_eq!(anew.of(&mut encoder, &connected)[0], [1, 2]);
    }

    #[test]
    fn the_ends_are_those_of_its_packets() {
        let flow = opened(&pair(17)).unwrap();
        assert_eq!((flow.src_ipv4, flow.dst_ipv4), (0x0a00_0102, 0x0a00_0302));
        assert_eq!((flow.src_port, flow.dst_port, flow.pid), (0xc132, 4791, 5));
        let roce = flow.roce.unwrap();
        assert_eq!((roce.local_qpn, roce.peer_qpn, roce.dscp), (17, 18, 26));
        let mut unknown = pair(17);
        unknown.qp.src_port = None;
        assert_eq!(opened(&unknown).unwrap().src_port, 0);
        let mut datagrams = pair(17);
        datagrams.qp.kind = QpKind::Ud;
        assert_eq!(opened(&datagrams), None);
    }
}
