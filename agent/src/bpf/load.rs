//! Loads the programs and says, in words, why one cannot be.

use std::{borrow::Cow, error::Error, fmt::Write as _, fs, io};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError},
    programs::ProgramError,
};

use super::{btf::Btf, embedded, sample::BpfOptions};

/// How much of the verifier's log is worth showing: its end says what was refused.
const VERIFIER_LINES: usize = 5;

/// Why a family of programs is not there.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}", explain_load(.0))]
    Load(#[from] aya::EbpfError),
    #[error("program {program}: {}", explain(source))]
    Program {
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("the object has no program {0}")]
    NoProgram(&'static str),
    #[error("the object has no map {0}")]
    NoMap(&'static str),
    #[error("map {map}: {source}")]
    Map {
        map: &'static str,
        #[source]
        source: MapError,
    },
    #[error("this kernel's {0} is not where the program needs it")]
    NoField(&'static str),
    #[error("{0}")]
    Other(String),
}

/// A global of the programs: where this kernel keeps a field.
struct Field {
    global: &'static str,
    structure: &'static str,
    path: &'static [&'static str],
}

const FIELDS: [Field; 9] = [
    field("OFF_TASK_NSPROXY", "task_struct", &["nsproxy"]),
    field("OFF_NSPROXY_NET", "nsproxy", &["net_ns"]),
    field("OFF_NET_INUM", "net", &["ns", "inum"]),
    field("OFF_DEV_NET", "net_device", &["nd_net", "net"]),
    field("OFF_DEV_IFINDEX", "net_device", &["ifindex"]),
    field("OFF_TXQ_DEV", "netdev_queue", &["dev"]),
    field("OFF_QDISC_CPU_QSTATS", "Qdisc", &["cpu_qstats"]),
    field("OFF_QDISC_BACKLOG", "Qdisc", &["qstats", "backlog"]),
    field("OFF_SKB_DEV", "sk_buff", &["dev"]),
];

const fn field(
    global: &'static str,
    structure: &'static str,
    path: &'static [&'static str],
) -> Field {
    Field {
        global,
        structure,
        path,
    }
}

/// What the programs are told about the kernel they run on.
#[derive(Debug, Default)]
pub struct Globals {
    pub offsets: Offsets,
    /// Inode number of the only namespace whose processes count; 0: all.
    pub netns_inum: u32,
    /// Inode number of the namespace whose ports count.
    pub netns_ports: u32,
    /// Cookie of the only namespace whose flows count; 0: all.
    pub netns_cookie: u64,
}

/// Offsets by the globals' names; `None` for a field that was not found.
pub type Offsets = Vec<(&'static str, Option<u32>)>;

/// Finds the fields; without type information none is found.
pub fn find_offsets(btf: Option<&Btf>) -> Offsets {
    FIELDS
        .iter()
        .map(|field| {
            let found = btf.and_then(|btf| btf.offset(field.structure, field.path));
            (field.global, found)
        })
        .collect()
}

impl Globals {
    /// Checks that the named globals were found.
    ///
    /// # Errors
    ///
    /// Names the first that was not: a program must not run on a guess.
    pub fn require(&self, globals: &[&'static str]) -> Result<(), LoadError> {
        let missing = |name: &str| {
            self.offsets
                .iter()
                .any(|(global, offset)| *global == name && offset.is_none())
        };
        match globals.iter().find(|name| missing(name)) {
            Some(name) => Err(LoadError::NoField(
                FIELDS
                    .iter()
                    .find(|field| field.global == *name)
                    .map_or("structure", |field| field.structure),
            )),
            None => Ok(()),
        }
    }
}

/// Loads the object: its maps are made, its programs are not yet in the kernel.
///
/// # Errors
///
/// The object is not understood, or the kernel refuses a map.
pub fn load_object(options: &BpfOptions, globals: &Globals) -> Result<Ebpf, LoadError> {
    let object: Cow<'_, [u8]> = match &options.object {
        Some(object) => Cow::Borrowed(object),
        None => Cow::Borrowed(embedded::PROGRAMS),
    };
    let mut loader = EbpfLoader::new();
    for (global, offset) in &globals.offsets {
        if let Some(offset) = offset {
            loader.override_global(global, offset, false);
        }
    }
    loader.override_global("NETNS_INUM", &globals.netns_inum, false);
    loader.override_global("NETNS_PORTS", &globals.netns_ports, false);
    loader.override_global("NETNS_COOKIE", &globals.netns_cookie, false);
    for (wanted, map, entries) in [
        // The smallest sizes that the kernel takes, for what is not asked for.
        (options.collective, "CALLS", 4096),
        (options.collective, "IN_FLIGHT", 1),
        (options.tcp, "FLOWS", 1),
        (options.qdisc, "PORTS", 1),
        (options.drop, "DROPS", 1),
        (options.qp, "QPS", 1),
        (options.qp, "QP_CALLS", 1),
        (options.roce, "ROCE", 1),
    ] {
        if !wanted {
            loader.map_max_entries(map, entries);
        }
    }
    Ok(loader.load(&object)?)
}

/// Takes a map out of the object, as the type that the caller reads it by.
///
/// # Errors
///
/// There is no such map, or it is of another type.
pub fn take_map<T>(ebpf: &mut Ebpf, map: &'static str) -> Result<T, LoadError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let taken = ebpf.take_map(map).ok_or(LoadError::NoMap(map))?;
    T::try_from(taken).map_err(|source| LoadError::Map { map, source })
}

/// The maps' owner in the types of this module.
pub type Owned = MapData;

/// Finds a program, as the type by which it is attached.
///
/// # Errors
///
/// There is no such program, or it is of another type.
pub fn program<'a, T>(ebpf: &'a mut Ebpf, program: &'static str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(program)
        .ok_or(LoadError::NoProgram(program))?
        .try_into()
        .map_err(|source| LoadError::Program { program, source })
}

/// Says why a program was refused: the missing right, or the end of the verifier's log.
pub fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        if !lines.is_empty() {
            let tail = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n");
            return format!("the kernel's verifier refused it ({io_error}):\n{tail}");
        }
    }
    explain_chain(error)
}

