//! `weir-lab demo`: an all-reduce held back by a colliding link is found, rerouted, measured and kept.
//!
//! The stages: build the fabric and place the ring's flows on one spine; start controller and agents; start
//! the job; watch the controller until it has kept or taken back a change; measure; then freeze the
//! controller, which puts the routes back, and measure the same running job on routes set by hand. Agents run
//! through all three measurements, so they cost the same in each.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::{
    api::{self, Incident, Lease, LeaseState, Link},
    fabric::Fabric,
    job::{Iteration, Job, JobSpec, busbw_mbps, median_seconds},
    output,
    placement::Placement,
    plan::{FabricSpec, ring_pairs},
    preflight::preflight,
    progress::{Progress, Row, sparkline},
    report::Report,
    snapshot::Snapshot,
    stack::{READY_DEADLINE, Stack, StackSpec},
    sys,
};

/// About 0.37 s an iteration in the collision and 0.2 s without: a sample sees several, and a trial has a dozen
/// within some seconds.
pub const JOB_BYTES: u32 = 1_200_000;
/// Rank 0's first line comes within three seconds on two cores.
const JOB_DEADLINE: Duration = Duration::from_secs(30);
/// The goal is 5 s to the change; the trial then takes some iterations. Past this it will not come.
const TRIAL_DEADLINE: Duration = Duration::from_secs(60);
/// Odd, so that the median is one of them; the first after a change is discarded.
const MEASURED_ITERATIONS: usize = 9;
/// Leases end at their baseline at once on a freeze, and at the latest when they run out.
const BASELINE_DEADLINE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(150);

/// What to do.
#[derive(Debug, Clone)]
pub struct DemoSpec {
    /// Leave it running at the end.
    pub keep: bool,
    /// Run the agents without the right to load eBPF programs.
    pub without_bpf: bool,
    /// Where weir-controller and weir-agent are.
    pub bin_dir: PathBuf,
    /// Where the figures go.
    pub out: PathBuf,
}

/// Runs the demo. Whatever happens, nothing of it is left unless `keep` was asked for.
///
/// # Errors
/// Says what is missing, what failed, or why the collective did not become faster.
pub fn demo(spec: &DemoSpec) -> Result<()> {
    let found = preflight();
    for notice in &found.notices {
        output::say(&format!("note: {notice}"));
    }
    ensure!(
        found.missing.is_empty(),
        "cannot run here:\n  {}",
        found.missing.join("\n  ")
    );

    let mut progress = Progress::new();
    progress.set(
        Row::Phase,
        "building the fabric: 2 leaves, 2 spines, 8 hosts, 200 Mbit/s",
    );
    let fabric = Fabric::up(FabricSpec::default())?;
    let order = fabric.spec().interleaved_hosts();
    fabric.place(Placement::Collision, &ring_pairs(&order))?;
    let baseline = fabric.snapshot()?;
    let mut run = Run::start(spec, &fabric, order, progress)?;
    let outcome = run.measure(&fabric, &baseline);
    run.progress.finish();
    if run.report.busbw_before_mbps.is_some() {
        output::say(&format!(
            "\n{}\n{}",
            run.report.table(),
            run.report.stages()
        ));
    }
    run.report.write(&spec.out)?;
    outcome?;
    if let Some(reason) = run.report.failure() {
        bail!("{reason}");
    }
    if spec.keep {
        return run.keep(fabric);
    }
    run.job.stop()?;
    run.stack.stop()?;
    drop(run);
    fabric.down()
}

/// A demo under way. Fields are dropped in this order: the job before the stack.
struct Run {
    job: Job,
    stack: Stack,
    started: Instant,
    started_at_s: f64,
    report: Report,
    progress: Progress,
}

impl Run {
    fn start(
        spec: &DemoSpec,
        fabric: &Fabric,
        order: Vec<String>,
        mut progress: Progress,
    ) -> Result<Self> {
        progress.set(Row::Phase, "starting one controller and twelve agents");
        let stack = StackSpec {
            bpf: !spec.without_bpf,
            ..StackSpec::new(&spec.bin_dir)
        };
        let mut stack = Stack::start(fabric, &stack)?;
        stack.wait_ready(READY_DEADLINE)?;
        for ((source, reason), nodes) in stack.status()?.sources_down() {
            progress.note(&format!(
                "note: {source} gives nothing on {}: {reason}",
                nodes.join(", ")
            ));
        }
        progress.set(
            Row::Phase,
            "starting the all-reduce: 8 ranks, ring, every step crosses the spines",
        );
        let (started, started_at_s) = (Instant::now(), epoch_s());
        let job = Job::start(
            fabric,
            JobSpec {
                order,
                bytes: JOB_BYTES,
                iterations: None,
                time_limit: None,
                compute_ms: 0,
            },
        )?;
        Ok(Self {
            job,
            stack,
            started,
            started_at_s,
            report: Report::default(),
            progress,
        })
    }

