//! What the kernel accepts, and what happens when it does not.

use object::{Object as _, ObjectSection as _};

use super::rig::{is_root, load, skipped};
use crate::bpf::{Bpf, BpfOptions, embedded};

fn all() -> BpfOptions {
    BpfOptions {
        collective: true,
        tcp: true,
        qdisc: true,
        drop: true,
        ..BpfOptions::default()
    }
}

#[test]
fn every_family_loads_with_and_without_the_filter() {
    if !is_root() {
        return;
    }
    for netns_filter in [false, true] {
        let options = BpfOptions {
            netns_filter,
            ..all()
        };
        if load(&options).is_none() {
            return;
        }
    }
}

/// The embedded object, with the first instruction of one section turned into
/// a read of a register that nothing has written: no verifier lets that pass.
fn spoiled(section: &str) -> Vec<u8> {
    // r0 = *(u64 *)(r9 + 0)
    const READ_OF_NOTHING: [u8; 8] = [0x79, 0x90, 0, 0, 0, 0, 0, 0];
    let mut bytes = embedded::PROGRAMS.to_vec();
    let file = object::File::parse(embedded::PROGRAMS).expect("an ELF file");
    let range = file.section_by_name(section).expect(section).file_range();
    let start = usize::try_from(range.expect("code").0).expect("small");
    bytes[start..start + 8].copy_from_slice(&READ_OF_NOTHING);
    bytes
}

#[test]
fn a_refusal_by_the_verifier_costs_one_source_and_shows_the_log() {
    if !is_root() || load(&all()).is_none() {
        return;
    }
    let options = BpfOptions {
        object: Some(spoiled("uprobe")),
        ..all()
    };
    let start = Bpf::load(&options);
    for source in &start.sources {
        assert_eq!(source.up, source.name != "collective", "{source:?}");
    }
    let reason = start.sources[0].reason.as_deref().expect("it is down");
    assert!(reason.contains("collective_entry"), "{reason}");
    assert!(
        reason.contains("verifier") && reason.contains("R9 !read_ok"),
        "{reason}"
    );
    assert!(reason.lines().count() <= 6, "{reason}");
    let sample = start
        .bpf
        .expect("the others are up")
        .poll(std::time::Instant::now());
    assert!(sample.collectives.is_empty());
}

#[test]
fn without_sock_ops_the_flows_come_from_socket_diagnostics() {
    if !is_root() || load(&all()).is_none() {
        return;
    }
    let options = BpfOptions {
        object: Some(spoiled("sockops")),
        ..all()
    };
    let start = Bpf::load(&options);
    let tcp = start.sources.iter().find(|source| source.name == "tcp");
    let tcp = tcp.expect("asked for");
    let reason = tcp.reason.as_deref().expect("something is amiss");
    assert!(reason.contains("R9 !read_ok"), "{reason}");
    if !tcp.up {
        return skipped("no socket diagnostics");
    }
    assert!(reason.contains("socket diagnostics"), "{reason}");
}

#[test]
fn garbage_in_place_of_the_object_costs_the_sources_only() {
    let options = BpfOptions {
        object: Some(b"no object".to_vec()),
        ..all()
    };
    let start = Bpf::load(&options);
    for source in start.sources.iter().filter(|source| source.name != "tcp") {
        assert!(!source.up && source.reason.is_some(), "{source:?}");
    }
}

#[test]
fn a_cgroup_that_is_not_there_is_named() {
    if !is_root() || load(&all()).is_none() {
        return;
    }
    let options = BpfOptions {
        tcp: true,
        cgroup: Some("/nowhere/cgroup".into()),
        ..BpfOptions::default()
    };
    let start = Bpf::load(&options);
    let reason = start.sources[0].reason.as_deref().expect("it lacks that");
    assert!(reason.contains("/nowhere/cgroup"), "{reason}");
}
