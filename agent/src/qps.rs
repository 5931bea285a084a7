//! The queue pairs of this node for people and programs: `weir-agent qps`, and `/qps` of the agent
//! that runs, which only this machine may ask.

use crate::bpf::{QpKind, QpSample, QpState, RoceSample, RoceTotal};
use crate::rdma::netlink::RdmaNetlink;
use crate::sample::{QpId, QueuePair};
use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Where the agent answers.
pub const PATH: &str = "/qps";
/// The agent answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// 16,384 pairs take some 6 MiB.
const ANSWER_BYTES: u64 = 64 << 20;

/// A queue pair as it is shown. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub device: String,
    pub port: Option<u8>,
    pub qpn: u32,
    /// As `rdma resource show qp` writes type and state.
    pub kind: String,
    pub state: String,
    /// An IPv4 address stands for its GID.
    pub local: Option<IpAddr>,
    pub peer: Option<IpAddr>,
    pub peer_qpn: Option<u32>,
    /// UDP source port; the destination is 4791.
    pub src_port: Option<u16>,
    /// The port is a prediction: the NIC's firmware chooses it (mlx5).
    #[serde(default)]
    pub src_port_predicted: bool,
    pub dscp: Option<u8>,
    pub flow_label: Option<u32>,
    pub pid: Option<u32>,
    pub job: Option<String>,
    /// The pair is older than the agent's probes, which know no addresses of it.
    pub older: bool,
    /// What it sent through the kernel, if it did and the agent counts that.
    pub sent: Option<Sent>,
}

/// What a pair sent through the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub bytes: u64,
    pub packets: u64,
}

/// The rows of a sample.
#[must_use]
pub fn rows(pairs: &[QueuePair], seen: &BTreeMap<QpId, Seen>) -> Vec<Row> {
    let row = |pair: &QueuePair| {
        let qp = &pair.qp;
        Row {
            device: qp.device.clone(),
            port: qp.port,
            qpn: qp.qpn,
            kind: qp.kind.name().into(),
            state: qp.state.name().into(),
            local: qp.local_gid.map(address),
            peer: qp.peer_gid.map(address),
            peer_qpn: qp.peer_qpn,
            src_port: qp.src_port,
            src_port_predicted: qp.src_port_predicted,
            dscp: qp.traffic_class.map(|class| class >> 2),
            flow_label: qp.flow_label,
            pid: qp.pid,
            job: Some(pair.job.clone()).filter(|job| !job.is_empty()),
            older: qp.older,
            sent: seen
                .get(&pair.id())
                .map(|Seen { sent, .. }| Sent {
                    bytes: sent.bytes,
                    packets: sent.packets,
                })
                .filter(|sent| sent.packets > 0),
        }
    };
    pairs.iter().map(row).collect()
}

