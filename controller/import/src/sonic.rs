//! A SONiC switch out of its databases.
//!
//! The reader takes hashes as key -> field -> value, whether they come from a dump as JSON or from
//! Redis itself: CONFIG_DB and STATE_DB join their keys with `|`, the others with `:`. Names:
//! sonic-swss-common's schema.h, SAI's saiport.h and saiqueue.h.

mod report;

use crate::reading::Reading;
use crate::text::Error;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weir_wire::signal::Signal;

/// The hashes of one database.
pub type Hashes = BTreeMap<String, BTreeMap<String, String>>;

/// Priorities of PFC.
const PRIORITIES: u8 = 8;

/// Queues of a port at most; chassis have 16 or so.
const QUEUES_MAX: u16 = 256;

/// Which of the databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Database {
    Appl,
    Asic,
    Counters,
    Config,
    State,
}

/// The hashes of one switch, by database. What was not read is absent from the result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Databases {
    databases: BTreeMap<Database, Hashes>,
}

/// Reads one database as JSON.
///
/// # Errors
/// [`Error`] if it is no JSON object of objects.
pub fn parse(text: &str) -> Result<Hashes, Error> {
    let raw: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(text).map_err(|e| Error::json(&e, text))?;
    let plain = |value: Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    let hash = |fields: BTreeMap<String, Value>| {
        // Some tools dump the hash below `value`, beside its time to live.
        let inner = fields.get("value").and_then(Value::as_object).cloned();
        match inner.filter(|_| fields.contains_key("ttl")) {
            Some(inner) => inner.into_iter().map(|(k, v)| (k, plain(v))).collect(),
            None => fields.into_iter().map(|(k, v)| (k, plain(v))).collect(),
        }
    };
    Ok(raw
        .into_iter()
        .map(|(key, fields)| (key, hash(fields)))
        .collect())
}

/// Says which database the hashes are of, by the keys that only it has.
#[must_use]
pub fn database(hashes: &Hashes) -> Option<Database> {
    let has = |start: &str| {
        hashes
            .range(start.to_owned()..)
            .next()
            .is_some_and(|(key, _)| key.starts_with(start))
    };
    let any = |starts: &[&str]| starts.iter().any(|s| has(s));
    if any(&["ASIC_STATE:", "VIDTORID"]) {
        Some(Database::Asic)
    } else if any(&["COUNTERS_PORT_NAME_MAP", "COUNTERS:", "RATES:"]) {
        Some(Database::Counters)
    } else if any(&["PORT|", "DEVICE_METADATA|", "DEVICE_NEIGHBOR|"]) {
        Some(Database::Config)
    } else if any(&[
        "PORT_TABLE|",
        "TRANSCEIVER_INFO|",
        "TRANSCEIVER_DOM_SENSOR|",
    ]) {
        Some(Database::State)
    } else if any(&["PORT_TABLE:", "LAG_TABLE:", "INTF_TABLE:"]) {
        Some(Database::Appl)
    } else {
        None
    }
}

/// State of the PFC watchdog on a queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Watchdog {
    /// The queue is paused for longer than the detection time, now.
    pub stormed: bool,
    /// What it does with packets meanwhile.
    pub action: String,
    pub storms_detected: u64,
    pub storms_restored: u64,
    pub tx_dropped_packets: u64,
    pub rx_dropped_packets: u64,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detection_time_us: Option<u64>,
}

/// An egress queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Queue {
    pub bytes: Option<u64>,
    pub packets: Option<u64>,
    pub dropped_packets: Option<u64>,
    pub ecn_marked_packets: Option<u64>,
    pub wred_dropped_packets: Option<u64>,
    /// Deepest since it was last read.
    pub watermark_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watchdog>,
}

/// A front-panel port.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Port {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    pub lanes: Vec<u32>,
    /// Bits per second that it is set to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configured_bps: Option<f64>,
    /// Bits per second that it runs at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_up: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fec: Option<String>,
    /// Node and port that the configuration expects at the other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<(String, String)>,
    /// Priorities with PFC.
    pub pfc: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_temperature_c: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_error: Option<String>,
    pub queues: BTreeMap<u16, Queue>,
    pub readings: Vec<Reading>,
}

/// A switch.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Switch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub ports: BTreeMap<String, Port>,
    /// Neighbours that the configuration calls routers.
    pub routers: Vec<String>,
}

