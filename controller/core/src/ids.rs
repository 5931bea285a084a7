//! Typed names of what the fabric is made of.

use crate::keep::keep;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A host or switch, by the name that its agent reports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// An interface of a node. As a link it means the *directed* link that leaves by it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    pub node: NodeId,
    pub port: Arc<str>,
}

/// A training job, as its launcher or scheduler names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

/// Five-tuple of a TCP flow, in the direction in which the data goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub src_port: u16,
    pub dst_port: u16,
}

impl FlowKey {
    /// The fields in their order as one number: compared with each flow of each sample, and addresses compare byte by byte.
    #[inline]
    fn number(&self) -> (u64, u32) {
        let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        let ports = u32::from(self.src_port) << 16 | u32::from(self.dst_port);
        (pair(self.src.to_bits(), self.dst.to_bits()), ports)
    }
}

impl Ord for FlowKey {
    #[inline]
    fn cmp(&self, other: &FlowKey) -> std::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for FlowKey {
    #[inline]
    fn partial_cmp(&self, other: &FlowKey) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

keep!(struct NodeId(_));
keep!(struct JobId(_));
keep!(struct PortId { node, port });
keep!(struct FlowKey { src, dst, src_port, dst_port });

impl NodeId {
    #[must_use]
    pub fn new(name: &str) -> NodeId {
        NodeId(name.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Begins the name of a job that nobody reported.
const INFERRED: &str = "inferred-";

impl JobId {
    /// A job that was reported under this name; a name like those of inferred jobs is told apart from them.
    #[must_use]
    pub fn new(key: &str) -> JobId {
        if key.starts_with(INFERRED) {
            JobId(format!("reported {key}").into())
        } else {
            JobId(key.into())
        }
    }

    /// A job that only its flows tell of ([`crate::infer`]).
    #[must_use]
    pub fn inferred(number: u64) -> JobId {
        JobId(format!("{INFERRED}{number}").into())
    }

    /// The job that is shown under this name, be it reported or inferred.
    #[must_use]
    pub fn shown(key: &str) -> JobId {
        JobId(key.into())
    }

    #[must_use]
    pub fn is_inferred(&self) -> bool {
        self.0.starts_with(INFERRED)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PortId {
    #[must_use]
    pub fn new(node: &NodeId, port: &str) -> PortId {
        PortId {
            node: node.clone(),
            port: port.into(),
        }
    }

    /// Reads `node:port`.
    ///
    /// # Errors
    /// The text itself, if it has not exactly one colon with something on each side.
    pub fn parse(text: &str) -> Result<PortId, String> {
        match text.split_once(':') {
            Some((node, port)) if !node.is_empty() && !port.is_empty() && !port.contains(':') => {
                Ok(PortId::new(&NodeId::new(node), port))
            }
            _ => Err(text.to_owned()),
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.port)
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{} -> {}:{}",
            self.src, self.src_port, self.dst, self.dst_port
        )
    }
}

macro_rules! debug_as_display {
    ($($type:ty),+) => { $(impl fmt::Debug for $type {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
    })+ };
}
debug_as_display!(NodeId, PortId, JobId, FlowKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reported_job_is_taken_for_an_inferred_one() {
        let (reported, inferred) = (JobId::new("inferred-3"), JobId::inferred(3));
        assert!(!reported.is_inferred() && inferred.is_inferred());
        assert_ne!(reported, inferred);
        for job in [reported, inferred] {
            assert_eq!(JobId::shown(job.as_str()), job);
        }
    }
}
