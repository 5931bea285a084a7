//! Route changes on a real kernel, in a network namespace that belongs to the test's thread and
//! goes away with it. Needs root; says so and passes without.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the functions that tests share are tests too: they panic, and say aloud what they skip"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use weir_agent::actuate::Actuator;
use weir_agent::actuate::backend::{DryRun, Faulty};
use weir_agent::netlink::Netlink;
use weir_agent::netlink::routes::Lookup;
use weir_agent_core::change::{Member, RouteChange};
use weir_agent_core::lease::{Grant, Outcome};
use weir_agent_core::limits::Limits;

const S: Duration = Duration::from_secs(1);

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a test in a fresh namespace: two uplinks, next hops 1 and 2, group 100, a route over it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = own_namespace() {
            let required = std::env::var_os("WEIR_REQUIRE_LAB").is_some();
            assert!(!required, "a network namespace needs root ({error})");
            println!("skipped: a network namespace needs root ({error})");
            return;
        }
        ip("link set lo up");
        for n in 1..=2 {
            ip(&format!("link add up{n} type veth peer name far{n}"));
            ip(&format!("link set far{n} up"));
            ip(&format!("addr add 10.0.{n}.1/24 dev up{n}"));
            ip(&format!("link set up{n} up"));
            ip(&format!("nexthop add id {n} via 10.0.{n}.2 dev up{n}"));
        }
        ip("nexthop add id 100 group 1/2");
        ip("route add 10.9.0.0/16 nhid 100");
        test();
    });
    thread.join().unwrap();
}

#[expect(unsafe_code, reason = "unshare has no safe form in std")]
fn own_namespace() -> std::io::Result<()> {
    // SAFETY: changes only the calling thread's namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn open(state_dir: &Path) -> (Actuator<Netlink>, Vec<String>) {
    Actuator::open(state_dir, limits(), Netlink::open().unwrap()).unwrap()
}

fn failing_after(writes: usize) -> Faulty<Netlink> {
    Faulty {
        inner: Netlink::open().unwrap(),
        writes_until_failure: Some(writes),
        lose_writes: false,
    }
}

fn limits() -> Limits {
    Limits {
        routes_allow: true,
        prefixes: vec![([10, 9, 0, 0].into(), 16)],
        groups: vec![100],
        ..Limits::default()
    }
}

fn pin(last: u8, nexthop: u32) -> RouteChange {
    RouteChange::Pin {
        dst: [10, 9, 0, last].into(),
        prefix_len: 32,
        nexthop,
        port: format!("up{nexthop}"),
    }
}

fn grant(id: u64, changes: Vec<RouteChange>) -> Grant {
    Grant {
        id,
        ttl: 3 * S,
        verdict: "test".into(),
        changes,
    }
}

/// IPv6 left out: the kernel adds its own routes there when it likes.
fn routes() -> String {
    ip("-4 route show table all") + &ip("nexthop")
}

#[test]
fn a_pin_moves_the_path_and_expiry_restores_every_route() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, notes) = open(dir.path());
        assert!(notes.is_empty());
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Applied);
        assert!(ip("route get 10.9.0.7").contains("dev up2"));
        assert!(dir.path().join("journal/1.json").exists());
        actuator.tick(5 * S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Ended);
        assert_eq!(routes(), before);
        assert!(!dir.path().join("journal/1.json").exists());
    });
}

#[test]
fn a_link_that_goes_down_ends_the_lease_and_what_it_took_along_is_left_to_its_owner() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![pin(7, 2), pin(8, 1)]), S);
        actuator.take_reports();
        ip("link set up2 down");
        let without_a_lease =
            routes().replace("10.9.0.8 nhid 1 via 10.0.1.2 dev up1 proto 87 \n", "");
        actuator.routing_changed(S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Ended);
        assert!(
            report.reason.contains("no longer stands"),
            "{}",
            report.reason
        );
        assert_eq!(routes(), without_a_lease);
        assert!(!routes().contains("proto 87"), "{}", routes());
    });
}

