//! The program as the agent runs it: orders come on standard input, lines go to standard output.

use crate::budget::Budget;
use crate::device::{self, Name};
use crate::events;
use crate::input::{self, Checked, Lines};
use crate::neighbours::Neighbours;
use crate::out::Out;
use crate::system::{self, now};
use crate::worker::Worker;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;
use weir_verbs_protocol::{Line, Status};

/// How often it is seen which devices there are. A driver without a fatal event waits with a
/// device's removal until everyone has closed it, so this is how long we may hold that up.
const LIST_EVERY: Duration = Duration::from_secs(2);
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A thread that has not come around for this long is stuck in its library.
const STUCK: Duration = Duration::from_secs(5);
/// A device that failed or could not be opened is tried again after this, and after twice as long
/// each time, up to the most.
const WAIT_FIRST: Duration = Duration::from_secs(5);
const WAIT_MOST: Duration = Duration::from_secs(300);
/// Devices that are opened.
const DEVICES_MAX: usize = 64;

/// Whether a device is left alone; a trailing `*` of a pattern stands for anything.
#[must_use]
pub fn excluded(patterns: &[String], name: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        })
}

struct Serve {
    exclude: Vec<String>,
    out: Out,
    budget: Budget,
    orders: Arc<Checked>,
    open: BTreeMap<Name, Worker>,
    /// Workers of devices that are gone, until they have closed them.
    closing: Vec<(Name, Worker)>,
    /// Those whose inbox was full when there were new orders.
    untold: BTreeSet<Name>,
    failed: BTreeMap<Name, Failed>,
    /// Before the first listing nothing is new.
    listed: bool,
    said: String,
}

struct Failed {
    wait: Duration,
    until: Duration,
}

/// Runs until standard input ends.
///
/// # Errors
/// It cannot start at all.
pub fn serve(exclude: Vec<String>) -> io::Result<()> {
    let mut serve = Serve {
        exclude,
        out: Out::start()?,
        budget: Budget::new(now()),
        orders: Arc::default(),
        open: BTreeMap::new(),
        closing: Vec::new(),
        untold: BTreeSet::new(),
        failed: BTreeMap::new(),
        listed: false,
        said: String::new(),
    };
    let mut neighbours = match Neighbours::open() {
        Ok(neighbours) => Some(neighbours),
        Err(error) => {
            let text = format!("neighbours that move are found by their losses only: {error}");
            serve.out.fail(None, text);
            None
        }
    };
    let (mut list_at, mut status_at) = (Duration::ZERO, now() + STATUS_EVERY);
    let mut lines = Lines::default();
    let mut bytes = vec![0; 64 << 10];
    loop {
        let at = now();
        if at >= list_at {
            serve.list(at);
            list_at = now() + LIST_EVERY;
        }
        if at >= status_at {
            serve.status(at);
            status_at = at + STATUS_EVERY;
        }
        let next = list_at.min(status_at).saturating_sub(now());
        let fds = [0, neighbours.as_ref().map_or(-1, Neighbours::fd)];
        let ready = system::wait(&fds, next)?;
        if ready.get(1) == Some(&true) && neighbours.as_mut().is_some_and(Neighbours::changed) {
            for worker in serve.open.values() {
                worker.neighbours_changed();
            }
        }
        if ready.first() != Some(&true) {
            continue;
        }
        let read = match io::stdin().lock().read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) | Ok(0) => system::end(0),
            Ok(read) => read,
        };
        for line in lines.push(bytes.get(..read).unwrap_or_default()) {
            match line.and_then(|line| input::orders(&line)) {
                Ok(orders) => serve.order(orders),
                Err(error) => serve.out.fail(None, error),
            }
        }
    }
}

impl Serve {
    fn order(&mut self, orders: Checked) {
        self.budget.set_pings(orders.packets_per_second, now());
        let known = |device: &str| self.open.keys().any(|name| name.device == device);
        for place in orders.aims.keys().filter(|place| !known(&place.device)) {
            let text = format!("{} is not open: its targets wait for it", place.device);
            self.out.fail(Some(&place.device), text);
        }
        self.orders = Arc::new(orders);
        self.untold = self.open.keys().cloned().collect();
        self.tell();
    }