fn explain_load(error: &aya::EbpfError) -> String {
    explain_chain(error)
}

/// The error with its causes; a missing right is named first.
fn explain_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut is_denied = false;
    let mut cause = Some(error);
    while let Some(error) = cause {
        is_denied |= error.downcast_ref::<io::Error>().is_some_and(|error| {
            error.raw_os_error() == Some(libc::EPERM) || error.raw_os_error() == Some(libc::EACCES)
        });
        cause = error.source();
        if let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                // Writing to a string does not fail.
                _ = write!(text, ": {more}");
            }
        }
    }
    if is_denied {
        // The rest of the text names whichever map came first.
        missing_right(effective_capabilities())
    } else {
        text
    }
}

/// Names the capabilities that loading and attaching take and this process lacks.
fn missing_right(effective: Option<u64>) -> String {
    const NEEDED: [(u32, &str); 3] = [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (12, "CAP_NET_ADMIN")];
    const SYS_ADMIN: u32 = 21;
    let Some(effective) = effective else {
        return "not permitted".to_owned();
    };
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(bit, _)| !(has(*bit) || has(SYS_ADMIN) && *bit != 12))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        "not permitted although this process has the capabilities: a container's seccomp profile, \
         kernel lockdown or its user namespace forbids it"
            .to_owned()
    } else {
        format!(
            "not permitted: this process lacks {} (run it as root, or grant them)",
            missing.join(" + ")
        )
    }
}

fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_named() {
        let text = missing_right(Some(0));
        assert!(
            text.contains("CAP_BPF + CAP_PERFMON + CAP_NET_ADMIN"),
            "{text}"
        );
        // CAP_SYS_ADMIN stands for the two that were split from it.
        let text = missing_right(Some(1 << 21));
        assert!(
            text.contains("CAP_NET_ADMIN") && !text.contains("CAP_BPF"),
            "{text}"
        );
        assert!(missing_right(Some(u64::MAX)).contains("seccomp"));
    }

    #[test]
    fn a_field_that_was_not_found_stops_the_family() {
        let globals = Globals {
            offsets: find_offsets(None),
            ..Globals::default()
        };
        let error = globals.require(&["OFF_QDISC_BACKLOG"]).expect_err("no BTF");
        assert!(error.to_string().contains("Qdisc"));
        assert!(globals.require(&[]).is_ok());
    }
}
