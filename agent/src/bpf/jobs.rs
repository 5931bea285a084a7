//! Which job a process belongs to, and which process owns a connection.
//!
//! Launchers tell each process its job in the environment. The key is the same
//! on all hosts of the job, which is what lets the controller put its parts
//! together; a variable that is only unique per host would not do.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
};

use super::scan::start_time;

/// More connections than this of one namespace are not looked at.
const SOCKETS_MAX: usize = 65_536;

/// A longer key is cut: the controller refuses names of more than 255 bytes.
const KEY_BYTES_MAX: usize = 200;
/// A tick of USER_HZ, which is 100 on every architecture that we run on.
const TICK_NS: u64 = 10_000_000;

/// A process' place in its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobIdentity {
    /// The same for all processes of the job, on all hosts.
    pub key: String,
    /// `None` where the launcher does not say.
    pub rank: Option<u32>,
    /// Number of ranks; `None` where the launcher does not say.
    pub size: Option<u32>,
    /// The launcher's variable that the key comes from.
    pub source: &'static str,
}

/// Reads a process' job; `None` if it has gone, is not ours to read, or was
/// started by no launcher that is known.
#[must_use]
pub fn identify(pid: u32) -> Option<JobIdentity> {
    parse_identity(&fs::read(format!("/proc/{pid}/environ")).ok()?)
}

/// As [`identify`], for the process of that number that began `start_ns` after boot; another may have
/// its number by now. Without a start the number has to do.
#[must_use]
pub fn identify_process(pid: u32, start_ns: Option<u64>) -> Option<JobIdentity> {
    let job = identify(pid)?;
    let same = start_ns.is_none_or(|ns| start_time(pid) == Some(ns / TICK_NS));
    same.then_some(job)
}

/// Lists the processes that a launcher has told their job, in ascending order.
///
/// Reads every process' environment: for when something new is seen, not each second.
#[must_use]
pub fn job_pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| identify(*pid).is_some())
        .collect();
    pids.sort_unstable();
    pids
}

/// Finds a job in a process' environment (`NAME=value`, each ended by a zero byte).
///
/// A batch system's identity comes before a launcher's within it, that before
/// what a framework was told by hand.
#[must_use]
pub fn parse_identity(environ: &[u8]) -> Option<JobIdentity> {
    let env = Environment::parse(environ);
    let job = |source, key: String, rank: &[&str], size: &[&str]| JobIdentity {
        key: shortened(key),
        rank: env.number(rank),
        size: env.number(size),
        source,
    };
    const RANK: [&str; 5] = [
        "PMIX_RANK",
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
        "RANK",
        "SLURM_PROCID",
    ];
    const SIZE: [&str; 4] = [
        "OMPI_COMM_WORLD_SIZE",
        "PMI_SIZE",
        "WORLD_SIZE",
        "SLURM_NTASKS",
    ];
    if let Some(id) = env.get("SLURM_JOB_ID") {
        let key = match env.get("SLURM_STEP_ID") {
            // An allocation may run several launches, one after another or at once.
            Some(step) => format!("slurm:{id}.{step}"),
            None => format!("slurm:{id}"),
        };
        return Some(job("SLURM_JOB_ID", key, &RANK, &SIZE));
    }
    if let Some(namespace) = env.get("PMIX_NAMESPACE") {
        return Some(job(
            "PMIX_NAMESPACE",
            format!("pmix:{namespace}"),
            &RANK,
            &SIZE,
        ));
    }
    if let Some(id) = env.get("OMPI_MCA_ess_base_jobid") {
        return Some(job(
            "OMPI_MCA_ess_base_jobid",
            format!("ompi:{id}"),
            &RANK,
            &SIZE,
        ));
    }
    let meeting_point = env
        .get("MASTER_ADDR")
        .map(|addr| match env.get("MASTER_PORT") {
            Some(port) => format!("{addr}:{port}"),
            None => addr.to_owned(),
        });
    // torchrun's default run id is "none", the same for every job.
    if let Some(id) = env.get("TORCHELASTIC_RUN_ID").filter(|id| *id != "none") {
        return Some(job(
            "TORCHELASTIC_RUN_ID",
            format!("torch:{id}"),
            &["RANK"],
            &["WORLD_SIZE"],
        ));
    }
    if let Some(point) = meeting_point {
        return Some(job(
            "MASTER_ADDR",
            format!("torch:{point}"),
            &["RANK"],
            &["WORLD_SIZE"],
        ));
    }
    let id = env.get("PMI_JOBID").or_else(|| env.get("PMI_KVS"))?;
    Some(job(
        "PMI_JOBID",
        format!("pmi:{id}"),
        &["PMI_RANK"],
        &["PMI_SIZE"],
    ))
}

/// Anybody may set a variable to anything.
fn shortened(mut key: String) -> String {
    key.truncate(key.floor_char_boundary(KEY_BYTES_MAX));
    key
}

struct Environment<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Environment<'a> {
    fn parse(environ: &'a [u8]) -> Self {
        let pairs = environ
            .split(|byte| *byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='));
        Self(pairs.collect())
    }

    /// A variable that is set, and not to the empty string.
    fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, value)| *value)
            .filter(|value| !value.is_empty())
    }

    fn number(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| self.get(name)?.parse().ok())
    }
}

