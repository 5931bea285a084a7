//! Reading the counters of a directory of sysfs again and again, at little cost and never more
//! often than the driver refreshes them.

use super::table::{self, Driver, Merged, Row};
use super::text;
use crate::source::{RawCounter, RawKind};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Counters of a directory: hfi1 has some 300 per port.
const COUNTERS_MAX: usize = 512;
/// Files held open by all devices: half of the customary limit of a process, 1024.
const FILES_MAX: usize = 512;
/// Unexpected errors at one reading of a device after which the rest is not tried.
const ERRORS_MAX: u32 = 3;
/// `RDMA_HW_STATS_DEFAULT_LIFESPAN` of the kernel.
const LIFESPAN: Duration = Duration::from_millis(10);
/// The setting beside the counters: for how many milliseconds the driver keeps what it read.
const LIFESPAN_FILE: &str = "lifespan";

/// How many files may still be held open by those who share this.
#[derive(Debug, Clone)]
pub struct Files(Arc<AtomicUsize>);

impl Default for Files {
    fn default() -> Files {
        Files(Arc::new(AtomicUsize::new(FILES_MAX)))
    }
}

impl Files {
    /// Holds a file open if there is room.
    fn hold(&self, file: File) -> Option<Held> {
        let one = |left: usize| left.checked_sub(1);
        let room = self.0.fetch_update(Relaxed, Relaxed, one).is_ok();
        room.then(|| Held {
            file,
            files: self.clone(),
        })
    }

    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A file that is held open; its room is given back with it.
#[derive(Debug)]
struct Held {
    file: File,
    files: Files,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.files.0.fetch_add(1, Relaxed);
    }
}

/// Reads small files into one buffer.
#[derive(Debug)]
pub struct Reader {
    buffer: [u8; 256],
    files: Files,
    errors: u32,
}

impl Reader {
    /// Holds open what `files` has room for.
    #[must_use]
    pub fn new(files: Files) -> Reader {
        Reader {
            buffer: [0; 256],
            files,
            errors: 0,
        }
    }

    /// Begins with another device.
    pub fn begin(&mut self) {
        self.errors = 0;
    }

    /// What the file says now; `None` if it says nothing: it is missing, or its read is refused as
    /// not supported.
    ///
    /// # Errors
    /// The device is gone, or has failed too often in this round.
    fn read(&mut self, source: &mut Source) -> io::Result<Option<&[u8]>> {
        match self.try_read(source) {
            Ok(length) => Ok(self.buffer.get(..length)),
            Err(error) => match verdict(&error) {
                Verdict::Absent => Ok(None),
                Verdict::Gone => Err(error),
                Verdict::Odd => {
                    self.errors += 1;
                    if self.errors < ERRORS_MAX {
                        Ok(None)
                    } else {
                        Err(error)
                    }
                }
            },
        }
    }

    fn try_read(&mut self, source: &mut Source) -> io::Result<usize> {
        if let Some(held) = &source.file {
            return held.file.read_at(&mut self.buffer, 0);
        }
        let file = File::open(&source.path)?;
        let length = file.read_at(&mut self.buffer, 0)?;
        source.file = self.files.hold(file);
        Ok(length)
    }
}

/// What an error at reading a file says of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It does not have this, or not for us.
    Absent,
    /// It is not there any more.
    Gone,
    /// Something is wrong with it.
    Odd,
}

fn verdict(error: &io::Error) -> Verdict {
    match error.raw_os_error() {
        Some(
            libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::ENODATA
            | libc::ENOENT
            | libc::EACCES
            | libc::EPERM,
        ) => Verdict::Absent,
        Some(libc::ENODEV | libc::ENXIO) => Verdict::Gone,
        Some(_) | None => Verdict::Odd,
    }
}

/// A file, held open if there is room.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: Option<Held>,
}

impl Source {
    fn new(path: PathBuf) -> Source {
        Source { path, file: None }
    }
}

/// A file whose text is looked at only when it changes.
#[derive(Debug)]
pub struct Watched {
    source: Source,
    last: Option<Vec<u8>>,
}

impl Watched {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Watched {
        Watched {
            source: Source::new(path),
            last: None,
        }
    }

    /// Reads the file. `Some(line)` if it changed, with `None` for a line that is not there.
    ///
    /// # Errors
    /// The device has failed.
    pub fn changed(&mut self, reader: &mut Reader) -> io::Result<Option<Option<String>>> {
        let now = reader.read(&mut self.source)?.unwrap_or(&[]);
        if self.last.as_deref() == Some(now) {
            return Ok(None);
        }
        let line = text::line(now);
        self.last = Some(now.to_vec());
        Ok(Some(line))
    }
}

/// The counters of one directory.
#[derive(Debug)]
pub struct Counters {
    driver: Driver,
    entries: Vec<Entry>,
    lifespan: Duration,
    read_at: Option<Duration>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    row: Option<&'static Row>,
    source: Source,
    value: Option<u64>,
}

