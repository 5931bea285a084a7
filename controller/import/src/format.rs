//! Which format a text is in, and reading it as that.

use crate::affinity::Affinity;
use crate::counters::{self, PortCounters};
use crate::fabric::Fabric;
use crate::finding::Finding;
use crate::ibstat::{self, Adapter};
use crate::ibswinfo::{self, SwitchHealth};
use crate::lldp::{self, Neighbours};
use crate::mlxlink::{self, LinkReport};
use crate::smi::{self, Inventory};
use crate::sonic::{self, Database, Hashes};
use crate::text::Error;
use crate::{iblinkinfo, ibnetdiscover, nccl, topo_m};
use serde::Serialize;

/// A format that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Ibnetdiscover,
    /// `ibnetdiscover -p`.
    IbnetdiscoverList,
    Iblinkinfo,
    Ibqueryerrors,
    Perfquery,
    /// And `ibstatus`.
    Ibstat,
    Ibswinfo,
    /// `lldpctl -f json` and `-f json0`.
    Lldp,
    Mlxlink,
    Nccl,
    TopoM,
    Smi,
    /// A SONiC database as JSON.
    Sonic,
}

/// A format, and what a line of it looks like.
type Rule<'a> = (Format, &'a dyn Fn(&str) -> bool);

/// Lines that are looked at to tell a format.
const LINES_MAX: usize = 64;

impl Format {
    pub const ALL: [Format; 13] = [
        Format::Ibnetdiscover,
        Format::IbnetdiscoverList,
        Format::Iblinkinfo,
        Format::Ibqueryerrors,
        Format::Perfquery,
        Format::Ibstat,
        Format::Ibswinfo,
        Format::Lldp,
        Format::Mlxlink,
        Format::Nccl,
        Format::TopoM,
        Format::Smi,
        Format::Sonic,
    ];

    /// As users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Ibnetdiscover => "ibnetdiscover",
            Format::IbnetdiscoverList => "ibnetdiscover-list",
            Format::Iblinkinfo => "iblinkinfo",
            Format::Ibqueryerrors => "ibqueryerrors",
            Format::Perfquery => "perfquery",
            Format::Ibstat => "ibstat",
            Format::Ibswinfo => "ibswinfo",
            Format::Lldp => "lldp",
            Format::Mlxlink => "mlxlink",
            Format::Nccl => "nccl",
            Format::TopoM => "topo-m",
            Format::Smi => "nvidia-smi",
            Format::Sonic => "sonic",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Tells the format by what only it has near its beginning.
    #[must_use]
    pub fn detect(text: &str) -> Option<Format> {
        let start = text
            .trim_start_matches('\u{feff}')
            .trim_start_matches(['\n', '\r']);
        let head = || start.lines().take(LINES_MAX);
        let any = |hit: &dyn Fn(&str) -> bool| head().any(hit);
        let first = start.trim_start();
        if first.starts_with('<') {
            return if any(&|l| l.contains("nvidia_smi_log")) {
                Some(Format::Smi)
            } else {
                Some(Format::Nccl)
            };
        }
        if first.starts_with('{') {
            return Some(
                if any(&|l| l.contains("\"lldp") || l.contains("\"local-chassis\"")) {
                    Format::Lldp
                } else if any(&|l| l.contains("\"result\"") || l.contains("\"status\":{\"code\"")) {
                    Format::Mlxlink
                } else {
                    Format::Sonic
                },
            );
        }
        let rules: [Rule<'_>; 9] = [
            (Format::Iblinkinfo, &|l| {
                l.contains("==(") && l.contains(")==>")
            }),
            (Format::Ibqueryerrors, &|l| l.starts_with("Errors for ")),
            (Format::Perfquery, &|l| {
                l.starts_with("# Port") && l.contains("counters: Lid")
            }),
            (Format::Ibstat, &|l| {
                l.starts_with("CA '") || l.starts_with("Infiniband device '")
            }),
            (Format::Ibswinfo, &|l| {
                l.contains(" | ") && l.starts_with("part number")
            }),
            (Format::Ibnetdiscover, &|l| {
                l.starts_with("vendid=") || l.starts_with("# Topology file")
            }),
            (Format::Ibnetdiscover, &|l| {
                l.starts_with("Switch\t") || l.starts_with("Ca\t")
            }),
            (Format::IbnetdiscoverList, &|l| {
                (l.starts_with("SW ") || l.starts_with("CA ")) && l.contains(" 0x")
            }),
            (Format::TopoM, &|l| topo_m::is_header(l)),
        ];
        let found = rules.into_iter().find(|(_, hit)| any(hit));
        found.map(|(format, _)| format)
    }
}

/// What a text held.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Document {
    Fabric(Fabric),
    Counters(Vec<PortCounters>),
    Adapters(Vec<Adapter>),
    SwitchHealth(SwitchHealth),
    Neighbours(Neighbours),
    Link(Box<LinkReport>),
    Affinity(Affinity),
    Gpus(Inventory),
    /// One database of several that together describe a switch.
    Sonic(Database, Hashes),
}

/// Reads a text.
///
/// # Errors
/// [`Error`] of the format's reader, or that a JSON object is no database of SONiC's.
pub fn read(text: &str, format: Format) -> Result<Document, Error> {
    Ok(match format {
        Format::Ibnetdiscover => Document::Fabric(ibnetdiscover::parse(text)?),
        Format::IbnetdiscoverList => Document::Fabric(ibnetdiscover::parse_list(text)?),
        Format::Iblinkinfo => Document::Fabric(iblinkinfo::parse(text)?),
        Format::Ibqueryerrors => Document::Counters(counters::parse_ibqueryerrors(text)?),
        Format::Perfquery => Document::Counters(counters::parse_perfquery(text)?),
        Format::Ibstat => Document::Adapters(ibstat::parse(text)?),
        Format::Ibswinfo => Document::SwitchHealth(ibswinfo::parse(text)?),
        Format::Lldp => Document::Neighbours(lldp::parse(text)?),
        Format::Mlxlink => Document::Link(Box::new(mlxlink::parse(text)?)),
        Format::Nccl => Document::Affinity(nccl::parse(text)?),
        Format::TopoM => Document::Affinity(topo_m::parse(text)?),
        Format::Smi => Document::Gpus(smi::parse(text)?),
        Format::Sonic => {
            let hashes = sonic::parse(text)?;
            let Some(database) = sonic::database(&hashes) else {
                let what =
                    "keys of a SONiC database such as PORT|Ethernet0 or COUNTERS_PORT_NAME_MAP";
                return Err(Error::new(1, 1, what, text.trim()));
            };
            Document::Sonic(database, hashes)
        }
    })
}

impl Document {
    /// What the text alone shows; of a fabric and of SONiC nothing, they are judged when all files
    /// are read. `subject` is what the file is about, where it does not say so itself.
    #[must_use]
    pub fn findings(&self, subject: &str) -> Vec<Finding> {
        match self {
            Document::Counters(ports) => counters::findings(ports),
            Document::Adapters(adapters) => ibstat::findings(adapters),
            Document::SwitchHealth(switch) => ibswinfo::findings(switch),
            Document::Link(report) => report.findings(subject),
            Document::Affinity(affinity) => affinity.findings(),
            Document::Gpus(inventory) => smi::findings(inventory),
            Document::Fabric(_) | Document::Neighbours(_) | Document::Sonic(..) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for format in Format::ALL {
            assert_eq!(Format::parse(format.name()), Some(format));
        }
        assert_eq!(Format::parse("auto"), None);
        assert_eq!(Format::detect("nodes: []\n"), None);
    }
}
