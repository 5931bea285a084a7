//! `weir`, the operator's command: tables for people, `--json` for programs, all through the API.

mod replay;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;
use weir_common::program::{arguments, said};

/// Ask and steer a Weir controller.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about)]
struct Args {
    /// Address of the controller's HTTP API.
    #[arg(
        long,
        global = true,
        env = "WEIR_CONTROLLER",
        default_value = "http://127.0.0.1:9743"
    )]
    controller: String,
    /// Print the API's JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Nodes, jobs, and where the topology file and the agents disagree.
    Status,
    /// Load of every directed link, the busiest first.
    Links,
    /// What was found, newest first.
    Incidents,
    /// What the nodes saw happen, newest first: XIDs, lost GPUs, NIC faults, links that went down.
    Events,
    /// Round trips and loss between nodes, as the agents' probes see them, the worst first.
    Probes,
    /// All that is known of one incident: evidence, alternatives rejected, what was done, before and after.
    Explain {
        /// Such as I1; see `weir incidents`.
        id: String,
    },
    /// Changes on trial, kept or given back.
    Leases,
    /// Forbid every change and return what is changed to its baseline. Holds over restarts.
    Freeze,
    /// Allow changes again.
    Unfreeze,
    /// Try a change by hand, under a lease: kept if the job becomes faster, rolled back if not.
    Trial {
        /// The job that judges it; see `weir status`.
        #[arg(long)]
        job: String,
        /// NODE:DESTINATION=PORT, such as l1:10.2.1.2=up2. May be given several times.
        #[arg(long = "pin", required = true, value_parser = parse_pin)]
        pins: Vec<Value>,
    },
    /// Rebuild what a flight recording led to, and compare it with what was done: 0 the same, 1 different, 2 parts
    /// are missing. `--config` shows what another configuration would have led to. Needs no controller.
    Replay(replay::Args),
    /// End a lease: its routes return to the baseline.
    End {
        /// Number of the lease; see `weir leases`.
        lease: u64,
    },
}

fn parse_pin(text: &str) -> Result<Value, String> {
    let expected = "write NODE:DESTINATION=PORT, such as l1:10.2.1.2=up2";
    let (node, rest) = text.split_once(':').ok_or(expected)?;
    let (dst, port) = rest.split_once('=').ok_or(expected)?;
    let dst: std::net::Ipv4Addr = dst
        .parse()
        .map_err(|_| format!("{dst:?} is no IPv4 address: {expected}"))?;
    if node.is_empty() || port.is_empty() {
        return Err(expected.into());
    }
    Ok(json!({ "node": node, "dst": dst, "port": port }))
}

struct Api {
    agent: ureq::Agent,
    base: String,
}

impl Api {
    fn new(base: &str) -> Api {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        Api {
            agent: config.into(),
            base: base_url(base),
        }
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        let response = self.agent.get(&url).call();
        self.answer(&url, response)
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        let response = self.agent.post(&url).send_json(body);
        self.answer(&url, response)
    }

    fn answer(
        &self,
        url: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<Value> {
        let mut response = response.with_context(|| format!("no answer from {url}; is the controller up, and is --controller (or WEIR_CONTROLLER) right?"))?;
        let status = response.status();
        let text = response
            .body_mut()
            .read_to_string()
            .with_context(|| format!("reading the answer of {url}"))?;
        if !status.is_success() {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            bail!(
                "{}",
                value["error"]
                    .as_str()
                    .map_or_else(|| format!("{url} answered {status}: {text}"), str::to_owned)
            );
        }
        serde_json::from_str(&text)
            .with_context(|| format!("{url} did not answer with JSON; is it a Weir controller?"))
    }
}

/// `HOST:PORT` is meant as `http://HOST:PORT`.
fn base_url(text: &str) -> String {
    let text = text.trim_end_matches('/');
    if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    }
}

fn main() -> ExitCode {
    let args: Args = match arguments() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let (text, code) = match run(&args) {
        Ok(done) => done,
        Err(error) => {
            let written = writeln!(std::io::stderr(), "weir: {}", said(&error));
            drop(written);
            return replay::failure(&error);
        }
    };
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Ok(()) => code,
        // The reader of a pipe went away: nothing more to say.
        Err(_) => ExitCode::FAILURE,
    }
}

