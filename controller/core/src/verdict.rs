//! What a detector says: what is wrong, where, why it thinks so and what would help.

use crate::ids::{JobId, NodeId, PortId};
use crate::io::PinChange;
use crate::keep::{Keep, keep};
use std::fmt;
use std::sync::Arc;

macro_rules! classes {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal;)+) => {
        /// What kind of trouble it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Class { $($(#[doc = $help])+ $variant,)+ }

        impl Class {
            pub const ALL: &[Class] = &[$(Class::$variant,)+];

            /// Name in the API, in labels and in documents.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Class::$variant => $name,)+ } }

            /// What it means, in a sentence.
            #[must_use]
            pub fn help(self) -> &'static str { match self { $(Class::$variant => concat!($($help),+).trim_ascii(),)+ } }
        }
    };
}

classes! {
    /// Flows share one member of a next-hop group while another has room.
    EcmpCollision = "ecmp_collision";
    /// Many send to one receiver at once.
    Incast = "incast";
    /// A receiver that cannot drain: it pauses its link although few send to it.
    SlowReceiver = "slow_receiver";
    /// Every member of a group is full, and no placement helps.
    Oversubscription = "oversubscription";
    /// A link carries less than it should: trained down, or held back without a flag.
    DegradedLink = "degraded_link";
    /// A checkpoint or other transfer to storage fills links for a while.
    StorageBurst = "storage_burst";
    /// Pause frames spread through the fabric from one port.
    PfcStorm = "pfc_storm";
    /// One rank makes all others wait.
    Straggler = "straggler";
    /// A link goes down and up again and again.
    LinkFlap = "link_flap";
    /// A link is down that should be up.
    LinkDown = "link_down";
    /// A link damages what it carries.
    LinkErrors = "link_errors";
    /// Packets vanish and no counter of the place says so.
    SilentLoss = "silent_loss";
    /// A network adapter is ill.
    NicFault = "nic_fault";
    /// A GPU is ill.
    GpuFault = "gpu_fault";
    /// A node differs from its peers in several signals at once, or its ranks arrive late together.
    NodeOutlier = "node_outlier";
    /// What is plugged in is not what was planned.
    Cabling = "cabling";
}

keep!(enum Class {
    0 EcmpCollision, 1 Incast, 2 Oversubscription, 3 SlowReceiver, 4 DegradedLink, 5 StorageBurst, 6 PfcStorm,
    7 Straggler, 8 LinkFlap, 9 LinkDown, 10 LinkErrors, 11 SilentLoss, 12 NicFault, 13 GpuFault, 14 NodeOutlier,
    15 Cabling,
});

/// What a verdict is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A directed link, by the port that it leaves by.
    Link(PortId),
    /// A verbs device's port, as `DEVICE/PORT`, or a network interface of a host.
    Nic(NodeId, Arc<str>),
    /// A GPU, by its PCI address.
    Gpu(NodeId, Arc<str>),
    Node(NodeId),
    /// A rank of a job, and the host that it runs on.
    Rank {
        job: JobId,
        rank: u32,
        node: Option<NodeId>,
    },
}

impl Subject {
    /// The node that it is, or is a part of; `None` for a rank whose host is not known.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Subject::Link(port) => Some(&port.node),
            Subject::Nic(node, _) | Subject::Gpu(node, _) | Subject::Node(node) => Some(node),
            Subject::Rank { node, .. } => node.as_ref(),
        }
    }

    #[must_use]
    pub fn link(&self) -> Option<&PortId> {
        match self {
            Subject::Link(port) => Some(port),
            Subject::Nic(..) | Subject::Gpu(..) | Subject::Node(_) | Subject::Rank { .. } => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Link(port) => write!(f, "{port}"),
            Subject::Nic(node, name) | Subject::Gpu(node, name) => write!(f, "{node}:{name}"),
            Subject::Node(node) => write!(f, "{node}"),
            Subject::Rank { job, rank, .. } => write!(f, "rank {rank} of {job}"),
        }
    }
}

impl Keep for Subject {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Subject::Link(port) => {
                out.push(0);
                port.put(out);
            }
            Subject::Nic(node, name) => {
                out.push(1);
                (node.clone(), name.clone()).put(out);
            }
            Subject::Gpu(node, name) => {
                out.push(2);
                (node.clone(), name.clone()).put(out);
            }
            Subject::Node(node) => {
                out.push(3);
                node.put(out);
            }
            Subject::Rank { job, rank, node } => {
                out.push(4);
                job.put(out);
                rank.put(out);
                node.put(out);
            }
        }
    }

    fn take(from: &mut &[u8]) -> Option<Subject> {
        Some(match u8::take(from)? {
            0 => Subject::Link(PortId::take(from)?),
            1 => Subject::Nic(NodeId::take(from)?, Keep::take(from)?),
            2 => Subject::Gpu(NodeId::take(from)?, Keep::take(from)?),
            3 => Subject::Node(NodeId::take(from)?),
            4 => Subject::Rank {
                job: JobId::take(from)?,
                rank: u32::take(from)?,
                node: Keep::take(from)?,
            },
            _ => return None,
        })
    }
}

/// How bad it is for the jobs that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nobody is woken.
    Info,
    /// Work is lost or will be.
    Warning,
    /// Work stands still or results may be wrong.
    Critical,
}

keep!(enum Severity { 0 Info, 1 Warning, 2 Critical });

impl Severity {
    /// Name in the API and in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// What it costs the jobs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Impact {
    /// Seconds of the job's time lost in each second, 0 to 1.
    pub lost_ratio: f64,
    /// Ranks that wait meanwhile.
    pub ranks: u32,
}

keep!(struct Impact { lost_ratio, ranks });

/// One thing that was measured or weighed, in words and figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    pub what: String,
    pub value: String,
}

keep!(struct Evidence { what, value });

impl Evidence {
    #[must_use]
    pub fn new(what: impl Into<String>, value: impl Into<String>) -> Evidence {
        Evidence {
            what: what.into(),
            value: value.into(),
        }
    }
}

/// What is wrong, where, why we think so and what would help.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub class: Class,
    pub severity: Severity,
    /// What to look at first.
    pub entity: Subject,
    /// All links that the cause makes hot or takes away, the roots first.
    pub links: Vec<PortId>,
    pub job: Option<JobId>,
    /// In 0..=1; each detector says what it is made of.
    pub confidence: f64,
    pub evidence: Vec<Evidence>,
    /// The change that would relieve it; empty if no route does.
    pub plan: Vec<PinChange>,
    /// What a person should do; empty if nothing.
    pub action: String,
    /// `None` if no job's time tells.
    pub impact: Option<Impact>,
}

keep!(struct Verdict {
    class, severity, entity, links, job, confidence, evidence, plan, action, impact,
});

impl Verdict {
    /// A verdict without links, plan, job and impact.
    #[must_use]
    pub fn new(class: Class, severity: Severity, entity: Subject, confidence: f64) -> Verdict {
        Verdict {
            class,
            severity,
            entity,
            links: Vec::new(),
            job: None,
            confidence,
            evidence: Vec::new(),
            plan: Vec::new(),
            action: String::new(),
            impact: None,
        }
    }
}
