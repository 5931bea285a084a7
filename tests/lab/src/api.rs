//! What the lab reads of the controller's HTTP API; the only file that knows its JSON.
//!
//! Fields that are missing read as empty, unknown ones are ignored: the demo shows what there is.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// `GET /api/v1/status`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Every node the controller knows.
    pub nodes: Vec<Node>,
    /// True while changes are forbidden.
    pub frozen: bool,
    /// observe, advise or act.
    pub mode: String,
    /// Jobs seen by their collectives.
    pub jobs: Vec<JobStatus>,
}

impl Status {
    /// How many nodes have a live agent.
    #[must_use]
    pub fn nodes_up(&self) -> usize {
        self.nodes.iter().filter(|node| node.up).count()
    }

    /// Sources that give nothing, with the reason and the nodes that say so.
    #[must_use]
    pub fn sources_down(&self) -> BTreeMap<(String, String), Vec<String>> {
        let mut down: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for node in &self.nodes {
            for source in node.sources.iter().filter(|source| !source.up) {
                let key = (source.name.clone(), source.reason.clone());
                down.entry(key).or_default().push(node.name.clone());
            }
        }
        down
    }
}

/// A node with an agent, or without one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Short name.
    pub name: String,
    /// host or switch.
    pub role: String,
    /// True while its agent is connected.
    pub up: bool,
    /// What its agent reads, and whether that works.
    pub sources: Vec<Source>,
}

/// One source of an agent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Such as `netdev` or `bpf`.
    pub name: String,
    /// False if it gives nothing.
    pub up: bool,
    /// Why it gives nothing.
    pub reason: String,
}

/// A job as the controller sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct JobStatus {
    /// Names the job.
    pub key: Value,
    /// Number of ranks seen.
    pub ranks: Option<u64>,
    /// Latest iteration.
    pub iteration_s: Option<f64>,
    /// Latest bus bandwidth.
    pub busbw_mbps: Option<f64>,
}

/// An entry of `GET /api/v1/links`: one direction of a link.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Such as `l1:up1->s1:down1`.
    pub id: String,
    /// Ratio in 0..=1.
    pub utilisation: Option<f64>,
    /// Largest queue of the last interval.
    pub queue_bytes: Option<f64>,
    /// Drops of the last interval.
    pub drops_per_s: Option<f64>,
    /// True if it stands out from its siblings.
    pub hot: bool,
}

/// An entry of `GET /api/v1/incidents`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// Names it for `weir explain`.
    pub id: Value,
    /// Such as `ecmp_collision`.
    pub class: String,
    /// open or resolved.
    pub state: String,
    /// Such as `l1:up1`.
    pub entity: String,
    /// Ratio in 0..=1.
    pub confidence: Option<f64>,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// The job that suffers.
    pub job: Value,
}

/// One finding.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// What was looked at.
    pub what: String,
    /// What was seen: a number or a text.
    pub value: Value,
}

/// An entry of `GET /api/v1/leases`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// Names it.
    pub id: Value,
    /// Where the trial stands: see [`LeaseState`].
    pub state: String,
    /// The incident it answers to.
    pub incident: Value,
    /// True if the change was taken back.
    pub rolled_back: bool,
    /// Nodes that were asked to change something.
    pub nodes: Vec<LeaseNode>,
    /// Such as `pin 10.2.3.2/32 via up2 on l1`.
    pub changes: Vec<String>,
    /// Why it stands there.
    pub reason: Option<String>,
    /// When it got there.
    pub timeline: Timeline,
}

/// What one node says of a lease.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LeaseNode {
    /// Short name.
    pub node: String,
    /// Such as `applied`.
    pub state: String,
}

/// Moments of a lease, seconds since the epoch.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// First collective of the job.
    pub job_seen_at: Option<f64>,
    /// The verdict.
    pub opened_at: Option<f64>,
    /// The planner asked for it.
    pub proposed_at: Option<f64>,
    /// Every agent had read its change back.
    pub applied_at: Option<f64>,
    /// Kept or taken back.
    pub decided_at: Option<f64>,
}

/// Where a trial stands, as far as the lab cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Not applied yet.
    Waiting,
    /// Applied, being judged.
    Holding,
    /// Kept.
    Committed,
    /// Taken back or never applied, and over.
    Ended,
}

impl Lease {
    /// Where the trial stands.
    #[must_use]
    pub fn stage(&self) -> LeaseState {
        match self.state.as_str() {
            "holding" => LeaseState::Holding,
            "committed" => LeaseState::Committed,
            "rolled_back" | "cooldown" | "idle" => LeaseState::Ended,
            _ => LeaseState::Waiting,
        }
    }

    /// The nodes concerned, for a person.
    #[must_use]
    pub fn node_names(&self) -> String {
        let names: Vec<&str> = self.nodes.iter().map(|n| n.node.as_str()).collect();
        names.join(", ")
    }
}

/// Reads a list that is either bare or below a key of that name.
///
/// # Errors
/// When an entry has a field of another type than expected.
pub fn list<T: for<'de> Deserialize<'de>>(
    mut value: Value,
    key: &str,
) -> serde_json::Result<Vec<T>> {
    let entries = match value.get_mut(key) {
        Some(below) => below.take(),
        None => value,
    };
    serde_json::from_value(entries)
}

/// A JSON value as a person would write it: a text without quotes.
#[must_use]
pub fn plain(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_read_as_empty_and_unknown_ones_are_ignored() {
        let lease: Lease = serde_json::from_str(r#"{"state":"committed","new":1}"#).unwrap();
        assert_eq!(lease.stage(), LeaseState::Committed);
        assert!(lease.changes.is_empty() && lease.timeline.applied_at.is_none());
    }

    #[test]
    fn a_list_may_be_bare_or_below_its_key() {
        for text in [r#"[{"id":"a"}]"#, r#"{"links":[{"id":"a"}]}"#] {
            let links: Vec<Link> = list(serde_json::from_str(text).unwrap(), "links").unwrap();
            assert_eq!(links[0].id, "a");
        }
    }
}
