//! Whole trees: those of real machines, each trap of the format, and what happens over time.

mod captures;
mod poll;
mod traps;

use super::{Files, Options, Rdma};
use crate::source::{ColumnKey, Gathered, Reading};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// A sysfs of these files.
pub(super) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    root
}

/// A sysfs with one port of one device, and these files in the directory of the port.
fn port(device: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root
            .path()
            .join("class/infiniband")
            .join(device)
            .join("ports/1")
            .join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    root
}

/// The captures of real machines; says so and gives `None` where there are none.
fn fixtures(capture: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
    let root = std::env::var_os("WEIR_FIXTURES").map_or_else(|| beside.into(), PathBuf::from);
    let path = root.join("sysfs").join(capture);
    if path.is_dir() {
        return Some(path);
    }
    writeln!(
        std::io::stderr(),
        "SKIPPED: no captures in {}",
        path.display()
    )
    .unwrap();
    None
}

fn rdma(sysfs: &Path) -> Rdma {
    Rdma::open(options(sysfs))
}

fn options(sysfs: &Path) -> Options {
    Options {
        sysfs: sysfs.to_owned(),
        include: Vec::new(),
        exclude: Vec::new(),
        netlink: false,
        verbatim: false,
        expect: Vec::new(),
        files: Files::default(),
    }
}

/// What one poll gives.
fn gather(sysfs: &Path) -> Gathered {
    let mut out = Gathered::default();
    rdma(sysfs).poll(Duration::ZERO, &mut out).unwrap();
    out
}

fn column(out: &Gathered, entity: &str, signal: Signal) -> Option<Reading> {
    let key = ColumnKey {
        kind: Entity::Rdma,
        entity: entity.to_owned(),
        signal,
        index: None,
    };
    out.columns.get(&key).copied()
}

fn value(out: &Gathered, entity: &str, signal: Signal) -> Option<u64> {
    column(out, entity, signal).map(|r| r.value)
}

fn raw(out: &Gathered, device: &str, name: &str) -> Option<u64> {
    let of = |r: &&crate::source::RawCounter| r.device == device && r.name == name;
    out.raw.iter().find(of).map(|r| r.value)
}

fn info<'a>(out: &'a Gathered, entity: &str, name: &str) -> Option<&'a str> {
    let info = out.info.iter().find(|i| i.entity == entity)?;
    info.labels.get(name).map(String::as_str)
}
