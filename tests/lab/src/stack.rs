//! The product on the fabric: one controller and one agent in each node, as processes in its namespace.
//!
//! Configs, state and logs are in the lab's directory, below `stack/PROCESS`. Processes enter their network
//! namespace and nothing else, so /sys (cgroups, BTF) is the machine's own.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    api,
    fabric::Fabric,
    http,
    plan::{CONTROLLER_ADDRESS, Role},
    sys::{self, Signal},
};

/// Name of the controller among the processes; an agent has its node's name.
pub const CONTROLLER: &str = "controller";
const GRPC_PORT: u16 = 9742;
const HTTP_PORT: u16 = 9743;
const METRICS_PORT: u16 = 9741;
/// Twelve agents load their eBPF programs one after the other on two cores.
pub const READY_DEADLINE: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(50);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// What agents may do in the lab unless a test says otherwise.
pub const LIMITS_YAML: &str = "routes:\n  allow: true\n  max_pins: 64\n  prefixes: [\"10.0.0.0/8\"]\n  groups: [100]\nmax_lease: \"60s\"\n";

/// Where tests find the daemons: the release build, or `WEIR_BIN_DIR`.
///
/// # Panics
/// They are not there.
#[must_use]
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("WEIR_BIN_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release")),
        PathBuf::from,
    );
    assert!(
        dir.join("weir-agent").exists(),
        "no weir-agent in {}: cargo build --release, or set WEIR_BIN_DIR",
        dir.display()
    );
    dir
}

/// How to run the product.
#[derive(Debug, Clone)]
pub struct StackSpec {
    /// Where weir-controller and weir-agent are.
    pub bin_dir: PathBuf,
    /// act, advise or observe.
    pub mode: String,
    /// Directory where the controller records what it ingests, if it shall.
    pub record: Option<PathBuf>,
    /// The agents' limits file.
    pub limits_yaml: String,
    /// Limits file of single nodes, in the place of `limits_yaml`.
    pub limits_yaml_of: BTreeMap<String, String>,
    /// Appended to the controller's config.
    pub controller_yaml_extra: String,
    /// Appended to each agent's config.
    pub agent_yaml_extra: String,
    /// False to run the agents without the right to load eBPF programs.
    pub bpf: bool,
    /// How often agents sample, such as `1s`.
    pub sample_interval: String,
    /// How long agents hold a change without hearing of the controller, such as `3s`.
    pub lease_ttl: String,
}

impl StackSpec {
    /// The defaults of the demo, with programs from `bin_dir`.
    #[must_use]
    pub fn new(bin_dir: impl Into<PathBuf>) -> Self {
        Self {
            bin_dir: bin_dir.into(),
            mode: "act".into(),
            record: None,
            limits_yaml: LIMITS_YAML.into(),
            limits_yaml_of: BTreeMap::new(),
            controller_yaml_extra: String::new(),
            agent_yaml_extra: String::new(),
            bpf: true,
            sample_interval: "1s".into(),
            lease_ttl: "3s".into(),
        }
    }
}

/// One process of the stack.
#[derive(Debug)]
struct Member {
    program: PathBuf,
    namespace: String,
    dir: PathBuf,
    /// May load eBPF programs.
    bpf: bool,
    child: Option<Child>,
}

impl Member {
    fn start(&mut self) -> Result<()> {
        let log = self.dir.join("log");
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .with_context(|| format!("open {}", log.display()))
        };
        let mut command = if self.bpf {
            sys::command_in(&self.namespace, &self.program)?
        } else {
            let mut command = sys::command_in(&self.namespace, "setpriv")?;
            command
                .args(["--bounding-set", "-bpf,-perfmon,-sys_admin", "--"])
                .arg(&self.program);
            command
        };
        let child = command
            .args(["run", "--config"])
            .arg(self.dir.join("config.yaml"))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        sys::prefer(child.id())?;
        self.child = Some(child);
        Ok(())
    }

    fn wait(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = child.try_wait().context("wait")? {
                self.child = None;
                return Ok(Some(status));
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not end",
                self.program.display()
            );
            thread::sleep(POLL);
        }
    }
}

/// The running product; dropping it ends it.
#[derive(Debug)]
pub struct Stack {
    members: BTreeMap<String, Member>,
    ctl: String,
}

