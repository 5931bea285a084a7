//! The main loop: one thread, one task beside the uplink's and the metrics page's.
//!
//! It waits for whatever comes first: the next sample, the kernel's word that routes changed, a
//! message of the controller, the expiry of a lease, a signal. Every branch is cancel-safe.

use crate::actuate::backend::{Backend, DryRun};
use crate::actuate::{Actuator, Report, journal};
use crate::collect::{Collector, Purpose};
use crate::config::{Config, Role};
use crate::events::Events;
use crate::frame::FrameEncoder;
use crate::inventory;
use crate::metrics::{Page, Shared};
use crate::netlink::Netlink;
use crate::netlink::monitor::Monitor;
use crate::sample::{Sample, carry};
use crate::source::Source;
use crate::uplink::{self, Event};
use anyhow::Context as _;
use prost::Message as _;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use weir_agent_core::lease::{Grant, Outcome};
use weir_agent_core::spool::Spool;
use weir_wire::v1::{self, AgentMessage, agent_message::Body, controller_message};
use weir_wire::version;

/// A new job is probed within this time; the scanner itself rests as long between looks.
const LOOK_FOR_JOBS: Duration = Duration::from_millis(500);
/// Shortest time between two looks at all routes.
const ROUTES_PAUSE: Duration = Duration::from_millis(250);
/// What no notification tells of a node, such as a link's speed, is read again after this long.
const INVENTORY_PAUSE: Duration = Duration::from_secs(10);
/// Lease reports that wait for a stream.
const REPORTS_MAX: usize = 256;
/// Readings that wait for a stream, all samples together: 10 MiB.
const SPOOL_ROWS_MAX: usize = 50_000;
/// How long an orderly end of the stream may take when the agent stops.
const FAREWELL: Duration = Duration::from_millis(500);
/// A reason that did not change is not logged again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Runs the agent until it is told to stop; every change is given back then.
///
/// # Errors
/// What keeps the agent from running at all.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let epoch = Instant::now();
    if config.limits_file.is_none() {
        tracing::info!("no limits file: this node allows no change (set `limits`)");
    }
    // Before anything else: what a former run left is restored.
    if config.dry_run {
        let backend = DryRun::new(Netlink::open()?);
        start(config, backend, epoch).await
    } else {
        let backend = Netlink::open()?;
        start(config, backend, epoch).await
    }
}

async fn start<B: Backend>(config: Config, backend: B, epoch: Instant) -> anyhow::Result<()> {
    // A dry run must not take the journal of a real one for its own.
    let state_dir = if config.dry_run {
        config.state_dir.join("dry-run")
    } else {
        config.state_dir.clone()
    };
    let (actuator, notes) = Actuator::open(&state_dir, config.limits.clone(), backend)?;
    for note in notes {
        tracing::warn!("{note}");
    }
    let mut stop = Stop {
        term: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    let collector = Collector::open(&config, Purpose::Run, epoch)?;
    let shared = Shared::default();
    let listener = tokio::net::TcpListener::bind(config.listen_metrics)
        .await
        .with_context(|| {
            format!(
                "cannot listen for /metrics on {}; set listen_metrics to a free address",
                config.listen_metrics
            )
        })?;
    tracing::info!("/metrics on {}", listener.local_addr()?);
    let page = tokio::spawn(crate::metrics::serve(listener, shared.clone()));
    let mut uplink = config.controller.clone().map(uplink::spawn);
    let mut agent = Agent {
        reports: VecDeque::new(),
        spool: Spool::new(config.spool_samples, SPOOL_ROWS_MAX),
        encoder: FrameEncoder::default(),
        events: Events::default(),
        stream: None,
        welcomed: false,
        routes_epoch: 1,
        routes_stale: false,
        routes_read: None,
        inventory_read: None,
        said: None,
        told_sources: Vec::new(),
        told_inventory: None,
        page: Page::default(),
        instance: u64::try_from(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)?
                .as_nanos(),
        )
        .unwrap_or(u64::MAX),
        config,
        actuator,
        collector,
        shared,
        epoch,
    };
    agent.page.compat_node_exporter = agent.config.compat_node_exporter;
    let result = agent.serve(&mut uplink, &mut stop).await;
    let restored = agent.shut_down(&mut uplink).await;
    page.abort();
    result.and(restored)
}

/// The signals that end the agent.
struct Stop {
    term: Signal,
    interrupt: Signal,
}