/// The text to print, and the code to end with.
fn run(args: &Args) -> anyhow::Result<(String, ExitCode)> {
    let api = Api::new(&args.controller);
    let nothing = json!({});
    let (value, show): (Value, fn(&Value) -> String) = match &args.command {
        Command::Status => {
            let answer = api.get("/api/v1/status")?;
            // Another server's JSON would read as "not frozen".
            if !answer["mode"].is_string() || !answer["frozen"].is_boolean() {
                bail!(
                    "{} is no Weir controller; is --controller (or WEIR_CONTROLLER) right?",
                    api.base
                );
            }
            (answer, status)
        }
        Command::Links => (api.get("/api/v1/links")?, links),
        Command::Incidents => (api.get("/api/v1/incidents")?, incidents),
        Command::Events => (api.get("/api/v1/events")?, events),
        Command::Probes => (api.get("/api/v1/probes")?, probes),
        Command::Explain { id } => (explained(&api, id)?, explain),
        Command::Leases => (api.get("/api/v1/leases")?, leases),
        Command::Freeze => (api.post("/api/v1/freeze", &nothing)?, |_| {
            "frozen: nothing is changed, leases end at their baseline".into()
        }),
        Command::Unfreeze => (api.post("/api/v1/unfreeze", &nothing)?, |_| {
            "unfrozen".into()
        }),
        Command::Trial { job, pins } => (
            api.post("/api/v1/trials", &json!({ "job": job, "pins": pins }))?,
            |v| format!("lease {} is on trial: weir leases", v["lease"]),
        ),
        Command::End { lease } => (
            api.post(&format!("/api/v1/leases/{lease}/end"), &nothing)?,
            |v| format!("lease {} ends", v["lease"]),
        ),
        Command::Replay(replay) => return replay::run(replay, args.json),
    };
    let text = if args.json {
        serde_json::to_string_pretty(&value)?
    } else {
        show(&value)
    };
    Ok((text, ExitCode::SUCCESS))
}

fn explained(api: &Api, id: &str) -> anyhow::Result<Value> {
    let incidents = api.get("/api/v1/incidents")?;
    let found = rows(&incidents)
        .iter()
        .find(|i| i["id"].as_str() == Some(id))
        .cloned();
    let Some(incident) = found else {
        let known: Vec<&str> = rows(&incidents)
            .iter()
            .filter_map(|i| i["id"].as_str())
            .collect();
        let known = if known.is_empty() {
            "there are none".to_owned()
        } else {
            format!("there are {}", known.join(", "))
        };
        bail!("no incident {id}; {known}");
    };
    let leases = api.get("/api/v1/leases")?;
    let leases: Vec<&Value> = rows(&leases)
        .iter()
        .filter(|l| l["incident"].as_str() == Some(id))
        .collect();
    Ok(json!({ "incident": incident, "leases": leases }))
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(
        || {
            if value.is_null() {
                "-".into()
            } else {
                value.to_string()
            }
        },
        str::to_owned,
    )
}

fn events(value: &Value) -> String {
    if rows(value).is_empty() {
        return "nothing happened since the controller started".into();
    }
    let mut table = table(&["at (UTC)", "node", "severity", "subject", "what", "to do"]);
    for event in rows(value) {
        table.add_row([
            clock(&event["at"]),
            text(&event["node"]),
            text(&event["severity"]),
            text(&event["subject"]),
            text(&event["text"]),
            text(&event["action"]),
        ]);
    }
    table.to_string()
}

