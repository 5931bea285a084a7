//! Reads `/dev/kmsg` without waiting, a bounded number of records at a time.
//!
//! One read gives one record (Documentation/ABI/testing/dev-kmsg). A pipe or a file with records
//! one after the other is read too, which tests and recordings use.

use super::record::Record;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// More than the kernel's longest record (8 KiB); a smaller buffer is refused.
const READ_BYTES: usize = 16 << 10;
/// Something without line ends is no log: beyond this it is thrown away.
const PENDING_MAX: usize = 4 * READ_BYTES;

/// From where on the log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// What is logged after opening.
    Now,
    /// What the kernel still remembers since it started.
    Boot,
}

/// What one call found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    pub records: Vec<Record>,
    /// Records that the kernel overwrote before they were read; at least one each time.
    pub lost: u64,
    /// Records that are not in the form of the kernel.
    pub malformed: u64,
    pub bytes: u64,
    /// The limit was reached: there may be more.
    pub more: bool,
}

/// An open log.
#[derive(Debug)]
pub struct Reader {
    file: File,
    buffer: Vec<u8>,
    /// Read and not yet taken apart.
    pending: Vec<u8>,
    /// No more of the last record in `pending` is to come.
    complete: bool,
    sequence: Option<u64>,
    /// Records were overwritten, and the next one will tell how many.
    overrun: bool,
}

impl Reader {
    /// # Errors
    /// The file cannot be opened: it is not there, or the log is restricted (CAP_SYSLOG).
    pub fn open(path: &Path, from: From) -> io::Result<Reader> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if from == From::Now {
            match file.seek(SeekFrom::End(0)) {
                // A pipe has nothing from before.
                Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(Reader {
            file,
            buffer: vec![0; READ_BYTES],
            pending: Vec::new(),
            complete: false,
            sequence: None,
            overrun: false,
        })
    }

    /// Reads what is there, but no more than so many records.
    ///
    /// # Errors
    /// The log cannot be read any more.
    pub fn drain(&mut self, records_max: usize) -> io::Result<Drained> {
        let mut drained = Drained::default();
        let mut taken = 0;
        loop {
            while taken < records_max
                && let Some(record) = take_record(&mut self.pending, self.complete)
            {
                taken += 1;
                self.add(&record, &mut drained);
            }
            if taken >= records_max {
                drained.more = true;
                break;
            }
            if self.pending.len() > PENDING_MAX {
                drained.malformed += 1;
                self.pending.clear();
            }
            match self.file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => {
                    drained.bytes += u64::try_from(length).unwrap_or(0);
                    self.pending.extend_from_slice(&self.buffer[..length]);
                    self.complete = length < READ_BYTES;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => {}
                    Some(libc::EPIPE) => {
                        drained.lost += 1;
                        self.overrun = true;
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(drained)
    }

    fn add(&mut self, bytes: &[u8], drained: &mut Drained) {
        let Some(record) = Record::parse(bytes) else {
            drained.malformed += 1;
            return;
        };
        if std::mem::take(&mut self.overrun)
            && let Some(last) = self.sequence
        {
            drained.lost += record.sequence.saturating_sub(last + 2);
        }
        self.sequence = Some(record.sequence);
        drained.records.push(record);
    }
}

/// The first record: a line and the lines after it that begin with a space.
fn take_record(pending: &mut Vec<u8>, complete: bool) -> Option<Vec<u8>> {
    let mut end = 0;
    loop {
        end += 1 + pending[end..].iter().position(|b| *b == b'\n')?;
        match pending.get(end) {
            Some(b' ') => {}
            None if !complete => return None,
            Some(_) | None => return Some(pending.drain(..end).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write as _, os::fd::AsRawFd as _};

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn texts(drained: &Drained) -> Vec<&str> {
        drained.records.iter().map(|r| r.text.as_str()).collect()
    }

    const THREE: &[u8] =
        b"6,1,10,-;one\n SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n6,2,20,-;two\n4,3,30,-;three\n";

    #[test]
    fn records_one_after_the_other() {
        let file = file(THREE);
        let drained = Reader::open(file.path(), From::Boot)
            .unwrap()
            .drain(10)
            .unwrap();
        assert_eq!(texts(&drained), ["one", "two", "three"]);
        assert_eq!(drained.records[0].pci(), Some("0000:01:00.0"));
        assert_eq!(drained.bytes, u64::try_from(THREE.len()).unwrap());
        assert_eq!(
            (drained.lost, drained.malformed, drained.more),
            (0, 0, false)
        );
    }

    #[test]
    fn from_now_on_sees_only_what_is_new() {
        let mut file = file(THREE);
        let mut reader = Reader::open(file.path(), From::Now).unwrap();
        assert_eq!(reader.drain(10).unwrap(), Drained::default());
        file.write_all(b"6,4,40,-;four\n").unwrap();
        assert_eq!(texts(&reader.drain(10).unwrap()), ["four"]);
    }

    #[test]
    fn a_call_takes_no_more_than_it_may() {
        let file = file(THREE);
        let mut reader = Reader::open(file.path(), From::Boot).unwrap();
        let first = reader.drain(2).unwrap();
        assert_eq!((texts(&first), first.more), (vec!["one", "two"], true));
        let second = reader.drain(2).unwrap();
        assert_eq!((texts(&second), second.more), (vec!["three"], false));
    }

    #[test]
    fn records_across_the_ends_of_reads_stay_whole() {
        let mut content = Vec::new();
        for n in 0..5_000 {
            content.extend(format!("6,{n},{n},-;message {n}\n DEVICE=n{n}\n").bytes());
        }
        let file = file(&content);
        let drained = Reader::open(file.path(), From::Boot)
            .unwrap()
            .drain(10_000)
            .unwrap();
        assert_eq!((drained.records.len(), drained.malformed), (5_000, 0));
        assert!(drained.records.iter().all(|r| r.device.is_some()));
    }

    #[test]
    fn garbage_is_counted_and_passed_over() {
        let file = file(b"what\n6,1,10,-;one\n\n;\n");
        let drained = Reader::open(file.path(), From::Boot)
            .unwrap()
            .drain(10)
            .unwrap();
        assert_eq!((texts(&drained), drained.malformed), (vec!["one"], 3));
    }

    #[test]
    fn something_without_lines_does_not_fill_the_memory() {
        let file = file(&vec![b'x'; 10 * PENDING_MAX]);
        let mut reader = Reader::open(file.path(), From::Boot).unwrap();
        assert!(reader.drain(10).unwrap().malformed > 0);
        assert!(reader.pending.len() <= PENDING_MAX + READ_BYTES);
    }

    #[test]
    fn an_overrun_is_counted_by_the_gap() {
        let file = file(b"");
        let mut reader = Reader::open(file.path(), From::Boot).unwrap();
        let mut drained = Drained::default();
        reader.add(b"6,7,1,-;x\n", &mut drained);
        reader.overrun = true;
        drained.lost += 1;
        reader.add(b"6,11,1,-;x\n", &mut drained);
        assert_eq!(drained.lost, 3);
        reader.add(b"6,20,1,-;x\n", &mut drained);
        assert_eq!(drained.lost, 3);
    }

    #[test]
    fn a_pipe_is_read_until_it_is_empty() {
        let (from, mut to) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", from.as_raw_fd());
        let mut reader = Reader::open(Path::new(&path), From::Now).unwrap();
        assert_eq!(reader.drain(10).unwrap(), Drained::default());
        to.write_all(THREE).unwrap();
        assert_eq!(texts(&reader.drain(10).unwrap()), ["one", "two", "three"]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Reader::open(&dir.path().join("kmsg"), From::Now).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
