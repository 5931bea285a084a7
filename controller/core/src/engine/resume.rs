//! What one core hands to another that goes on in its place, in a replay.

use super::Core;
use crate::memory::Memory;
use std::time::Duration;

impl Core {
    /// What a core that starts later in the same run cannot measure.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory {
            next_lease: self.next_lease,
            next_tick: self.next_tick,
            frozen: self.frozen,
            incidents: self.incidents.clone(),
            trials: self.trials.clone(),
            given_back: self.given_back.clone(),
            jobs: self.jobs.clone(),
            inference: self.inference.clone(),
            nodes: self.nodes.clone(),
            found_links: self.topology.found_links(),
            tracks: self
                .links
                .restless()
                .into_iter()
                .filter_map(|(n, track)| Some((self.topology.port_at(n)?.clone(), track.clone())))
                .collect(),
            parted: self.topology.parted().clone(),
            losses: self.losses.clone(),
            flows: self.flows.memory(),
            health: self.health.memory(),
            silent: self.silent.clone(),
            cables: self.cables.memory(&self.topology),
            cabling: self.cabling.clone(),
            stragglers: self.stragglers.clone(),
        }
    }

    /// Goes on from what another core held at this time, when the same nodes have said the same of themselves;
    /// commands that wait are dropped. [`Input::SegmentBegun`] has to follow, here and there.
    pub fn remember(&mut self, memory: Memory) {
        let Memory {
            next_lease,
            next_tick,
            frozen,
            incidents,
            trials,
            given_back,
            jobs,
            inference,
            nodes,
            found_links,
            tracks,
            parted,
            losses,
            flows,
            health,
            silent,
            cables,
            cabling,
            stragglers,
        } = memory;
        for node in self.nodes.keys().filter(|id| !nodes.contains_key(*id)) {
            self.topology.node_forgotten(node);
        }
        self.topology.remember(&found_links, parted);
        self.losses = losses;
        for (port, track) in tracks {
            if let Some(link) = self.topology.number_of(&port) {
                self.links.remember(link, track);
            }
        }
        self.flows.remember(flows);
        self.health.remember(health);
        self.cables.remember(cables, &self.topology);
        self.next_lease = next_lease;
        self.next_tick = next_tick;
        self.frozen = frozen;
        self.incidents = incidents;
        self.trials = trials;
        self.given_back = given_back;
        self.jobs = jobs;
        self.nodes = nodes;
        self.silent = silent;
        self.cabling = cabling;
        self.stragglers = stragglers;
        self.inference = inference;
        self.commands.clear();
    }

    /// From here on the graph is as of now and no path is known, so that a replay can start here.
    pub(super) fn segment_begun(&mut self, now: Duration) {
        self.topology.refresh();
        self.refresh_again(now);
        self.flows.forget_paths();
    }
}
