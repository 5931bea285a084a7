//! What is for trying alone: the list of devices, one ping.

use crate::budget::Budget;
use crate::device::{self, Attributes, Device, Port, choose};
use crate::input;
use crate::port::UdPort;
use crate::serve::excluded;
use crate::system::{self, now};
use anyhow::Context as _;
use serde::Serialize;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;
use weir_verbs_protocol::{Orders, Place, Report, Target};

#[derive(Debug, clap::Args)]
pub struct Ping {
    /// Device that pings
    #[arg(long)]
    device: String,
    #[arg(long, default_value_t = 1)]
    port: u8,
    /// GID of the endpoint, such as ::ffff:10.0.0.1
    #[arg(long)]
    gid: String,
    /// Queue pair of the endpoint
    #[arg(long)]
    qpn: u32,
    /// Its key
    #[arg(long)]
    qkey: u32,
    /// Which path
    #[arg(long, default_value_t = 0)]
    flow_label: u32,
    #[arg(long, default_value_t = 64)]
    hop_limit: u8,
    /// Pings to send
    #[arg(long, default_value_t = 5)]
    count: u64,
    /// Pings a second
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// Bytes behind each ping. Nobody answers one with any: to see that a port bears it
    #[arg(long, default_value_t = 0)]
    padding: u16,
}

#[derive(Serialize)]
struct Listed {
    device: String,
    uverbs: String,
    #[serde(flatten)]
    attributes: Option<Attributes>,
    ports: Vec<Port>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints every device. One that cannot be opened says why.
///
/// # Errors
/// There is no list at all.
pub fn list(exclude: &[String]) -> anyhow::Result<()> {
    let names = match device::names() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Vec::new(),
        other => other.context("devices cannot be listed")?,
    };
    let mut all = Vec::new();
    for name in names {
        if excluded(exclude, &name.device) {
            continue;
        }
        let seen = Device::open(&name.device).and_then(|device| {
            let attributes = device.attributes()?;
            let ports = (1..=attributes.ports).map(|port| device.port(port));
            Ok((ports.collect::<Result<_, _>>()?, attributes))
        });
        let (attributes, ports, error) = match seen {
            Ok((ports, attributes)) => (Some(attributes), ports, None),
            Err(error) => (None, Vec::new(), Some(error.to_string())),
        };
        all.push(Listed {
            device: name.device,
            uverbs: name.uverbs,
            attributes,
            ports,
            error,
        });
    }
    let mut text = serde_json::to_string_pretty(&all)?;
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Pings until `count` pings have an outcome.
///
/// # Errors
/// The device cannot be used.
pub fn ping(ping: &Ping) -> anyhow::Result<()> {
    let target = Target {
        id: ping.gid.clone(),
        device: ping.device.clone(),
        port: ping.port,
        gid: ping.gid.clone(),
        qpn: ping.qpn,
        qkey: ping.qkey,
        flow_label: ping.flow_label,
        hop_limit: ping.hop_limit,
    };
    let orders = Orders {
        targets: vec![target],
        packets_per_second: ping.rate,
        probers: None,
    };
    // The same checks as for orders of the agent.
    let orders = input::orders(&serde_json::to_vec(&orders)?).map_err(anyhow::Error::msg)?;
    let place = Place {
        device: ping.device.clone(),
        port: ping.port,
    };
    let aims = orders.aims.get(&place).cloned().unwrap_or_default();
    let device = Arc::new(Device::open(&ping.device).context("cannot open the device")?);
    let seen = device.port(ping.port)?;
    let gid = choose(&seen.gids).context("the port has no GID of RoCE v2")?;
    let mut port = UdPort::open(&device, &seen, gid, &Budget::new(now()), now())?;
    port.set_aims(aims, orders.share(&place), now());
    port.set_limit(ping.count);
    port.set_padding(ping.padding);
    let mut held_back = 0;
    let (mut sent, mut reports_at) = (0, now() + Duration::from_secs(1));
    while sent < ping.count {
        let wake = port.wake().map_or(reports_at, |wake| wake.min(reports_at));
        system::wait(&port.fds(), wake.saturating_sub(now()))?;
        port.step(now)?;
        // A ping that could not be posted has no outcome: it is sent again.
        let again = port.counters.pings_held_back - held_back;
        held_back += again;
        port.add_to_limit(again);
        if now() >= reports_at {
            reports_at = now() + Duration::from_secs(1);
            for report in port.reports(now()) {
                sent += report.sent;
                say(&report)?;
            }
        }
    }
    Ok(())
}

fn say(report: &Report) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(report)?;
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
