//! What a frame holds of ports, calls and flows, and what their numbers stand for.

use super::layout::{Layout, Rises};
use super::{FLOWS_MAX, Ingest, IngestError, Series, name};
use std::net::Ipv4Addr;
use std::sync::Arc;
use weir_controller_core::ids::{FlowKey, JobId};
use weir_controller_core::io;
use weir_wire::frame::SERIES_MAX;
use weir_wire::signal::Signal;
use weir_wire::v1;

/// The newest value or difference of every port's signals.
pub(super) fn port_samples(layout: &Layout, rises: &mut Rises<'_>) -> Vec<io::PortSample> {
    let empty = |port: &Arc<str>| io::PortSample {
        port: port.clone(),
        ..io::PortSample::default()
    };
    let mut samples: Vec<io::PortSample> = layout.ports.iter().map(empty).collect();
    for watched in &layout.watched {
        let delta = rises.of(watched.column, watched.signal.kind());
        let sample = &mut samples[watched.port];
        #[expect(clippy::wildcard_enum_match_arm, reason = "no other signal is watched")]
        match watched.signal {
            Signal::TxBytes => sample.tx_bytes = delta,
            Signal::QueueBytes | Signal::QueueBytesMax => {
                sample.queue_bytes_max = sample.queue_bytes_max.max(delta)
            }
            Signal::QueueDrops => sample.drops = delta,
            Signal::TxPackets => sample.tx_packets = delta,
            Signal::RxBytes => sample.rx_bytes = delta,
            Signal::RxPackets => sample.rx_packets = delta,
            Signal::EcnMarkedTx => sample.ecn_marked = delta,
            Signal::PauseRxUs => sample.pause_rx_us = sample.pause_rx_us.max(delta),
            Signal::PauseTxUs => sample.pause_tx_us = sample.pause_tx_us.max(delta),
            Signal::LinkUp => sample.up = delta.map(|v| v != 0),
            _ => {}
        }
    }
    samples
}

impl Ingest {
    pub(super) fn announce_series(&mut self, series: v1::Series) -> Result<(), IngestError> {
        let v1::Series {
            id,
            job,
            op,
            rank,
            ranks,
            ..
        } = series;
        if id >= SERIES_MAX {
            return Err(IngestError::SeriesNumber { series: id });
        }
        name(&job).and_then(|()| name(&op))?;
        self.call_rows.announce(id);
        self.running_rows.announce(id);
        let job = JobId::new(&job);
        let op = op.into();
        let series = Series {
            job,
            op,
            rank,
            ranks,
        };
        self.series.insert(id, series);
        Ok(())
    }

    pub(super) fn open_flow(&mut self, opened: &v1::FlowOpened) -> Result<(), IngestError> {
        name(&opened.job)?;
        self.flow_rows.announce(opened.id);
        // Flows without a path have rows, too.
        if self.flow_rows.len() > FLOWS_MAX {
            return Err(IngestError::TooManyFlows);
        }
        let port = |port: u32| {
            u16::try_from(port).map_err(|_| IngestError::FlowPort {
                flow: opened.id,
                port,
            })
        };
        let is_roce = opened.kind() == v1::FlowKind::Roce;
        if is_roce {
            self.roce_rows.announce(opened.id);
        }
        if is_roce && (opened.src_ipv4 == 0 || opened.dst_ipv4 == 0 || opened.src_port == 0) {
            // IPv6, or a source port that only firmware knows: no path can be asked for, and its rows
            // name no flow. A number that is announced again means this one from now on.
            self.flows.remove(&opened.id);
            return Ok(());
        }
        let key = FlowKey {
            src: Ipv4Addr::from(opened.src_ipv4),
            dst: Ipv4Addr::from(opened.dst_ipv4),
            src_port: port(opened.src_port)?,
            dst_port: port(opened.dst_port)?,
        };
        let job = (!opened.job.is_empty()).then(|| JobId::new(&opened.job));
        self.flows.insert(opened.id, (key, job));
        Ok(())
    }
}

/// Several queue pairs may have the same ends: they take the same path and are one flow. In the order of their keys.
pub(super) fn merged(flows: impl Iterator<Item = io::FlowSample>) -> Vec<io::FlowSample> {
    let mut flows: Vec<io::FlowSample> = flows.collect();
    flows.sort_by_key(|flow| flow.key);
    flows.dedup_by(|flow, known| {
        if flow.key != known.key {
            return false;
        }
        known.bytes = known.bytes.saturating_add(flow.bytes);
        known.retransmits = known.retransmits.saturating_add(flow.retransmits);
        known.delivered_ce = known.delivered_ce.saturating_add(flow.delivered_ce);
        known.received_ce = known.received_ce.saturating_add(flow.received_ce);
        known.cnps_sent = known.cnps_sent.saturating_add(flow.cnps_sent);
        true
    });
    flows
}