struct Agent<B> {
    config: Config,
    actuator: Actuator<B>,
    collector: Collector,
    shared: Shared,
    page: Page,
    spool: Spool<Arc<Sample>>,
    encoder: FrameEncoder,
    events: Events,
    stream: Option<mpsc::Sender<AgentMessage>>,
    /// The controller accepted the stream: samples and reports may leave their queues.
    welcomed: bool,
    reports: VecDeque<Report>,
    routes_epoch: u64,
    /// Something changed since `routes_read`.
    routes_stale: bool,
    routes_read: Option<Instant>,
    inventory_read: Option<Instant>,
    told_sources: Vec<Source>,
    told_inventory: Option<v1::Inventory>,
    /// Last reason logged for a lost stream.
    said: Option<(String, Instant)>,
    instance: u64,
    epoch: Instant,
}

impl<B: Backend> Agent<B> {
    async fn serve(
        &mut self,
        uplink: &mut Option<mpsc::Receiver<Event>>,
        stop: &mut Stop,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(self.config.sample_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut looks = tokio::time::interval(LOOK_FOR_JOBS);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut monitor = Monitor::open()?;
        loop {
            let expiry = self.actuator.poll_timeout();
            tokio::select! {
                _ = ticks.tick() => self.sample(),
                _ = looks.tick() => self.collector.look_for_jobs(),
                changes = monitor.changed() => {
                    let changes = changes?;
                    self.routes_stale |= changes.routing;
                    if changes.neighbours {
                        self.inventory_read = None;
                    }
                }
                () = self.routes_may_be_read(), if self.routes_stale => self.routing_changed(),
                event = next(uplink) => self.uplink_event(event),
                () = until(self.epoch, expiry) => self.tick_leases(),
                _ = stop.term.recv() => return Ok(()),
                _ = stop.interrupt.recv() => return Ok(()),
            }
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn sample(&mut self) {
        let (sample, extras) = self.collector.collect();
        if self.config.controller.is_some() {
            for event in &extras.events {
                self.events.push(event, sample.at);
            }
        }
        let sample = Arc::new(sample);
        self.page.sampled(Arc::clone(&sample), extras);
        self.tick_leases();
        let rows = sample.rows();
        self.spool.push(sample, rows);
        while let Some(dropped) = self.spool.shed() {
            if let Some(oldest) = self.spool.oldest_mut() {
                carry(&dropped, Arc::make_mut(oldest));
            }
        }
        // A peer that pings an endpoint which is no more takes that for loss.
        let endpoints_changed = self
            .told_inventory
            .as_ref()
            .is_some_and(|told| told.endpoints != self.collector.endpoints());
        if endpoints_changed
            || self
                .inventory_read
                .is_none_or(|at| at.elapsed() >= INVENTORY_PAUSE)
        {
            self.tell_inventory();
        }
        self.tell_sources();
        self.flush();
        self.publish();
    }

    fn publish(&mut self) {
        self.page.sources = self.collector.sources();
        self.page.uplink_up = self.is_up();
        self.page.leases_held = self.actuator.held().len();
        self.page.changes_standing = self.actuator.standing();
        self.page.baselines_unrestored = self.actuator.unrestored();
        self.page.samples_dropped = self.spool.dropped();
        self.page.events_waiting = self.events.waiting();
        self.page.events_dropped.clone_from(self.events.dropped());
        self.page.wire_samples = self.encoder.samples;
        self.shared.publish(&self.page);
    }

    /// A table that churns is read a few times a second, and not for each of its changes.
    async fn routes_may_be_read(&self) {
        if let Some(last) = self.routes_read {
            tokio::time::sleep_until((last + ROUTES_PAUSE).into()).await;
        }
    }

    fn routing_changed(&mut self) {
        self.routes_stale = false;
        self.routes_read = Some(Instant::now());
        self.routes_epoch += 1;
        self.actuator.routing_changed(self.now());
        self.take_reports();
        self.tell_inventory();
        self.flush();
    }

    fn tick_leases(&mut self) {
        self.actuator.tick(self.now());
        self.take_reports();
        self.flush_reports();
    }

    fn take_reports(&mut self) {
        for report in self.actuator.take_reports() {
            self.report(report);
        }
    }

    fn report(&mut self, report: Report) {
        match report.outcome {
            Outcome::Applied => self.page.leases_applied += 1,
            Outcome::Refused => self.page.leases_refused += 1,
            Outcome::Ended => self.page.leases_ended += 1,
        }
        if self.reports.len() == REPORTS_MAX
            && let Some(lost) = self.reports.pop_front()
        {
            tracing::warn!(
                lease = lost.id,
                "too many reports wait for a controller: the oldest is dropped"
            );
        }
        self.reports.push_back(report);
    }

    fn uplink_event(&mut self, event: Event) {
        match event {
            Event::Opening(stream) => self.open(stream),
            Event::Closed { reason } => {
                self.disconnect();
                let repeated = self
                    .said
                    .as_ref()
                    .is_some_and(|(r, at)| *r == reason && at.elapsed() < SAY_AGAIN);
                if !repeated {
                    tracing::warn!("no uplink, will try again: {reason}");
                    self.said = Some((reason, Instant::now()));
                }
            }
            Event::Message(message) => {
                if let Some(body) = message.body {
                    self.message(body);
                }
            }
        }
    }

    fn open(&mut self, stream: mpsc::Sender<AgentMessage>) {
        let newest = self.spool.newest().map(Arc::as_ref);
        let schema = self.encoder.restart(newest);
        let hello = v1::Hello {
            protocol_major: version::PROTOCOL_MAJOR,
            protocol_minor: version::PROTOCOL_MINOR,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            node: self.config.node.clone(),
            role: match self.config.role {
                Role::Host => v1::Role::Host,
                Role::Switch => v1::Role::Switch,
            }
            .into(),
            boot_id: journal::boot_id(),
            instance: self.instance,
            held_leases: self.actuator.held(),
            schema: Some(schema),
        };
        self.stream = Some(stream);
        self.welcomed = false;
        self.told_sources.clear();
        self.told_inventory = None;
        self.inventory_read = None;
        self.send(Body::Hello(hello));
    }

    fn welcome(&mut self, welcome: &v1::Welcome) {
        self.welcomed = self.stream.is_some();
        if self.welcomed {
            self.events.welcomed(welcome.protocol_minor);
        }
        self.said = None;
        tracing::info!(controller = welcome.controller_version, "uplink is up");
        self.tell_inventory();
        self.tell_sources();
        self.flush();
    }

    fn is_up(&self) -> bool {
        self.welcomed && self.stream.is_some()
    }

    fn disconnect(&mut self) {
        self.events.closed();
        self.stream = None;
        self.welcomed = false;
    }

    fn message(&mut self, body: controller_message::Body) {
        let now = self.now();
        match body {
            controller_message::Body::Welcome(welcome) => self.welcome(&welcome),
            controller_message::Body::Resync(_) => self.encoder.resync(),
            controller_message::Body::EventsTaken(taken) => self.events.taken(taken.seq),
            controller_message::Body::Pinglist(list) => self.collector.pinglist(&list),
            controller_message::Body::Path(query) => {
                let answer = inventory::answer(&mut self.collector.netlink, &query);
                self.send(Body::Path(answer));
            }
            controller_message::Body::Grant(grant) => self.granted(grant, now),
            controller_message::Body::Renew(renew) => self.actuator.renew(
                renew.id,
                Duration::from_millis(u64::from(renew.ttl_ms)),
                now,
            ),
            controller_message::Body::End(end) => self.actuator.end(end.id, &end.reason, now),
        }
        self.take_reports();
        self.flush_reports();
    }

    fn granted(&mut self, grant: v1::LeaseGrant, now: Duration) {
        tracing::info!(
            lease = grant.id,
            incident = grant.incident,
            "asked to change routes: {}",
            grant.verdict
        );
        let changes: Result<Vec<_>, String> = grant
            .changes
            .iter()
            .map(|c| {
                inventory::change_of(&mut self.collector.netlink, &self.config.ports_exclude, c)
            })
            .collect();
        match changes {
            Ok(changes) => self.actuator.grant(
                Grant {
                    id: grant.id,
                    ttl: Duration::from_millis(u64::from(grant.ttl_ms)),
                    verdict: grant.verdict,
                    changes,
                },
                now,
            ),
            Err(reason) => {
                tracing::warn!(lease = grant.id, "refused: {reason}");
                self.report(Report {
                    id: grant.id,
                    outcome: Outcome::Refused,
                    reason,
                });
            }
        }
    }

    fn tell_inventory(&mut self) {
        if !self.is_up() {
            return;
        }
        self.inventory_read = Some(Instant::now());
        match inventory::read(
            &mut self.collector.netlink,
            &self.config.ports_exclude,
            self.routes_epoch,
        ) {
            Ok(mut inventory) => {
                inventory.endpoints = self.collector.endpoints();
                if self.told_inventory.as_ref() != Some(&inventory) {
                    self.send(Body::Inventory(inventory.clone()));
                    self.told_inventory = Some(inventory);
                }
            }
            Err(error) => {
                tracing::debug!("inventory: {error}");
                self.inventory_read = None;
            }
        }
    }

    fn tell_sources(&mut self) {
        let sources = self.collector.sources();
        if self.is_up() && sources != self.told_sources {
            let report = sources.iter().map(|s| v1::Source {
                name: s.name.into(),
                up: s.up,
                reason: s.reason.clone(),
            });
            self.send(Body::Sources(v1::SourceReport {
                sources: report.collect(),
            }));
            self.told_sources = sources;
        }
    }

    /// Sends what waits, oldest first, as far as the stream takes it.
    fn flush(&mut self) {
        self.flush_reports();
        while self.welcomed
            && let Some(stream) = &self.stream
            && stream.capacity() > 1
            && let Some(sample) = self.spool.pop()
        {
            let (schema, mut frame) = self.encoder.encode(&sample, self.spool.dropped());
            if let Some(schema) = schema {
                self.send(Body::Schema(schema));
            }
            self.events.fill(&mut frame, self.now());
            self.page.frames_sent += 1;
            self.send(Body::Frame(frame));
        }
    }

    fn flush_reports(&mut self) {
        while self.welcomed
            && self.stream.as_ref().is_some_and(|s| s.capacity() > 0)
            && let Some(report) = self.reports.pop_front()
        {
            let state = match report.outcome {
                Outcome::Applied => v1::lease_report::State::Applied,
                Outcome::Refused => v1::lease_report::State::Refused,
                Outcome::Ended => v1::lease_report::State::Ended,
            };
            self.send(Body::Lease(v1::LeaseReport {
                id: report.id,
                state: state.into(),
                reason: report.reason,
                detail: String::new(),
            }));
        }
    }

    fn send(&mut self, body: Body) {
        let Some(stream) = &self.stream else { return };
        let message = AgentMessage { body: Some(body) };
        let bytes = message.encoded_len() as u64;
        match stream.try_send(message) {
            Ok(()) => self.page.wire_bytes += bytes,
            // Full or closed: without a sender the stream ends, and the task behind it connects again.
            Err(_) => self.disconnect(),
        }
    }

    /// Restores every baseline and says so, as far as the controller listens.
    ///
    /// # Errors
    /// A baseline could not be restored.
    async fn shut_down(
        &mut self,
        uplink: &mut Option<mpsc::Receiver<Event>>,
    ) -> anyhow::Result<()> {
        self.actuator.end_all("the agent is stopping", self.now());
        self.take_reports();
        self.flush_reports();
        if self.is_up() {
            // The end of our half lets what is queued go out; the controller answers with the end of its own.
            self.stream = None;
            let closed = async {
                loop {
                    match next(uplink).await {
                        Event::Closed { .. } => return,
                        Event::Message(v1::ControllerMessage {
                            body: Some(controller_message::Body::EventsTaken(taken)),
                        }) => self.events.taken(taken.seq),
                        Event::Message(_) | Event::Opening(_) => {}
                    }
                }
            };
            if tokio::time::timeout(FAREWELL, closed).await.is_err() {
                tracing::warn!("the controller did not confirm the end of the stream");
            }
        }
        if self.events.waiting() > 0 {
            tracing::warn!(
                "{} events were not acknowledged by a controller: this log alone has them",
                self.events.waiting()
            );
        }
        anyhow::ensure!(
            self.actuator.unrestored() == 0,
            "the baseline of {} leases could not be restored: the journal keeps it for the next start",
            self.actuator.unrestored()
        );
        Ok(())
    }
}

async fn next(uplink: &mut Option<mpsc::Receiver<Event>>) -> Event {
    match uplink {
        Some(events) => match events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn until(epoch: Instant, at: Option<Duration>) {
    match at {
        Some(at) => tokio::time::sleep_until((epoch + at).into()).await,
        None => std::future::pending().await,
    }
}