impl Stack {
    /// Writes the configs and starts controller and agents; does not wait for them (see [`Self::wait_ready`]).
    ///
    /// # Errors
    /// When a program is missing or cannot be started.
    pub fn start(fabric: &Fabric, spec: &StackSpec) -> Result<Self> {
        let mut stack = Self {
            members: BTreeMap::new(),
            ctl: fabric.namespace("ctl"),
        };
        let root = fabric.temp_dir().join("stack");
        let topology = root.join("topology.yaml");
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        write(&topology, &fabric.topology_yaml())?;
        let config = controller_yaml(spec, &topology, &root.join(CONTROLLER));
        stack.add(
            CONTROLLER,
            spec,
            &root,
            "weir-controller",
            &stack.ctl.clone(),
            &config,
        )?;
        for (node, role) in fabric.nodes() {
            let dir = root.join(&node);
            let config = agent_yaml(spec, &node, role, &dir);
            stack.add(
                &node,
                spec,
                &root,
                "weir-agent",
                &fabric.namespace(&node),
                &config,
            )?;
            let limits = spec.limits_yaml_of.get(&node).unwrap_or(&spec.limits_yaml);
            write(&dir.join("limits.yaml"), limits)?;
        }
        for member in stack.members.values_mut() {
            member.start()?;
        }
        Ok(stack)
    }

    fn add(
        &mut self,
        name: &str,
        spec: &StackSpec,
        root: &Path,
        program: &str,
        namespace: &str,
        config: &str,
    ) -> Result<()> {
        let dir = root.join(name);
        let state = dir.join("state");
        fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
        write(&dir.join("config.yaml"), config)?;
        let program = spec.bin_dir.join(program);
        ensure!(
            program.is_file(),
            "{} is not there: cargo build",
            program.display()
        );
        // The process runs in its own directory.
        let program =
            fs::canonicalize(&program).with_context(|| format!("find {}", program.display()))?;
        let member = Member {
            program,
            namespace: namespace.to_owned(),
            dir,
            bpf: spec.bpf,
            child: None,
        };
        self.members.insert(name.to_owned(), member);
        Ok(())
    }

