//! What RDMA netlink tells of queue pairs, asked on a thread of its own.

use crate::rdma::netlink::{Qp, RdmaNetlink};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use weir_ebpf_abi::{QpKey, QpRecord, qp_known, qp_state};

/// A pair as netlink tells it.
pub struct Found {
    pub device_index: u32,
    pub device: String,
    pub qp: Qp,
}

impl Found {
    pub fn key(&self) -> QpKey {
        QpKey {
            device: self.device_index,
            qpn: self.qp.lqpn,
        }
    }

    pub fn record(&self) -> QpRecord {
        let mut record = QpRecord {
            pid: self.qp.pid.unwrap_or(0),
            peer_qpn: self.qp.rqpn.unwrap_or(0),
            kind: self.qp.kind.unwrap_or(u8::MAX),
            state: self.qp.state.unwrap_or(qp_state::RESET),
            known: qp_known::OLDER,
            ..QpRecord::NEW
        };
        if self.qp.rqpn.is_some() {
            record.known |= qp_known::PEER;
        }
        for (place, byte) in record.device_name.iter_mut().zip(self.device.bytes()) {
            *place = byte;
        }
        record
    }
}

/// What netlink tells of all devices.
#[derive(Default)]
pub struct Listing {
    pub found: Vec<Found>,
    /// Devices that are there and did not answer, and why.
    pub failed: BTreeMap<u32, String>,
}

pub type Answer = Result<Listing, String>;

/// Netlink on a thread of its own.
pub struct Dump {
    pub read: fn() -> Answer,
    pub channels: Option<(SyncSender<()>, Receiver<Answer>)>,
    /// There is a question without an answer.
    pub waiting: bool,
    /// Why the last one failed, or what it lacks.
    pub failure: Option<String>,
}

impl Default for Dump {
    fn default() -> Dump {
        Dump {
            read: read_all,
            channels: None,
            waiting: false,
            failure: None,
        }
    }
}

impl Dump {
    pub fn ask(&mut self) {
        let read = self.read;
        let (ask, _) = self.channels.get_or_insert_with(|| {
            let (ask, questions) = sync_channel(1);
            let (answer, answers) = sync_channel(1);
            let thread = std::thread::Builder::new().name("qps".into());
            let started = thread.spawn(move || {
                // Ends when either end of the main loop's is gone.
                for () in questions {
                    if answer.send(read()).is_err() {
                        return;
                    }
                }
            });
            // Without a thread the channel is closed, and there is no answer.
            drop(started);
            (ask, answers)
        });
        // A question that stands already is enough.
        ask.try_send(()).ok();
        self.waiting = true;
    }

    /// The answer, if there is one that holds; else [`Self::failure`] may say why not.
    pub fn answer(&mut self) -> Option<Listing> {
        let (_, answers) = self.channels.as_ref()?;
        let answer = match answers.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => {
                self.channels = None;
                Err("no thread could be started".to_owned())
            }
        };
        self.waiting = false;
        match answer {
            Ok(listing) => {
                let failed = listing.failed.values().next();
                self.failure = failed.cloned();
                Some(listing)
            }
            Err(failure) => {
                self.failure = Some(failure);
                None
            }
        }
    }
}

fn read_all() -> Answer {
    let text = |error: std::io::Error| error.to_string();
    let mut netlink = RdmaNetlink::open().map_err(text)?;
    let mut listing = Listing::default();
    for device in netlink.devices().map_err(text)? {
        match netlink.qps(device.index) {
            Ok(qps) => listing.found.extend(qps.into_iter().map(|qp| Found {
                device_index: device.index,
                device: device.name.clone(),
                qp,
            })),
            Err(error) => {
                // One that goes meanwhile costs its own pairs; one that stays keeps them.
                let left = netlink.devices().map_err(text)?;
                if left.iter().any(|d| d.index == device.index) {
                    let why = format!("{}: {error}", device.name);
                    listing.failed.insert(device.index, why);
                }
            }
        }
    }
    Ok(listing)
}