    fn tell(&mut self) {
        let (open, orders) = (&self.open, &self.orders);
        self.untold
            .retain(|name| open.get(name).is_some_and(|worker| !worker.order(orders)));
    }

    fn list(&mut self, at: Duration) {
        let names = match device::names() {
            Ok(names) => names,
            // No device at all: the module that lists them may not even be loaded.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Vec::new(),
            Err(error) => {
                let text = format!("devices cannot be listed: {error}");
                if self.said != text {
                    self.out.fail(None, text.clone());
                    self.said = text;
                }
                return;
            }
        };
        self.said.clear();
        let names: BTreeSet<Name> = names
            .into_iter()
            .filter(|name| !excluded(&self.exclude, &name.device))
            .take(DEVICES_MAX)
            .collect();
        self.failed.retain(|name, _| names.contains(name));
        let gone: Vec<Name> = self
            .open
            .keys()
            .filter(|name| !names.contains(name))
            .cloned()
            .collect();
        for name in gone {
            let Some(worker) = self.open.remove(&name) else {
                continue;
            };
            worker.close();
            if !worker.told_fatal() {
                let event = events::presence(&name.device, false);
                self.out.say(Line::Event(event));
            }
            self.closing.push((name, worker));
        }
        self.reap(at);
        for name in names {
            self.start(name, at);
        }
        self.listed = true;
        self.tell();
    }

    /// Workers that ended: the device failed, or could not be opened.
    fn reap(&mut self, at: Duration) {
        self.closing.retain(|(_, worker)| !worker.has_ended());
        let ended: Vec<Name> = self
            .open
            .iter()
            .filter(|(_, worker)| worker.has_ended())
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.open.remove(&name);
            let wait = self.failed.get(&name).map_or(WAIT_FIRST, |failed| {
                failed.wait.saturating_mul(2).min(WAIT_MOST)
            });
            let until = at + wait;
            self.failed.insert(name, Failed { wait, until });
        }
    }

    fn start(&mut self, name: Name, at: Duration) {
        let failed = self.failed.get(&name);
        let busy = |(closing, _): &(Name, Worker)| closing.device == name.device;
        if self.open.contains_key(&name)
            || failed.is_some_and(|failed| at < failed.until)
            || self.closing.iter().any(busy)
        {
            return;
        }
        let (budget, orders) = (self.budget.clone(), Arc::clone(&self.orders));
        match Worker::start(&name.device, budget, orders, self.out.clone()) {
            Ok(worker) => {
                if self.listed && failed.is_none() {
                    let event = events::presence(&name.device, true);
                    self.out.say(Line::Event(event));
                }
                self.open.insert(name, worker);
            }
            Err(error) => self.out.fail(Some(&name.device), error.to_string()),
        }
    }

    fn status(&mut self, at: Duration) {
        let all = self
            .open
            .iter()
            .chain(self.closing.iter().map(|(n, w)| (n, w)));
        let stuck = all.filter(|(_, worker)| worker.silent_for(at) >= STUCK && !worker.has_ended());
        let status = Status {
            devices: self.open.keys().map(|name| name.device.clone()).collect(),
            stuck: stuck.map(|(name, _)| name.device.clone()).collect(),
            counters: self
                .open
                .iter()
                .map(|(name, worker)| (name.device.clone(), worker.counters()))
                .collect(),
            lines_dropped: self.out.dropped(),
        };
        self.out.say(Line::Status(status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_the_rest_of_a_name() {
        let patterns = ["mlx5_1".to_owned(), "rxe*".to_owned()];
        assert!(excluded(&patterns, "mlx5_1") && excluded(&patterns, "rxe7"));
        assert!(!excluded(&patterns, "mlx5_10"));
        assert!(!excluded(&[], "mlx5_1"));
    }
}