fn list(value: &Value) -> String {
    rows(value).iter().map(text).collect::<Vec<_>>().join(", ")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// Seconds since 1970 as the time of day, in UTC.
fn clock(value: &Value) -> String {
    value.as_f64().map_or_else(
        || "-".into(),
        |at| {
            let of_day = at.rem_euclid(86_400.0);
            format!(
                "{:02.0}:{:02.0}:{:05.2}",
                (of_day / 3600.0).floor(),
                (of_day / 60.0).floor() % 60.0,
                of_day % 60.0
            )
        },
    )
}

fn percent(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".into(), |v| format!("{:.0} %", v * 100.0))
}

fn mbps(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".into(), |v| format!("{:.1}", v / 1e6))
}

fn status(v: &Value) -> String {
    let frozen = if v["frozen"] == json!(true) {
        "FROZEN: nothing is changed (weir unfreeze)"
    } else {
        "not frozen"
    };
    let mut out = format!(
        "mode {}, {frozen}, up {:.0} s, {} open incidents, {} live leases\n",
        text(&v["mode"]),
        v["uptime_s"].as_f64().unwrap_or(0.0),
        v["incidents_open"],
        v["leases_live"]
    );
    let mut nodes = table(&["node", "role", "agent", "sources down"]);
    for n in rows(&v["nodes"]) {
        let down: Vec<String> = rows(&n["sources"])
            .iter()
            .filter(|s| s["up"] != json!(true))
            .map(|s| format!("{}: {}", text(&s["name"]), text(&s["reason"])))
            .collect();
        nodes.add_row([
            text(&n["name"]),
            text(&n["role"]),
            if n["up"] == json!(true) { "up" } else { "LOST" }.into(),
            down.join("; "),
        ]);
    }
    out += &format!("{nodes}\n");
    let mut jobs = table(&["job", "ranks", "iterations of", "newest s", "busbw Mbit/s"]);
    for j in rows(&v["jobs"]) {
        let figure = |key: &str| {
            j[key]
                .as_f64()
                .map_or_else(|| "-".into(), |x| format!("{x:.3}"))
        };
        jobs.add_row([
            text(&j["key"]),
            match rows(&j["servers"]) {
                [] => text(&j["ranks"]),
                servers => format!("? on {} servers", servers.len()),
            },
            text(&j["measured_on"]),
            figure("iteration_s"),
            figure("busbw_mbps"),
        ]);
    }
    out += &format!("{jobs}\n");
    for finding in rows(&v["findings"]) {
        out += &format!("contradiction: {}\n", text(finding));
    }
    out
}

fn links(v: &Value) -> String {
    let mut sorted: Vec<&Value> = rows(v).iter().collect();
    sorted.sort_by(|a, b| {
        b["utilisation"]
            .as_f64()
            .unwrap_or(-1.0)
            .total_cmp(&a["utilisation"].as_f64().unwrap_or(-1.0))
    });
    let mut t = table(&[
        "link",
        "to",
        "Mbit/s",
        "used",
        "while busy",
        "queue bytes",
        "drops/s",
        "",
    ]);
    for l in sorted {
        let drops = l["drops_per_s"]
            .as_f64()
            .map_or_else(|| "-".into(), |d| format!("{d:.0}"));
        let hot = if l["hot"] == json!(true) { "HOT" } else { "" };
        t.add_row([
            format!("{}:{}", text(&l["node"]), text(&l["port"])),
            text(&l["peer"]),
            mbps(&l["tx_bps"]),
            percent(&l["utilisation"]),
            percent(&l["utilisation_busy"]),
            text(&l["queue_bytes"]),
            drops,
            hot.into(),
        ]);
    }
    t.to_string()
}

fn probes(v: &Value) -> String {
    if rows(v).is_empty() {
        return "no node probes another".into();
    }
    let mut t = table(&[
        "from",
        "to",
        "loss",
        "worst path",
        "RTT us",
        "p99 us",
        "host p99 us",
        "their host",
        "sent",
        "lost",
    ]);
    let end = |p: &Value, node: &str, port: &str| match text(&p[port]).as_str() {
        "" => text(&p[node]),
        port => format!("{}:{port}", text(&p[node])),
    };
    for p in rows(v) {
        let loss = |value: &Value| {
            value
                .as_f64()
                .map_or_else(|| "-".into(), |loss| format!("{:.2} %", loss * 100.0))
        };
        let us = |key: &str| {
            p[key]
                .as_f64()
                .map_or_else(|| "-".into(), |s| format!("{:.1}", s * 1e6))
        };
        let worst = &p["worst_path"];
        let worst = if worst["loss"].is_null() {
            "-".into()
        } else {
            format!("{} (path {})", loss(&worst["loss"]), text(&worst["path"]))
        };
        t.add_row([
            end(p, "source", "source_port"),
            end(p, "target", "target_port"),
            loss(&p["loss"]),
            worst,
            us("rtt_p50_s"),
            us("rtt_p99_s"),
            us("host_delay_s"),
            us("responder_delay_s"),
            text(&p["sent"]),
            text(&p["lost"]),
        ]);
    }
    t.to_string()
}

fn incidents(v: &Value) -> String {
    if rows(v).is_empty() {
        return "no incidents".into();
    }
    let mut t = table(&[
        "id",
        "class",
        "state",
        "entity",
        "job",
        "confidence",
        "lost",
        "follows from",
        "opened",
        "last action",
    ]);
    for i in rows(v).iter().rev() {
        let last = rows(&i["actions"])
            .last()
            .map_or_else(String::new, |a| text(&a["text"]));
        t.add_row([
            text(&i["id"]),
            text(&i["class"]),
            text(&i["state"]),
            text(&i["entity"]),
            text(&i["job"]),
            format!("{:.2}", i["confidence"].as_f64().unwrap_or(0.0)),
            percent(&i["lost_ratio"]),
            text(&i["root"]),
            clock(&i["opened_at"]),
            last,
        ]);
    }
    t.to_string()
}

fn explain(v: &Value) -> String {
    let i = &v["incident"];
    let mut out = format!(
        "{} {} on {} ({}, {}), confidence {:.2}\njob: {}\nlinks: {}\n",
        text(&i["id"]),
        text(&i["class"]),
        text(&i["entity"]),
        text(&i["severity"]),
        text(&i["state"]),
        i["confidence"].as_f64().unwrap_or(0.0),
        text(&i["job"]),
        list(&i["links"])
    );
    if let Some(lost) = i["lost_ratio"].as_f64() {
        let seconds = i["lost_s"].as_f64().unwrap_or(0.0);
        let percent = lost * 100.0;
        out += &format!("lost: {percent:.0} % of the job's time, {seconds:.0} s so far\n");
    }
    for (key, what) in [("root", "follows from"), ("action", "to do")] {
        if let Some(value) = i[key].as_str().filter(|v| !v.is_empty()) {
            out += &format!("{what}: {value}\n");
        }
    }
    out += "\nevidence\n";
    for e in rows(&i["evidence"]) {
        out += &format!("  {}: {}\n", text(&e["what"]), text(&e["value"]));
    }
    if !rows(&i["series"]).is_empty() {
        out += &format!("\nseries of {} (newest 10)\n", text(&i["entity"]));
    }
    for s in rows(&i["series"]).iter().rev().take(10).rev() {
        out += &format!(
            "  {}  used {:>5}  queue {:>8} bytes{}\n",
            clock(&s["at"]),
            percent(&s["utilisation"]),
            text(&s["queue_bytes"]),
            if s["hot"] == json!(true) { "  HOT" } else { "" }
        );
    }
    out += "\nwhat was done\n";
    for a in rows(&i["actions"]) {
        out += &format!("  {}  {}\n", clock(&a["at"]), text(&a["text"]));
    }
    for l in rows(&v["leases"]) {
        out += &format!(
            "\nlease {} ({}): {}\n",
            l["id"],
            text(&l["state"]),
            text(&l["reason"])
        );
        for change in rows(&l["changes"]) {
            out += &format!("  {}\n", text(change));
        }
        let seconds = |key: &str| {
            rows(&l[key])
                .iter()
                .filter_map(Value::as_f64)
                .map(|s| format!("{s:.3}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        out += &format!(
            "  iterations before (s): {}\n  iterations after  (s): {}\n",
            seconds("iterations_before_s"),
            seconds("iterations_after_s")
        );
    }
    out
}

fn leases(v: &Value) -> String {
    if rows(v).is_empty() {
        return "no leases".into();
    }
    let mut t = table(&[
        "lease", "state", "incident", "job", "changes", "nodes", "why",
    ]);
    for l in rows(v).iter().rev() {
        let nodes = rows(&l["nodes"])
            .iter()
            .map(|n| format!("{}: {}", text(&n["node"]), text(&n["state"])))
            .collect::<Vec<_>>()
            .join("\n");
        let changes = rows(&l["changes"])
            .iter()
            .map(text)
            .collect::<Vec<_>>()
            .join("\n");
        t.add_row([
            l["id"].to_string(),
            text(&l["state"]),
            text(&l["incident"]),
            text(&l["job"]),
            changes,
            nodes,
            text(&l["reason"]),
        ]);
    }
    t.to_string()
}
