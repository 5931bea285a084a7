//! The NVIDIA driver: found or not, its GPUs, its events.

use super::Meaning;
use super::events::{Listener, Raised, What};
use super::nvml::{DriverGone, Gpu};
use crate::source::{Event, Gathered, RawCounter, RawKind, Reading, Severity};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// How long a driver that is not there is left alone.
const RETRY: Duration = Duration::from_secs(60);
/// The driver's packages install the first; the second is a development link to it.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// The driver, while it is there and while it is not.
#[derive(Debug)]
pub struct Nvidia {
    library: Option<PathBuf>,
    meaning: Meaning,
    state: State,
    /// Critical XIDs by PCI address, since the start.
    xids: BTreeMap<String, u64>,
    repeats: u64,
}

#[derive(Debug)]
enum State {
    Up(Session),
    Down { why: String, retry: Duration },
}

/// An initialised library. The listener goes first: it uses the library.
#[derive(Debug)]
struct Session {
    listener: Option<Listener>,
    gpus: Vec<Gpu>,
    driver: Option<String>,
    nvml: Arc<Nvml>,
}

impl Nvidia {
    /// Nothing is loaded before the first poll.
    #[must_use]
    pub fn new(library: Option<PathBuf>, meaning: Meaning) -> Nvidia {
        Nvidia {
            library,
            meaning,
            state: State::Down {
                why: String::new(),
                retry: Duration::ZERO,
            },
            xids: BTreeMap::new(),
            repeats: 0,
        }
    }

    /// Process ids that compute on each GPU, by PCI address.
    pub fn processes(&self) -> impl Iterator<Item = (&str, &[u32])> {
        let gpus: &[Gpu] = match &self.state {
            State::Up(session) => &session.gpus,
            State::Down { .. } => &[],
        };
        gpus.iter()
            .filter_map(|g| Some((g.address()?, g.processes()?)))
    }

    /// Reads every GPU.
    ///
    /// # Errors
    /// The driver is not there; it is looked for once a minute.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> Result<(), String> {
        if let State::Down { why, retry } = &self.state {
            if now < *retry {
                return Err(why.clone());
            }
            match Session::open(self.library.as_deref()) {
                Ok(session) => self.state = State::Up(session),
                Err(why) => return Err(self.down(why, now)),
            }
        }
        let polled = match &mut self.state {
            State::Up(session) => session.poll(self.meaning, &mut self.xids, now, out),
            State::Down { .. } => Ok(0),
        };
        match polled {
            Ok(repeats) => self.repeats += repeats,
            Err(DriverGone(error)) => return Err(self.down(format!("NVML: {error}"), now)),
        }
        Ok(())
    }

    /// Events since the start that only repeated another of the same sample.
    #[must_use]
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    fn down(&mut self, why: String, now: Duration) -> String {
        self.state = State::Down {
            why: why.clone(),
            retry: now + RETRY,
        };
        why
    }
}

impl Session {
    fn open(library: Option<&Path>) -> Result<Session, String> {
        let nvml = Arc::new(load(library)?);
        let count = nvml
            .device_count()
            .map_err(|error| format!("NVML: {error}"))?;
        let listener = Listener::start(Arc::clone(&nvml));
        Ok(Session {
            listener: listener
                .inspect_err(|error| tracing::warn!(%error, "no thread for GPU events"))
                .ok(),
            gpus: (0..count).map(Gpu::new).collect(),
            driver: nvml.sys_driver_version().ok(),
            nvml,
        })
    }

    /// Returns how many events only repeated another of this sample.
    fn poll(
        &mut self,
        meaning: Meaning,
        xids: &mut BTreeMap<String, u64>,
        now: Duration,
        out: &mut Gathered,
    ) -> Result<u64, DriverGone> {
        let (mut back, mut repeats) = (false, 0);
        for gpu in &mut self.gpus {
            back |= gpu.poll(&self.nvml, self.driver.as_deref(), now, out)?;
        }
        let Some(listener) = &self.listener else {
            return Ok(repeats);
        };
        if back {
            listener.renew();
        }
        for (raised, times) in listener.take() {
            if matches!(raised.what, What::Xid(_)) && !raised.gpu.is_empty() {
                *xids.entry(raised.gpu.clone()).or_default() += times;
            }
            let mut event = event(raised, meaning);
            if times > 1 {
                event.text += &format!(" ({times} times at once)");
                repeats += times - 1;
            }
            out.events.push(event);
        }
        // The count is ours: a lost GPU, which an XID often announces, keeps it.
        for address in self.gpus.iter().filter_map(Gpu::address) {
            let count = match xids.get(address) {
                Some(count) => *count,
                None if listener.hears(address) => 0,
                None => continue,
            };
            let count = Reading::wide(count);
            out.put(Entity::Gpu, address, Signal::Xids, None, count);
        }
        let (name, dropped) = ("events_dropped", listener.dropped());
        let counter = RawCounter::new(RawKind::Counter, "nvml", "node", name, dropped);
        out.raw.push(counter);
        Ok(repeats)
    }
}

/// Loads and initialises the library; the error is one line for an operator.
fn load(library: Option<&Path>) -> Result<Nvml, String> {
    let names: Vec<&OsStr> = match library {
        Some(path) => vec![path.as_os_str()],
        None => LIBRARIES.iter().map(OsStr::new).collect(),
    };
    let mut missing = None;
    for name in names {
        match Nvml::builder().lib_path(name).init() {
            Ok(nvml) => return Ok(nvml),
            Err(NvmlError::LibloadingError(error)) => {
                missing.get_or_insert(error);
            }
            Err(error) => return Err(format!("NVML: {error}")),
        }
    }
    Err(match missing {
        Some(error) => format!("no NVIDIA driver library: {error}"),
        None => "no NVIDIA driver library".to_owned(),
    })
}

fn event(raised: Raised, meaning: Meaning) -> Event {
    let (name, code, (severity, text, action)) = match raised.what {
        What::Xid(Some(code)) => ("xid", Some(code), meaning(code)),
        What::Xid(None) => (
            "xid",
            None,
            (
                Severity::Critical,
                "a critical XID whose number the driver does not tell".to_owned(),
                "Look for it in the kernel log.".to_owned(),
            ),
        ),
        What::EccCorrected => (
            "ecc_corrected",
            None,
            (
                Severity::Info,
                "a memory error was corrected".to_owned(),
                String::new(),
            ),
        ),
        What::EccUncorrected => (
            "ecc_uncorrected",
            None,
            (
                Severity::Critical,
                "a memory error could not be corrected".to_owned(),
                "Drain the node and reset the GPU, so that the damaged row is remapped.".to_owned(),
            ),
        ),
    };
    Event {
        source: "gpu",
        name,
        subject: raised.gpu,
        code,
        severity,
        text,
        action,
    }
}