/// Says which of the given processes owns each TCP connection, by (local, remote).
///
/// A connection shared by several (a fork) goes to the lowest process number.
#[must_use]
pub fn socket_owners(pids: &[u32]) -> BTreeMap<(SocketAddr, SocketAddr), u32> {
    let mut owner_of_inode: BTreeMap<u64, u32> = BTreeMap::new();
    // One process per network namespace, to read that namespace's table by.
    let mut namespaces: BTreeMap<u64, u32> = BTreeMap::new();
    for pid in pids {
        if let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) {
            namespaces.entry(namespace.ino()).or_insert(*pid);
        }
        for inode in socket_inodes(*pid) {
            let owner = owner_of_inode.entry(inode).or_insert(*pid);
            *owner = (*owner).min(*pid);
        }
    }
    let mut owners = BTreeMap::new();
    for pid in namespaces.values() {
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            for line in text.lines().skip(1).take(SOCKETS_MAX) {
                if let Some((local, remote, inode)) = parse_socket(line)
                    && let Some(owner) = owner_of_inode.get(&inode)
                {
                    owners.insert((local, remote), *owner);
                }
            }
        }
    }
    owners
}

fn socket_inodes(pid: u32) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        // The process has ended.
        return Vec::new();
    };
    descriptors
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

/// A line of `/proc/net/tcp`: `sl local remote state queues timer retransmits uid timeout inode`.
fn parse_socket(line: &str) -> Option<(SocketAddr, SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = parse_end(fields.next()?)?;
    let remote = parse_end(fields.next()?)?;
    let inode = fields.nth(6)?.parse().ok()?;
    Some((local, remote, inode))
}

/// `0100007F:1F90`: the address as words of the machine's byte order, in hexadecimal.
fn parse_end(text: &str) -> Option<SocketAddr> {
    let (addr, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = addr.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match addr.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn check(environ: &str, expected: Option<(&str, Option<u32>, Option<u32>)>) {
        let environ = environ.replace(' ', "\0");
        let found = parse_identity(environ.as_bytes());
        let found = found
            .as_ref()
            .map(|job| (job.key.as_str(), job.rank, job.size));
        assert_eq!(found, expected, "{environ:?}");
    }

    #[test]
    fn a_job_is_known_by_its_launcher() {
        check("HOME=/root PATH=/bin", None);
        check(
            "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_NTASKS=8",
            Some(("slurm:7.0", Some(3), Some(8))),
        );
        check(
            "PMIX_NAMESPACE=123 PMIX_RANK=1 OMPI_COMM_WORLD_SIZE=4",
            Some(("pmix:123", Some(1), Some(4))),
        );
        check(
            "OMPI_MCA_ess_base_jobid=99 OMPI_COMM_WORLD_RANK=0",
            Some(("ompi:99", Some(0), None)),
        );
        check(
            "TORCHELASTIC_RUN_ID=none MASTER_ADDR=a MASTER_PORT=1 RANK=2 WORLD_SIZE=3",
            Some(("torch:a:1", Some(2), Some(3))),
        );
        check("MASTER_ADDR= RANK=x", None);
        check(
            &format!("MASTER_ADDR={}", "a".repeat(5000)),
            Some((
                &format!("torch:{}", "a".repeat(KEY_BYTES_MAX - 6)),
                None,
                None,
            )),
        );
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let child = std::process::Command::new("sleep")
            .arg("60")
            .env("SLURM_JOB_ID", "9")
            .env_remove("SLURM_STEP_ID")
            .spawn();
        let mut child = child.expect("sleep");
        let pid = child.id();
        // Until the child has executed its program, the environment is ours or none.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while identify(pid).is_none_or(|job| job.key != "slurm:9") {
            assert!(std::time::Instant::now() < deadline, "it never started");
            std::thread::yield_now();
        }
        let start = start_time(pid).expect("it runs") * TICK_NS + 7;
        let key = |start| identify_process(pid, start).map(|job| job.key);
        assert_eq!(key(Some(start)), Some("slurm:9".to_owned()));
        assert_eq!(key(None), Some("slurm:9".to_owned()));
        assert_eq!(key(Some(start + 2 * TICK_NS)), None);
        child.kill().expect("it runs");
        child.wait().expect("killed");
    }

    #[test]
    fn a_connection_is_traced_to_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = listener.local_addr().expect("bound");
        let client = TcpStream::connect(server).expect("listening");
        let local = client.local_addr().expect("connected");
        let owners = socket_owners(&[std::process::id()]);
        assert_eq!(owners.get(&(local, server)), Some(&std::process::id()));
        assert!(socket_owners(&[]).is_empty());
    }

    #[test]
    fn an_address_of_proc_net_tcp_is_read() {
        assert_eq!(parse_end("0100007F:1F90"), "127.0.0.1:8080".parse().ok());
        assert_eq!(
            parse_end("0000000000000000FFFF00000100000A:0016"),
            "10.0.0.1:22".parse().ok()
        );
        assert_eq!(parse_end("0100:1"), None);
    }
}