    fn measure(&mut self, fabric: &Fabric, baseline: &Snapshot) -> Result<()> {
        self.job.wait_for_iterations(1, JOB_DEADLINE)?;
        self.report.job_start_to_first_iteration_s = Some(self.started.elapsed().as_secs_f64());
        self.progress
            .set(Row::Phase, "the job runs; waiting for a verdict");
        let (decided, applied_at_s) = self.watch_trial()?;
        self.report.rolled_back = decided == LeaseState::Ended;
        let before: Vec<Iteration> = self
            .job
            .iterations()
            .into_iter()
            // The first iteration opens the connections.
            .filter(|it| it.i > 0 && it.ended_at_s <= applied_at_s)
            .collect();
        self.report.busbw_before_mbps = self.busbw(&before);
        self.report.job_start_to_change_s = Some(applied_at_s - self.started_at_s);
        if decided == LeaseState::Ended {
            return Ok(());
        }
        self.progress
            .set(Row::Phase, "the change is kept; measuring");
        self.report.busbw_after_mbps = Some(self.measure_now()?);

        self.progress.set(
            Row::Phase,
            "for comparison: freezing weir, setting routes by hand, measuring",
        );
        self.stack
            .http_post("/api/v1/freeze", &json!({"reason": "demo: comparison"}))?;
        self.wait_for_baseline(fabric, baseline)?;
        fabric.pin_collision_free(&self.job.pairs())?;
        self.report.busbw_collision_free_mbps = Some(self.measure_now()?);
        for (_, dst) in self.job.pairs() {
            let other = if crate::plan::leaf_of(&dst) == "l1" {
                "l2"
            } else {
                "l1"
            };
            fabric.unpin(other, &dst)?;
        }
        self.progress.set(Row::Phase, "done");
        Ok(())
    }

    /// Shows what the controller says until it has kept a change or taken one back.
    fn watch_trial(&mut self) -> Result<(LeaseState, f64)> {
        let deadline = Instant::now() + TRIAL_DEADLINE;
        let mut seen_applied_s = None;
        loop {
            self.check()?;
            self.show_links()?;
            let leases = self.stack.leases()?;
            // The newest lease is the one under way; before there is one, the oldest open incident matters.
            let lease = leases.last();
            let incidents = self.stack.incidents()?;
            let concerned = incidents
                .iter()
                .find(|i| lease.map_or(i.state == "open", |l| l.incident == i.id));
            if let Some(incident) = concerned {
                self.show_incident(incident);
            }
            if let Some(lease) = lease {
                self.show_lease(lease);
                let stage = lease.stage();
                if stage == LeaseState::Holding && seen_applied_s.is_none() {
                    seen_applied_s = Some(epoch_s());
                    self.progress
                        .set(Row::Phase, "changed; comparing iterations before and after");
                }
                if matches!(stage, LeaseState::Committed | LeaseState::Ended) {
                    self.note_timeline(lease);
                    let first = leases.iter().find_map(|l| l.timeline.applied_at);
                    let reason = lease.reason.clone().unwrap_or_default();
                    let applied = first
                        .or(seen_applied_s)
                        .with_context(|| format!("nothing was changed: {reason}"))?;
                    return Ok((stage, applied));
                }
            }
            ensure!(
                Instant::now() < deadline,
                "no change was kept or taken back within {TRIAL_DEADLINE:?}; the controller's log ends:\n{}",
                self.stack.log_tail(crate::stack::CONTROLLER)
            );
            thread::sleep(POLL);
        }
    }

    fn note_timeline(&mut self, lease: &Lease) {
        let since_start = |at: Option<f64>| at.map(|at| at - self.started_at_s);
        let timeline = &lease.timeline;
        self.report.job_start_to_job_seen_s = since_start(timeline.job_seen_at);
        self.report.job_start_to_verdict_s = since_start(timeline.opened_at);
        self.report.job_start_to_lease_s = since_start(timeline.proposed_at);
    }

    /// Measures the running job from the next whole iteration on.
    fn measure_now(&mut self) -> Result<f64> {
        // The one under way began before; the one after may still meet queues of the old routes.
        let skip = self.job.iterations().len() + 2;
        let deadline = Instant::now() + JOB_DEADLINE;
        loop {
            self.check()?;
            self.show_links()?;
            let iterations = self.job.iterations();
            if let Some(measured) = iterations
                .get(skip..)
                .filter(|m| m.len() >= MEASURED_ITERATIONS)
            {
                return self.busbw(measured).context("no iterations");
            }
            ensure!(
                Instant::now() < deadline,
                "the job stands still:\n{}",
                self.job.log_tail()
            );
            thread::sleep(POLL);
        }
    }

