//! A digest of each incident whenever it has changed: recorded with what was done, it lets a replay compare all of a
//! verdict (evidence, confidence, root, impact), not only the commands that it led to.
//!
//! Incidents are looked at after each tick, where verdicts are made, and all of them are told again where a segment of
//! the recording begins, so that a replay that starts there needs to know nothing.

use crate::brain::Action;
use std::collections::{BTreeMap, BTreeSet};
use weir_controller_core::incident::Incident;
use weir_controller_core::verdict::Verdict;

/// What was told of each incident last.
#[derive(Debug, Default)]
pub struct Judged {
    /// Its digest, and whether it was open: what is resolved does not change. As many as there are incidents.
    told: BTreeMap<String, (u32, bool)>,
}

impl Judged {
    /// All incidents will be told again.
    pub fn forget(&mut self) {
        self.told.clear();
    }

    /// What has changed since it was told.
    pub fn changes(&mut self, incidents: &[&Incident]) -> Vec<Action> {
        let mut changes = Vec::new();
        for incident in incidents {
            let told = self.told.get(&incident.id).copied();
            if told.is_some_and(|(_, open)| !open) && !incident.is_open() {
                continue;
            }
            let digest = digest(incident);
            if told.is_none_or(|(before, _)| before != digest) {
                let Verdict { class, entity, .. } = &incident.verdict;
                changes.push(Action::Judged {
                    incident: incident.id.clone(),
                    verdict: format!("{} on {entity}", class.name()),
                    digest,
                });
            }
            let told = (digest, incident.is_open());
            self.told.insert(incident.id.clone(), told);
        }
        if self.told.len() > incidents.len() {
            let there: BTreeSet<&str> = incidents.iter().map(|i| i.id.as_str()).collect();
            self.told.retain(|id, _| there.contains(id.as_str()));
        }
        changes
    }
}

/// Of all that a person is told of it, but not of when it was last seen: that changes with each sample.
fn digest(incident: &Incident) -> u32 {
    let Incident {
        id,
        verdict,
        opened_at,
        last_seen: _,
        resolved_at,
        root,
        jobs,
        after,
        story,
    } = incident;
    let text = format!(
        "{:?}",
        (
            id,
            verdict,
            opened_at,
            resolved_at,
            root,
            jobs,
            after,
            story
        )
    );
    crc32fast::hash(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::time::Duration;
    use weir_controller_core::ids::NodeId;
    use weir_controller_core::verdict::{Class, Evidence, Severity, Subject};

    fn incident(id: &str) -> Incident {
        let entity = Subject::Node(NodeId::new("h1"));
        let verdict = Verdict::new(Class::NodeOutlier, Severity::Warning, entity, 0.5);
        Incident {
            id: id.to_owned(),
            verdict,
            opened_at: Duration::from_secs(1),
            last_seen: Duration::from_secs(1),
            resolved_at: None,
            root: None,
            jobs: BTreeSet::new(),
            after: BTreeSet::new(),
            story: VecDeque::new(),
        }
    }

    fn told(judged: &mut Judged, incidents: &[Incident]) -> Vec<String> {
        let all: Vec<&Incident> = incidents.iter().collect();
        let changes = judged.changes(&all);
        changes
            .into_iter()
            .map(|change| {
                let Action::Judged { incident, .. } = change else {
                    panic!("{change:?}");
                };
                incident
            })
            .collect()
    }

    #[test]
    fn an_incident_is_told_when_it_opens_and_with_each_change_of_it() {
        let mut judged = Judged::default();
        let mut all = vec![incident("1"), incident("2")];
        assert_eq!(told(&mut judged, &all), ["1", "2"]);
        all[0].last_seen += Duration::from_secs(1);
        assert!(told(&mut judged, &all).is_empty());
        let changes: [fn(&mut Incident); 6] = [
            |i| i.verdict.confidence += 1e-9,
            |i| i.verdict.evidence.push(Evidence::new("ranks late", "3")),
            |i| i.root = Some("2".to_owned()),
            |i| i.verdict.class = Class::Straggler,
            |i| i.tell(Duration::ZERO, "seen".to_owned()),
            |i| i.resolved_at = Some(Duration::from_secs(2)),
        ];
        for change in changes {
            change(&mut all[0]);
            assert_eq!(told(&mut judged, &all), ["1"]);
            assert!(told(&mut judged, &all).is_empty());
        }
        judged.forget();
        assert_eq!(told(&mut judged, &all), ["1", "2"]);
        // What is gone is forgotten.
        all.remove(0);
        assert!(told(&mut judged, &all).is_empty());
        assert_eq!(judged.told.len(), 1);
    }
}