/// Counters of a port: SAI's name, and the signal.
const PORT_COUNTERS: &[(&str, Signal)] = &[
    ("SAI_PORT_STAT_IF_OUT_OCTETS", Signal::TxBytes),
    ("SAI_PORT_STAT_IF_IN_OCTETS", Signal::RxBytes),
    ("SAI_PORT_STAT_IF_OUT_ERRORS", Signal::TxErrors),
    ("SAI_PORT_STAT_IF_IN_ERRORS", Signal::RxErrors),
    ("SAI_PORT_STAT_IF_OUT_DISCARDS", Signal::TxDiscards),
    ("SAI_PORT_STAT_IF_IN_DISCARDS", Signal::RxDiscards),
    ("SAI_PORT_STAT_PAUSE_TX_PKTS", Signal::PauseTx),
    ("SAI_PORT_STAT_PAUSE_RX_PKTS", Signal::PauseRx),
    (
        "SAI_PORT_STAT_IF_IN_FEC_CORRECTABLE_FRAMES",
        Signal::FecCorrected,
    ),
    (
        "SAI_PORT_STAT_IF_IN_FEC_NOT_CORRECTABLE_FRAMES",
        Signal::FecUncorrected,
    ),
    (
        "SAI_PORT_STAT_IF_IN_FEC_SYMBOL_ERRORS",
        Signal::SymbolErrors,
    ),
];

/// Packets, of which SAI counts two kinds apart.
const PACKETS: &[([&str; 2], Signal)] = &[
    (
        [
            "SAI_PORT_STAT_IF_OUT_UCAST_PKTS",
            "SAI_PORT_STAT_IF_OUT_NON_UCAST_PKTS",
        ],
        Signal::TxPackets,
    ),
    (
        [
            "SAI_PORT_STAT_IF_IN_UCAST_PKTS",
            "SAI_PORT_STAT_IF_IN_NON_UCAST_PKTS",
        ],
        Signal::RxPackets,
    ),
];

/// Counters of a priority, `N` its number. Some platforms measure the time, some estimate it.
const PFC_COUNTERS: &[(&str, Signal)] = &[
    ("SAI_PORT_STAT_PFC_N_RX_PKTS", Signal::PauseRx),
    ("SAI_PORT_STAT_PFC_N_TX_PKTS", Signal::PauseTx),
    (
        "SAI_PORT_STAT_PFC_N_RX_PAUSE_DURATION_US",
        Signal::PauseRxUs,
    ),
    (
        "EST_PORT_STAT_PFC_N_RX_PAUSE_DURATION_US",
        Signal::PauseRxUs,
    ),
    (
        "SAI_PORT_STAT_PFC_N_TX_PAUSE_DURATION_US",
        Signal::PauseTxUs,
    ),
];

type Fields = BTreeMap<String, String>;

fn number(fields: &Fields, name: &str) -> Option<u64> {
    fields.get(name)?.trim().parse().ok()
}

/// A text that says something.
fn said<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let text = fields.get(name)?.trim();
    (!matches!(text, "" | "N/A" | "None" | "NULL")).then_some(text)
}

/// A speed in Mbit/s.
fn bps(fields: &Fields) -> Option<f64> {
    let megabits: u32 = said(fields, "speed")?.parse().ok()?;
    (megabits > 0).then(|| f64::from(megabits) * 1e6)
}

impl Databases {
    /// Takes in the hashes of a database; those of an earlier call with the same keys are replaced.
    pub fn add(&mut self, database: Database, hashes: Hashes) {
        self.databases.entry(database).or_default().extend(hashes);
    }

    /// The hash of a key.
    fn hash(&self, database: Database, key: &str) -> Option<&Fields> {
        self.databases.get(&database)?.get(key)
    }