#[test]
fn nothing_is_granted_while_an_earlier_baseline_is_not_restored() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut crashed, _) = open(dir.path());
        crashed.grant(grant(1, vec![pin(7, 2)]), S);
        drop(crashed);
        let (mut actuator, notes) = Actuator::open(dir.path(), limits(), failing_after(0)).unwrap();
        assert!(notes[0].contains("not restored yet"), "{notes:?}");
        actuator.grant(grant(2, vec![pin(8, 2)]), S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Refused);
        assert!(report.reason.contains("lease 1"), "{}", report.reason);
        actuator.tick(S);
        assert_eq!(routes(), before);
        actuator.grant(grant(3, vec![pin(8, 2)]), S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Applied);
    });
}

#[test]
fn a_pin_that_no_journal_knows_is_removed_at_the_start() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut crashed, _) = open(dir.path());
        crashed.grant(grant(1, vec![pin(7, 2)]), S);
        drop(crashed);
        std::fs::remove_file(dir.path().join("journal/1.json")).unwrap();
        let (_, notes) = open(dir.path());
        assert!(notes[0].contains("10.9.0.7/32"), "{notes:?}");
        assert_eq!(routes(), before);
    });
}

/// What FRR does when a next hop is no good any more, or an operator who drains a link.
#[test]
fn a_pin_ends_when_its_next_hop_leaves_the_group() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        actuator.take_reports();
        actuator.routing_changed(S);
        assert_eq!(actuator.standing(), 1, "nothing happened yet");
        ip("nexthop replace id 100 group 1");
        actuator.routing_changed(S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Ended);
        assert!(report.reason.contains("no member"), "{}", report.reason);
        assert!(!routes().contains("proto 87"), "{}", routes());
        actuator.grant(grant(2, vec![pin(7, 2)]), S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Refused);
    });
}

/// A look-up does not see the pin then; the table still has it.
#[test]
fn a_pin_is_removed_where_a_rule_leads_past_it() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        ip("route add 10.9.0.0/16 nhid 100 table 100");
        ip("rule add to 10.9.0.0/16 lookup 100 prio 50");
        assert!(routes().contains("proto 87"));
        actuator.end(1, "over", S);
        assert_eq!(actuator.take_reports()[1].outcome, Outcome::Ended);
        assert!(!routes().contains("proto 87"), "{}", routes());
    });
}

#[test]
fn weights_name_every_member() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, _) = open(dir.path());
        let some = RouteChange::Weights {
            group: 100,
            members: vec![Member {
                nexthop: 1,
                weight: 5,
            }],
        };
        actuator.grant(grant(1, vec![some]), S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Refused);
        assert!(report.reason.contains("name them all"), "{}", report.reason);
        assert_eq!(routes(), before);
    });
}

#[test]
fn what_others_changed_under_a_pin_stays_as_they_left_it() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        ip("route add 10.9.1.0/24 nhid 100 metric 20 src 10.0.1.1");
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        ip("nexthop replace id 100 group 1/2,9");
        ip("route del 10.9.1.0/24");
        let theirs = routes().replace("10.9.0.7 nhid 2 via 10.0.2.2 dev up2 proto 87 \n", "");
        actuator.end(1, "over", S);
        assert_eq!(actuator.take_reports()[1].outcome, Outcome::Ended);
        assert_eq!(routes(), theirs);
    });
}

fn weights(first: u8, second: u8) -> RouteChange {
    RouteChange::Weights {
        group: 100,
        members: vec![
            Member {
                nexthop: 1,
                weight: first,
            },
            Member {
                nexthop: 2,
                weight: second,
            },
        ],
    }
}

#[test]
fn weights_are_set_and_restored() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![weights(1, 3)]), S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Applied);
        assert!(ip("nexthop").contains("group 1/2,3"), "{}", ip("nexthop"));
        actuator.end(1, "over", S);
        assert_eq!(routes(), before);
    });
}