    /// Waits until the leases have put the routes back.
    fn wait_for_baseline(&mut self, fabric: &Fabric, baseline: &Snapshot) -> Result<()> {
        let deadline = Instant::now() + BASELINE_DEADLINE;
        loop {
            self.check()?;
            let differs: Vec<String> = baseline.diff(&fabric.snapshot()?);
            // Agents may hold filters of their own while they run; routes and nexthops must be back.
            let routes: Vec<&String> = differs
                .iter()
                .filter(|l| !l[2..].contains(" tc "))
                .collect();
            if routes.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "frozen, but after {BASELINE_DEADLINE:?} the routes are not what they were: {routes:?}"
            );
            thread::sleep(POLL);
        }
    }

    fn check(&mut self) -> Result<()> {
        ensure!(!sys::stop_requested(), "stopped by a signal");
        self.stack.check_running()?;
        ensure!(
            self.job.is_running(),
            "the job ended:\n{}",
            self.job.log_tail()
        );
        self.show_job();
        Ok(())
    }

    fn busbw(&self, iterations: &[Iteration]) -> Option<f64> {
        median_seconds(iterations).map(|seconds| self.job.busbw_mbps(seconds))
    }

    fn show_job(&mut self) {
        let iterations = self.job.iterations();
        let Some(last) = iterations.last() else {
            return;
        };
        let ranks = self.job.pairs().len();
        let speeds: Vec<f64> = iterations
            .iter()
            .map(|i| busbw_mbps(ranks, JOB_BYTES, i.seconds))
            .collect();
        let speed = self.job.busbw_mbps(last.seconds);
        let figures = format!(
            "{speed:5.1} Mbit/s  {:.2} s  iteration {}",
            last.seconds, last.i
        );
        if self.progress.is_live() {
            self.progress
                .set(Row::Job, &format!("{figures}  {}", sparkline(&speeds)));
        } else {
            self.progress.set(Row::Job, &figures);
        }
    }

    fn show_links(&mut self) -> Result<()> {
        let links = self.stack.links()?;
        let uplinks: Vec<String> = links
            .iter()
            .filter(|link| link.id.starts_with('l') && link.id.contains(":up"))
            .map(show_link)
            .collect();
        self.progress.set_live(Row::Links, &uplinks.join("   "));
        if let Some(hot) = links.iter().find(|link| link.hot)
            && !self.progress.is_live()
            && self.report.verdict_class.is_none()
        {
            self.progress.set(Row::Links, &format!("{} is hot", hot.id));
        }
        Ok(())
    }

    fn show_incident(&mut self, incident: &Incident) {
        self.report.verdict_class = Some(incident.class.clone());
        let confidence = incident
            .confidence
            .map_or_else(String::new, |c| format!(", confidence {c:.2}"));
        self.progress.set(
            Row::Verdict,
            &format!(
                "{} on {}{confidence} ({})",
                incident.class, incident.entity, incident.state
            ),
        );
        let evidence: Vec<String> = incident
            .evidence
            .iter()
            .map(|e| format!("{} {}", e.what, api::plain(&e.value)))
            .collect();
        self.progress.set(Row::Evidence, &evidence.join("; "));
    }

    fn show_lease(&mut self, lease: &Lease) {
        let reason = lease.reason.as_deref().filter(|r| !r.is_empty());
        let reason = reason.map_or_else(String::new, |r| format!(": {r}"));
        self.progress.set(
            Row::Lease,
            &format!(
                "{} {} on {}{reason}",
                api::plain(&lease.id),
                lease.state,
                lease.node_names()
            ),
        );
        self.progress.set(Row::Change, &lease.changes.join("; "));
    }

    fn keep(self, fabric: Fabric) -> Result<()> {
        let Self { job, stack, .. } = self;
        let (name, ctl) = (fabric.name().to_owned(), fabric.namespace("ctl"));
        stack.http_post("/api/v1/unfreeze", &json!({}))?;
        let dir = fabric.temp_dir().display().to_string();
        let bin = std::env::current_exe().context("own path")?;
        let bin = bin.display();
        job.keep();
        stack.keep();
        fabric.keep()?;
        output::say(&format!(
            "left running as lab {name}\n\
             \x20 API and metrics  ip netns exec {ctl} curl http://127.0.0.1:9743/api/v1/status\n\
             \x20 agent's metrics  ip netns exec weir-{name}-h11 curl http://127.0.0.1:9741/metrics\n\
             \x20 logs, configs    {dir}\n\
             \x20 remove it        {bin} down {name}"
        ));
        Ok(())
    }
}

fn show_link(link: &Link) -> String {
    let from = link.id.split("->").next().unwrap_or(&link.id);
    let percent = link
        .utilisation
        .map_or_else(|| "  -".into(), |u| format!("{:3.0}%", u * 100.0));
    format!("{from} {percent}{}", if link.hot { " HOT" } else { "" })
}

fn epoch_s() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}