    /// Keys of a table that name one thing, with their hashes.
    fn table<'a>(
        &'a self,
        database: Database,
        table: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Fields)> {
        let hashes = self.databases.get(&database);
        let from = hashes.map(|h| h.range(table.to_owned()..));
        from.into_iter()
            .flatten()
            .map_while(move |(key, fields)| Some((key.strip_prefix(table)?, fields)))
            .filter(|(name, _)| !name.contains('|'))
    }

    /// The switch that the databases describe.
    #[must_use]
    pub fn switch(&self) -> Switch {
        let mut switch = Switch::default();
        if let Some(metadata) = self.hash(Database::Config, "DEVICE_METADATA|localhost") {
            switch.name = said(metadata, "hostname").map(str::to_owned);
            switch.model = said(metadata, "hwsku").map(str::to_owned);
        }
        for (name, fields) in self.table(Database::Config, "DEVICE_NEIGHBOR_METADATA|") {
            if said(fields, "type").is_some_and(|t| t.contains("Router")) {
                switch.routers.push(name.to_owned());
            }
        }
        self.configured(&mut switch.ports);
        self.running(&mut switch.ports);
        self.counted(&mut switch.ports);
        for port in switch.ports.values_mut() {
            port.readings = readings(port);
        }
        self.port_counters(&mut switch.ports);
        switch
    }

    fn configured(&self, ports: &mut BTreeMap<String, Port>) {
        for (name, fields) in self.table(Database::Config, "PORT|") {
            let port = ports.entry(name.to_owned()).or_default();
            describe(port, fields);
            port.configured_bps = bps(fields);
        }
        for (name, fields) in self.table(Database::Config, "PORT_QOS_MAP|") {
            let priorities = said(fields, "pfc_enable").unwrap_or("").split(',');
            if let Some(port) = ports.get_mut(name) {
                port.pfc = priorities.filter_map(|p| p.trim().parse().ok()).collect();
            }
        }
        for (name, fields) in self.table(Database::Config, "DEVICE_NEIGHBOR|") {
            let (Some(node), Some(port)) = (said(fields, "name"), said(fields, "port")) else {
                continue;
            };
            if let Some(mine) = ports.get_mut(name) {
                mine.neighbour = Some((node.to_owned(), port.to_owned()));
            }
        }
    }

    fn running(&self, ports: &mut BTreeMap<String, Port>) {
        for (name, fields) in self.table(Database::Appl, "PORT_TABLE:") {
            let port = ports.entry(name.to_owned()).or_default();
            describe(port, fields);
            port.rate_bps = bps(fields);
            port.up = said(fields, "oper_status").map(|s| s == "up");
        }
        for (name, fields) in self.table(Database::State, "PORT_TABLE|") {
            let port = ports.entry(name.to_owned()).or_default();
            port.rate_bps = bps(fields).or(port.rate_bps);
            let up = said(fields, "netdev_oper_status").map(|s| s == "up");
            port.up = port.up.or(up);
        }
        for (name, fields) in self.table(Database::State, "TRANSCEIVER_DOM_SENSOR|") {
            if let Some(port) = ports.get_mut(name) {
                let temperature = said(fields, "temperature").and_then(|t| t.parse().ok());
                port.module_temperature_c = temperature.filter(|t: &f64| t.is_finite());
            }
        }
        for (name, fields) in self.table(Database::State, "TRANSCEIVER_STATUS_SW|") {
            if let Some(port) = ports.get_mut(name) {
                port.module_error = said(fields, "error").map(str::to_owned);
            }
        }
    }

    fn counted(&self, ports: &mut BTreeMap<String, Port>) {
        let names = self.hash(Database::Counters, "COUNTERS_QUEUE_NAME_MAP");
        for (name, oid) in names.into_iter().flatten() {
            let Some((port, index)) = name.rsplit_once(':') else {
                continue;
            };
            let Some(index) = index.parse().ok().filter(|n| *n < QUEUES_MAX) else {
                continue;
            };
            let Some(fields) = self.hash(Database::Counters, &format!("COUNTERS:{oid}")) else {
                continue;
            };
            let port = ports.entry(port.to_owned()).or_default();
            port.queues.insert(index, queue(fields));
        }
    }

    fn port_counters(&self, ports: &mut BTreeMap<String, Port>) {
        let names = self.hash(Database::Counters, "COUNTERS_PORT_NAME_MAP");
        for (name, oid) in names.into_iter().flatten() {
            let Some(fields) = self.hash(Database::Counters, &format!("COUNTERS:{oid}")) else {
                continue;
            };
            let readings = &mut ports.entry(name.clone()).or_default().readings;
            for (counter, signal) in PORT_COUNTERS {
                let value = number(fields, counter);
                readings.extend(value.map(|v| Reading::counted(*signal, v)));
            }
            for (counters, signal) in PACKETS {
                let values = counters.iter().filter_map(|c| number(fields, c));
                let sum = values.reduce(u64::saturating_add);
                readings.extend(sum.map(|v| Reading::counted(*signal, v)));
            }
            for priority in 0..PRIORITIES {
                for (counter, signal) in PFC_COUNTERS {
                    let counter = counter.replace("_N_", &format!("_{priority}_"));
                    let reading = |v| Reading::counted(*signal, v).of(priority);
                    let known = |r: &Reading| r.signal == *signal && r.index == Some(priority);
                    // What is measured comes before what is estimated.
                    if !readings.iter().any(known) {
                        readings.extend(number(fields, &counter).map(reading));
                    }
                }
            }
        }
    }
}