#[test]
fn weights_of_what_a_lost_link_leaves_are_restored() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![weights(5, 3)]), S);
        actuator.take_reports();
        ip("link set up2 down");
        assert!(ip("nexthop").contains("group 1,5"), "{}", ip("nexthop"));
        actuator.routing_changed(S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Ended);
        assert!(ip("nexthop").contains("group 1 "), "{}", ip("nexthop"));
    });
}

#[test]
fn a_group_that_its_operator_drains_under_a_lease_stays_drained() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![weights(1, 3)]), S);
        actuator.take_reports();
        ip("nexthop replace id 100 group 1,7");
        let drained = routes();
        actuator.routing_changed(S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Ended);
        assert_eq!(routes(), drained);
    });
}

#[test]
fn a_crash_under_a_lease_is_restored_by_the_next_start() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![pin(7, 2), pin(8, 1)]), S);
        drop(actuator);
        assert_ne!(routes(), before);
        let (_, notes) = open(dir.path());
        assert_eq!(notes.len(), 1);
        assert_eq!(routes(), before);
    });
}

#[test]
fn a_write_that_fails_half_way_restores_the_first_half() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, _) = Actuator::open(dir.path(), limits(), failing_after(1)).unwrap();
        actuator.grant(grant(1, vec![pin(7, 2), pin(8, 1)]), S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Ended);
        assert!(report.reason.contains("injected"), "{}", report.reason);
        assert_eq!(routes(), before);
    });
}

#[test]
fn a_write_that_is_lost_is_seen_by_the_read_back() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let faulty = Faulty {
            inner: Netlink::open().unwrap(),
            writes_until_failure: None,
            lose_writes: true,
        };
        let (mut actuator, _) = Actuator::open(dir.path(), limits(), faulty).unwrap();
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Ended);
        assert!(
            report.reason.contains("read back differs"),
            "{}",
            report.reason
        );
    });
}

#[test]
fn a_route_of_somebody_else_is_not_touched() {
    in_namespace(|| {
        ip("route add 10.9.0.7/32 nhid 1");
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, _) = open(dir.path());
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        let report = actuator.take_reports().remove(0);
        assert_eq!(report.outcome, Outcome::Refused);
        assert!(report.reason.contains("somebody else"), "{}", report.reason);
        assert_eq!(routes(), before);
    });
}

#[test]
fn a_dry_run_goes_through_every_step_and_writes_nothing() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = routes();
        let (mut actuator, _) =
            Actuator::open(dir.path(), limits(), DryRun::new(Netlink::open().unwrap())).unwrap();
        actuator.grant(grant(1, vec![pin(7, 2)]), S);
        assert_eq!(actuator.take_reports()[0].outcome, Outcome::Applied);
        assert_eq!(routes(), before);
    });
}

#[test]
fn the_kernel_answers_which_member_it_would_take() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let links = netlink.links().unwrap();
        let in_port = links.iter().find(|l| l.name == "up1").unwrap().ifindex;
        let lookup = Lookup {
            src: [10, 0, 1, 9].into(),
            dst: [10, 9, 0, 7].into(),
            src_port: 1000,
            dst_port: 2000,
            in_port,
        };
        let route = netlink.lookup(&lookup).unwrap().unwrap();
        let name = &links
            .iter()
            .find(|l| Some(l.ifindex) == route.ifindex)
            .unwrap()
            .name;
        let said = ip("route get 10.9.0.7 from 10.0.1.9 iif up1 ipproto tcp sport 1000 dport 2000");
        assert!(said.contains(&format!("dev {name}")), "{said}");
        assert_eq!(
            netlink
                .matched([10, 9, 0, 7].into())
                .unwrap()
                .unwrap()
                .nexthop,
            Some(100)
        );
        assert_eq!(netlink.matched([192, 0, 2, 1].into()).unwrap(), None);
    });
}