impl Counters {
    /// The counters of a directory, not read yet; none where there is no such directory.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn list(dir: &Path, driver: Driver) -> io::Result<Counters> {
        let mut counters = Counters {
            driver,
            entries: Vec::new(),
            lifespan: Duration::ZERO,
            read_at: None,
        };
        let listing = match fs::read_dir(dir) {
            Ok(listing) => listing,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(counters),
            Err(e) => return Err(e),
        };
        let mut names: Vec<String> = listing
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.truncate(COUNTERS_MAX);
        if names.iter().any(|n| n == LIFESPAN_FILE) {
            let millis = fs::read(dir.join(LIFESPAN_FILE))
                .ok()
                .and_then(|b| text::counter(&b));
            counters.lifespan = millis.map_or(LIFESPAN, Duration::from_millis);
            names.retain(|n| n != LIFESPAN_FILE);
        } else if dir.ends_with("hw_counters") {
            counters.lifespan = LIFESPAN;
        }
        for name in names {
            let path = dir.join(&name);
            counters.push(name, path);
        }
        Ok(counters)
    }

    fn push(&mut self, name: String, path: PathBuf) {
        self.entries.push(Entry {
            row: table::lookup(self.driver, &name),
            name,
            source: Source::new(path),
            value: None,
        });
    }

    /// Goes on where an older listing of the same directory ended: what it read still counts.
    pub fn inherit(&mut self, old: &Counters) {
        self.read_at = old.read_at;
        for entry in &mut self.entries {
            entry.value = old
                .entries
                .iter()
                .find(|o| o.name == entry.name)
                .and_then(|o| o.value);
        }
    }

    /// Whether the driver would read its counters anew.
    #[must_use]
    pub fn due(&self, now: Duration) -> bool {
        self.read_at
            .is_none_or(|then| now >= then.saturating_add(self.lifespan))
    }

    /// Reads all counters if they are due.
    ///
    /// # Errors
    /// The device has failed.
    pub fn read(&mut self, now: Duration, reader: &mut Reader) -> io::Result<()> {
        if !self.due(now) {
            return Ok(());
        }
        self.read_at = Some(now);
        for entry in &mut self.entries {
            entry.value = reader.read(&mut entry.source)?.and_then(text::counter);
        }
        Ok(())
    }

    /// Takes values from elsewhere, in the order in which they come: the next call is cheap if the
    /// order stays the same.
    pub fn take<'a>(&mut self, now: Duration, values: impl Iterator<Item = (&'a str, u64)>) {
        self.read_at = Some(now);
        for entry in &mut self.entries {
            entry.value = None;
        }
        for (place, (name, value)) in values.take(COUNTERS_MAX).enumerate() {
            let at = self.find(place, name);
            if let Some(entry) = self.entries.get_mut(at) {
                entry.value = Some(value).filter(|v| *v != u64::MAX);
            }
        }
    }

    /// Where a counter is, after moving it to its place in the order of the source.
    fn find(&mut self, place: usize, name: &str) -> usize {
        if self.entries.get(place).is_some_and(|e| e.name == name) {
            return place;
        }
        let found = self.entries.iter().position(|e| e.name == name);
        let at = found.unwrap_or_else(|| {
            self.push(name.to_owned(), PathBuf::new());
            self.entries.len() - 1
        });
        if at < place || place >= self.entries.len() {
            return at;
        }
        self.entries.swap(at, place);
        place
    }

    /// Adds the counters of the table.
    pub fn merge(&self, merged: &mut Merged) {
        for entry in &self.entries {
            if let (Some(row), Some(value)) = (entry.row, entry.value) {
                merged.add(row, value);
            }
        }
    }

    /// Gives every counter that has a value.
    pub fn each(&self, mut each: impl FnMut(&str, u64)) {
        for entry in &self.entries {
            if let Some(value) = entry.value {
                each(&entry.name, value);
            }
        }
    }

    /// Adds every counter that no signal tells, under its own name.
    pub fn raw(&self, device: &str, merged: &Merged, raw: &mut Vec<RawCounter>) {
        for entry in &self.entries {
            let Some(value) = entry.value else {
                continue;
            };
            if !entry.row.is_some_and(|row| merged.tells(row)) {
                let kind = match entry.row {
                    Some(_) => RawKind::Counter,
                    None => table::raw_kind(self.driver, &entry.name),
                };
                raw.push(RawCounter::new(kind, "rdma", device, &entry.name, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_read_that_is_refused_is_absent_and_not_a_broken_device() {
        let of = |code| verdict(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::EINVAL), Verdict::Absent);
        assert_eq!(of(libc::EOPNOTSUPP), Verdict::Absent);
        assert_eq!(of(libc::ENODEV), Verdict::Gone);
        assert_eq!(of(libc::EIO), Verdict::Odd);
    }

    fn empty() -> Counters {
        Counters::list(Path::new("/nonexistent"), Driver::Rxe).unwrap()
    }

    fn values(counters: &Counters) -> Vec<(String, u64)> {
        let mut raw = Vec::new();
        counters.raw("rxe0/1", &Merged::default(), &mut raw);
        raw.into_iter().map(|r| (r.name, r.value)).collect()
    }

    #[test]
    fn values_from_elsewhere_are_kept_by_name_in_any_order() {
        let mut counters = empty();
        let first = [("a", 1), ("b", 2), ("c", 3)];
        counters.take(Duration::ZERO, first.into_iter());
        let second = [("c", 4), ("d", 5), ("a", 6), ("a", 7), ("e", u64::MAX)];
        counters.take(Duration::ZERO, second.into_iter());
        let mut values = values(&counters);
        values.sort();
        let expected = [("a", 7), ("c", 4), ("d", 5)].map(|(n, v)| (n.to_owned(), v));
        assert_eq!(values, expected, "b is not there any more, e has no value");
    }

    proptest! {
        #[test]
        fn the_last_value_of_each_name_counts(rounds in prop::collection::vec(prop::collection::vec(("[a-f]", 0u64..9), 0..12), 1..4)) {
            let mut counters = empty();
            for round in &rounds {
                counters.take(Duration::ZERO, round.iter().map(|(n, v)| (n.as_str(), *v)));
                let expected: std::collections::BTreeMap<String, u64> = round.iter().cloned().collect();
                let mut found = values(&counters);
                found.sort();
                prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