fn describe(port: &mut Port, fields: &Fields) {
    let own = |name| said(fields, name).map(str::to_owned);
    port.alias = port.alias.take().or(own("alias"));
    port.fec = own("fec").or(port.fec.take());
    port.admin_up = said(fields, "admin_status")
        .map(|s| s == "up")
        .or(port.admin_up);
    if port.lanes.is_empty() {
        let lanes = said(fields, "lanes").unwrap_or("").split(',');
        port.lanes = lanes.filter_map(|l| l.trim().parse().ok()).collect();
    }
}

fn queue(fields: &Fields) -> Queue {
    let count = |name: &str| number(fields, &format!("SAI_QUEUE_STAT_{name}"));
    let guard = |name: &str| number(fields, &format!("PFC_WD_{name}"));
    let dog = said(fields, "PFC_WD_STATUS").map(|status| Watchdog {
        stormed: status == "stormed",
        action: said(fields, "PFC_WD_ACTION").unwrap_or("drop").to_owned(),
        storms_detected: guard("QUEUE_STATS_DEADLOCK_DETECTED").unwrap_or(0),
        storms_restored: guard("QUEUE_STATS_DEADLOCK_RESTORED").unwrap_or(0),
        tx_dropped_packets: guard("QUEUE_STATS_TX_DROPPED_PACKETS").unwrap_or(0),
        rx_dropped_packets: guard("QUEUE_STATS_RX_DROPPED_PACKETS").unwrap_or(0),
        detection_time_us: guard("DETECTION_TIME"),
    });
    Queue {
        bytes: count("BYTES"),
        packets: count("PACKETS"),
        dropped_packets: count("DROPPED_PACKETS"),
        ecn_marked_packets: count("WRED_ECN_MARKED_PACKETS"),
        wred_dropped_packets: count("WRED_DROPPED_PACKETS"),
        watermark_bytes: count("SHARED_WATERMARK_BYTES"),
        watchdog: dog,
    }
}

/// What a port's own state and its queues together give.
fn readings(port: &Port) -> Vec<Reading> {
    let queues = || port.queues.values();
    let sum = |values: &mut dyn Iterator<Item = u64>| values.reduce(u64::saturating_add);
    let dogs = || queues().filter_map(|q| q.watchdog.as_ref());
    let lanes = u64::try_from(port.lanes.len()).ok().filter(|n| *n > 0);
    let counts = [
        (Signal::LinkUp, port.up.map(u64::from)),
        (Signal::Lanes, lanes),
        (
            Signal::QueueDrops,
            sum(&mut queues().filter_map(|q| q.dropped_packets)),
        ),
        (
            Signal::QueueBytesMax,
            queues().filter_map(|q| q.watermark_bytes).max(),
        ),
        (
            Signal::EcnMarkedTx,
            sum(&mut queues().filter_map(|q| q.ecn_marked_packets)),
        ),
        (
            Signal::PauseStorms,
            sum(&mut dogs().map(|d| d.storms_detected)),
        ),
    ];
    let measured = [
        (Signal::RateBps, port.rate_bps),
        (
            Signal::ModuleTemperature,
            port.module_temperature_c.map(|t| t * 1e3),
        ),
    ];
    let counts = counts
        .into_iter()
        .filter_map(|(s, v)| Some(Reading::counted(s, v?)));
    let measured = measured
        .into_iter()
        .filter_map(|(s, v)| Reading::measured(s, v?));
    counts.chain(measured).collect()
}