/// Number of pairs by device, type and state.
#[must_use]
pub fn count(pairs: &[QueuePair]) -> BTreeMap<(&str, QpKind, QpState), usize> {
    let mut counts = BTreeMap::new();
    for QueuePair { qp, .. } in pairs {
        let key = (qp.device.as_str(), qp.kind, qp.state);
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// What the kernel saw of a pair's packets. Sums since its entries were made, which may make room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub sent: RoceTotal,
    pub received: RoceTotal,
}

/// The pair that sent or received each of the packets, by what both know.
#[must_use]
pub fn seen(pairs: &[QueuePair], packets: &[RoceSample]) -> BTreeMap<QpId, Seen> {
    type Sender = (Ipv6Addr, Ipv6Addr, u32, u16);
    let sender = |qp: &QpSample| -> Option<Sender> {
        Some((qp.local_gid?, qp.peer_gid?, qp.peer_qpn?, qp.src_port?))
    };
    // The source port is the peer's, which this end need not know.
    type Receiver = (Ipv6Addr, Ipv6Addr, u32);
    let receiver =
        |qp: &QpSample| -> Option<Receiver> { Some((qp.peer_gid?, qp.local_gid?, qp.qpn)) };
    let (mut senders, mut receivers) = (BTreeMap::new(), BTreeMap::new());
    for pair in pairs {
        senders.extend(sender(&pair.qp).map(|key| (key, pair.id())));
        receivers.extend(receiver(&pair.qp).map(|key| (key, pair.id())));
    }
    let mut seen: BTreeMap<QpId, Seen> = BTreeMap::new();
    for p in packets {
        let id = if p.ingress {
            receivers.get(&(p.src, p.dst, p.dest_qpn))
        } else {
            senders.get(&(p.src, p.dst, p.dest_qpn, p.src_port))
        };
        let Some(id) = id else { continue };
        let seen = seen.entry(*id).or_default();
        let total = if p.ingress {
            &mut seen.received
        } else {
            &mut seen.sent
        };
        // It crosses one port, unless its route changed.
        total.bytes += p.counts.bytes;
        total.packets += p.counts.packets;
        total.ce += p.counts.ce;
        total.cnps += p.counts.cnps;
    }
    seen
}

fn address(gid: Ipv6Addr) -> IpAddr {
    gid.to_ipv4_mapped().map_or(gid.into(), IpAddr::from)
}

/// The pairs of this node: of the agent that listens at `metrics`, else of RDMA netlink.
///
/// # Errors
/// There is no agent and no RDMA subsystem, or the agent's answer is not understood.
pub fn list(metrics: SocketAddr) -> anyhow::Result<Vec<Row>> {
    let ip = match metrics.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    match TcpStream::connect_timeout(&SocketAddr::new(ip, metrics.port()), PATIENCE) {
        Ok(stream) => ask(stream).context("the agent that runs here"),
        Err(_) => from_netlink(),
    }
}

fn ask(mut stream: TcpStream) -> anyhow::Result<Vec<Row>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Version 1.0: the answer comes in one piece, and its end is the connection's.
    write!(stream, "GET {PATH} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    body(&answer)
}

fn body(answer: &[u8]) -> anyhow::Result<Vec<Row>> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.context("no HTTP answer")? + 4);
    let status = String::from_utf8_lossy(head);
    let status = status.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{status}");
    }
    Ok(serde_json::from_slice(body)?)
}

fn from_netlink() -> anyhow::Result<Vec<Row>> {
    if !std::path::Path::new("/sys/class/infiniband").exists() {
        bail!("no agent runs here, and this kernel has no RDMA subsystem loaded (ib_core)");
    }
    let mut netlink = RdmaNetlink::open().context("no agent runs here; RDMA netlink")?;
    let mut rows = Vec::new();
    for device in netlink.devices()? {
        for qp in netlink.qps(device.index)? {
            rows.push(Row {
                device: device.name.clone(),
                qpn: qp.lqpn,
                kind: qp
                    .kind
                    .map_or(QpKind::Other, QpKind::from_number)
                    .name()
                    .into(),
                state: qp
                    .state
                    .map_or(QpState::Unknown, QpState::from_number)
                    .name()
                    .into(),
                peer_qpn: qp.rqpn,
                pid: qp.pid,
                older: true,
                ..Row::default()
            });
        }
    }
    Ok(rows)
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    fn or_dash(value: Option<impl ToString>) -> String {
        value.map_or_else(|| "-".to_owned(), |value| value.to_string())
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "device", "port", "QPN", "type", "state", "local", "peer", "peer QPN", "UDP port",
        "port is", "DSCP", "pid", "job",
    ]);
    for row in rows {
        table.add_row([
            row.device.clone(),
            or_dash(row.port),
            row.qpn.to_string(),
            row.kind.clone(),
            row.state.clone(),
            or_dash(row.local),
            or_dash(row.peer),
            or_dash(row.peer_qpn),
            or_dash(row.src_port),
            or_dash(row.src_port.map(|_| origin(row))),
            or_dash(row.dscp),
            or_dash(row.pid),
            or_dash(row.job.as_ref()),
        ]);
    }
    table.to_string()
}

/// Where the source port comes from: the driver's computation, or a guess at the firmware's choice.
fn origin(row: &Row) -> &'static str {
    if row.src_port_predicted {
        "predicted"
    } else {
        "computed"
    }
}

#[cfg(test)]
mod tests;