    /// Waits until the controller answers and every agent is connected.
    ///
    /// # Errors
    /// When a process ends, the time is up, or the user wants to stop; shows the log's last lines.
    pub fn wait_ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let agents = self.members.len() - 1;
        loop {
            let up = self.status().map(|status| status.nodes_up());
            if matches!(up, Ok(up) if up >= agents) {
                return Ok(());
            }
            self.check_running()?;
            ensure!(!sys::stop_requested(), "stopped by a signal");
            if Instant::now() > deadline {
                let up =
                    up.map_or_else(|e| format!("{e:#}"), |n| format!("{n} of {agents} agents"));
                bail!(
                    "the stack is not ready after {within:?}: {up}\n{}",
                    self.log_tail(CONTROLLER)
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Fails if a process has ended that nobody ended.
    ///
    /// # Errors
    /// Names the process and shows its log's last lines.
    pub fn check_running(&mut self) -> Result<()> {
        for (name, member) in &mut self.members {
            if let Some(child) = &mut member.child
                && let Some(status) = child.try_wait().context("wait")?
            {
                member.child = None;
                bail!(
                    "{name} ended ({status}):\n{}",
                    tail(&member.dir.join("log"))
                );
            }
        }
        Ok(())
    }

    /// Ends one process (`controller`, or a node's agent) with SIGKILL.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.end(name, Signal::Kill).map(drop)
    }

    /// Ends one process with SIGTERM and returns its exit code.
    ///
    /// # Errors
    /// When there is no such process, or it does not end.
    pub fn terminate(&mut self, name: &str) -> Result<i32> {
        let status = self.end(name, Signal::Terminate)?;
        Ok(status
            .code()
            .or_else(|| status.signal().map(|s| 128 + s))
            .unwrap_or(-1))
    }

    fn end(&mut self, name: &str, signal: Signal) -> Result<ExitStatus> {
        let pid = self.pid(name)?;
        sys::signal_process(pid, signal)?;
        let status = self
            .member(name)?
            .wait(STOP_DEADLINE)
            .context(name.to_owned())?;
        status.with_context(|| format!("{name} had ended before"))
    }

    /// Starts a process again that was ended; its state directory and log are the ones it had.
    ///
    /// # Errors
    /// When it still runs, or cannot be started.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let member = self.member(name)?;
        ensure!(member.child.is_none(), "{name} still runs");
        member.start()
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let child = self.members.get(name).and_then(|m| m.child.as_ref());
        Ok(child.with_context(|| format!("{name} does not run"))?.id())
    }

    /// The directory of a process: config.yaml, limits.yaml, state, log.
    #[must_use]
    pub fn dir(&self, name: &str) -> Option<&Path> {
        self.members.get(name).map(|m| m.dir.as_path())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, name: &str) -> String {
        self.dir(name)
            .map(|dir| tail(&dir.join("log")))
            .unwrap_or_default()
    }

    fn member(&mut self, name: &str) -> Result<&mut Member> {
        self.members
            .get_mut(name)
            .with_context(|| format!("there is no {name}"))
    }

    /// `GET` of the controller's API; `path` begins with a slash.
    ///
    /// # Errors
    /// When it does not answer with 2xx and JSON.
    pub fn http_get(&self, path: &str) -> Result<Value> {
        http::get(&self.ctl, &controller_url(path))
    }

    /// `POST` to the controller's API.
    ///
    /// # Errors
    /// As [`Self::http_get`].
    pub fn http_post(&self, path: &str, body: &Value) -> Result<Value> {
        http::post(&self.ctl, &controller_url(path), body)
    }

    /// `GET` of a text, such as `/metrics`, from an agent or the controller.
    ///
    /// # Errors
    /// When it does not answer with 2xx.
    pub fn http_text(&self, name: &str, path: &str) -> Result<String> {
        let member = self.members.get(name);
        let member = member.with_context(|| format!("there is no {name}"))?;
        let port = if name == CONTROLLER {
            HTTP_PORT
        } else {
            METRICS_PORT
        };
        http::get_text(&member.namespace, &format!("http://127.0.0.1:{port}{path}"))
    }

    /// The controller's view of nodes and jobs.
    ///
    /// # Errors
    /// As [`Self::http_get`].
    pub fn status(&self) -> Result<api::Status> {
        serde_json::from_value(self.http_get("/api/v1/status")?).context("status")
    }

    /// Each direction of each link.
    ///
    /// # Errors
    /// As [`Self::http_get`].
    pub fn links(&self) -> Result<Vec<api::Link>> {
        api::list(self.http_get("/api/v1/links")?, "links").context("links")
    }

    /// Verdicts, open and past, the oldest first.
    ///
    /// # Errors
    /// As [`Self::http_get`].
    pub fn incidents(&self) -> Result<Vec<api::Incident>> {
        api::list(self.http_get("/api/v1/incidents")?, "incidents").context("incidents")
    }

    /// Leases, live and past, the oldest first.
    ///
    /// # Errors
    /// As [`Self::http_get`].
    pub fn leases(&self) -> Result<Vec<api::Lease>> {
        api::list(self.http_get("/api/v1/leases")?, "leases").context("leases")
    }

    /// Ends every process in good order; agents first put their baselines back.
    ///
    /// # Errors
    /// When one of them had to be killed.
    pub fn stop(&mut self) -> Result<()> {
        for member in self.members.values_mut() {
            if let Some(child) = &member.child {
                sys::signal_process(child.id(), Signal::Terminate)?;
            }
        }
        let mut stuck = Vec::new();
        for (name, member) in &mut self.members {
            if member.wait(STOP_DEADLINE).is_err()
                && let Some(child) = &mut member.child
            {
                stuck.push(name.clone());
                sys::signal_process(child.id(), Signal::Kill)?;
                child.wait().context("wait")?;
                member.child = None;
            }
        }
        ensure!(stuck.is_empty(), "{stuck:?} did not end on SIGTERM");
        Ok(())
    }

    /// Leaves every process running when this value is dropped; they go with the fabric.
    pub fn keep(mut self) {
        for member in self.members.values_mut() {
            member.child = None;
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::output::warn(&format!("the stack: {error:#}"));
        }
    }
}

fn controller_url(path: &str) -> String {
    format!("http://127.0.0.1:{HTTP_PORT}{path}")
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn controller_yaml(spec: &StackSpec, topology: &Path, dir: &Path) -> String {
    let record = spec.record.as_ref().map_or_else(String::new, |path| {
        format!("record: {{directory: \"{}\"}}\n", path.display())
    });
    format!(
        "listen_grpc: \"{CONTROLLER_ADDRESS}:{GRPC_PORT}\"\nlisten_http: \"0.0.0.0:{HTTP_PORT}\"\n\
         topology: \"{}\"\nstate_dir: \"{}\"\nmode: {}\nallow_plaintext: true\nlease: {{ttl: \"{}\"}}\n{record}{}\n",
        topology.display(),
        dir.join("state").display(),
        spec.mode,
        spec.lease_ttl,
        spec.controller_yaml_extra
    )
}

/// No probes: twelve agents that probe each other share two cores with the job that is measured.
fn agent_yaml(spec: &StackSpec, node: &str, role: Role, dir: &Path) -> String {
    let role = match role {
        Role::Host => "host",
        Role::Leaf | Role::Spine => "switch",
    };
    format!(
        "node: {node}\nrole: {role}\ncontroller: \"http://{CONTROLLER_ADDRESS}:{GRPC_PORT}\"\n\
         listen_metrics: \"0.0.0.0:{METRICS_PORT}\"\nstate_dir: \"{}\"\nlimits: \"{}\"\nsample_interval: \"{}\"\n\
         bpf: {{netns_filter: true}}\ncollectors: {{probe: false}}\n{}\n",
        dir.join("state").display(),
        dir.join("limits.yaml").display(),
        spec.sample_interval,
        spec.agent_yaml_extra
    )
}
