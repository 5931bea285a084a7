//! Baselines on disk: one file for each lease, durable before the first write of its change.

use crate::netlink::nexthops::GroupMember;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("state directory {path}: {source}; make it writable for the agent or set state_dir")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("state directory {path} belongs to another running agent; give each its own state_dir")]
    Locked { path: PathBuf },
}

/// What undoes the change of one knob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// No route stood for exactly this prefix.
    Pin {
        dst: std::net::Ipv4Addr,
        prefix_len: u8,
    },
    /// A group's members as they were, and as Weir set them: only what still is so is undone.
    Weights {
        group: u32,
        was: Vec<GroupMember>,
        set: Vec<GroupMember>,
    },
}

/// The baseline of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub lease: u64,
    /// Routes do not outlive the machine's boot, nor does their baseline.
    pub boot_id: String,
    pub entries: Vec<Entry>,
}

impl Journal {
    #[must_use]
    pub fn new(lease: u64, entries: Vec<Entry>) -> Journal {
        Journal {
            lease,
            boot_id: boot_id(),
            entries,
        }
    }
}

/// All journals of a state directory, which is this process's alone.
#[derive(Debug)]
pub struct Journals {
    dir: PathBuf,
    /// Held for its lock.
    _lock: File,
    journals: BTreeMap<u64, Journal>,
}

impl Journals {
    /// Locks the directory and reads what is left in it.
    ///
    /// A file that does not parse is put aside under another name and told in the log: what cannot
    /// be read cannot be restored, and must not keep the rest from it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(state_dir: &Path) -> Result<(Journals, Vec<Journal>), JournalError> {
        let dir = state_dir.join("journal");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, source }
        };
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let lock_path = state_dir.join("lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        lock.try_lock().map_err(|_| JournalError::Locked {
            path: state_dir.to_owned(),
        })?;
        let mut journals = BTreeMap::new();
        for file in std::fs::read_dir(&dir).map_err(io(&dir))? {
            let path = file.map_err(io(&dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let parsed = std::fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|text| {
                    serde_json::from_slice::<Journal>(&text).map_err(|e| e.to_string())
                });
            match parsed {
                Ok(journal) if journal.boot_id == boot_id() => {
                    journals.insert(journal.lease, journal);
                }
                Ok(journal) => {
                    tracing::info!(
                        lease = journal.lease,
                        "journal of a former boot: its routes are gone, nothing to restore"
                    );
                    std::fs::remove_file(&path).map_err(io(&path))?;
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    tracing::error!(file = %path.display(), "journal cannot be read ({error}); kept as {}: check the routes of this node by hand", aside.display());
                    std::fs::rename(&path, &aside).map_err(io(&path))?;
                }
            }
        }
        let left = journals.values().cloned().collect();
        Ok((
            Journals {
                dir,
                _lock: lock,
                journals,
            },
            left,
        ))
    }

    /// Makes a journal durable: file, rename and directory are synced before this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`]; nothing may be written to the kernel then.
    pub fn save(&mut self, journal: Journal) -> Result<(), JournalError> {
        let path = self.path(journal.lease);
        let temporary = path.with_extension("tmp");
        let io = |source| JournalError::Io {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(&journal).map_err(|e| io(e.into()))?;
        let mut file = File::create(&temporary).map_err(io)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(io)?;
        std::fs::rename(&temporary, &path)
            .and_then(|()| self.sync_dir())
            .map_err(io)?;
        self.journals.insert(journal.lease, journal);
        Ok(())
    }

    /// Forgets a journal: its baseline stands again.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove(&mut self, lease: u64) -> Result<(), JournalError> {
        let path = self.path(lease);
        match std::fs::remove_file(&path).and_then(|()| self.sync_dir()) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(JournalError::Io { path, source }),
        }
        self.journals.remove(&lease);
        Ok(())
    }

    #[must_use]
    pub fn get(&self, lease: u64) -> Option<&Journal> {
        self.journals.get(&lease)
    }

    pub fn all(&self) -> impl Iterator<Item = &Journal> {
        self.journals.values()
    }

    fn path(&self, lease: u64) -> PathBuf {
        self.dir.join(format!("{lease}.json"))
    }

    fn sync_dir(&self) -> std::io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// Identity of this boot of the machine; empty where /proc is not mounted.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_outlives_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(7, Vec::new());
        let (mut journals, left) = Journals::open(dir.path()).unwrap();
        assert!(left.is_empty());
        journals.save(journal.clone()).unwrap();
        drop(journals);
        let (mut journals, left) = Journals::open(dir.path()).unwrap();
        assert_eq!(left, [journal]);
        journals.remove(7).unwrap();
        drop(journals);
        assert!(Journals::open(dir.path()).unwrap().1.is_empty());
    }

    #[test]
    fn a_state_directory_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journals::open(dir.path()).unwrap();
        assert!(
            Journals::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("another running agent")
        );
        drop(first);
    }

    #[test]
    fn a_damaged_journal_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        std::fs::write(dir.path().join("journal/3.json"), "{\"lease\":").unwrap();
        assert!(Journals::open(dir.path()).unwrap().1.is_empty());
        assert!(dir.path().join("journal/3.damaged").exists());
        std::fs::write(dir.path().join("journal/4.json"), [0xff, 0xfe]).unwrap();
        std::fs::create_dir(dir.path().join("journal/9.json")).unwrap();
        assert!(Journals::open(dir.path()).unwrap().1.is_empty());
        assert!(dir.path().join("journal/4.damaged").exists());
        assert!(dir.path().join("journal/9.damaged").exists());
    }
}
