//! Probes over real kernel routing: two network namespaces with two links between them, next hops
//! chosen by the kernel's hash of addresses and ports. The links are TUN devices whose wire is a
//! thread of the test, which drops and delays what it is told to. Needs root; says so and passes
//! without.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the functions that tests share are tests too: they panic, and say aloud what they skip"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use weir_agent::probe::list::{List, Ping, Way};
use weir_agent::probe::worker::State;
use weir_agent::probe::{Options, Probe};
use weir_agent_core::probe::prober::{PathReport, Settings};

const DEADLINE: Duration = Duration::from_secs(60);
const MS: Duration = Duration::from_millis(1);
/// Probes have this length in IP: 20 or 40 of header, 8 of UDP, 64 of ours.
const PROBE_V4: usize = 92;
const PROBE_V6: usize = 112;

/// What the wire of the second link does to packets of the prober; the first link is clean.
#[derive(Debug, Clone, Copy, Default)]
struct Fault {
    /// Percent that is dropped.
    loss: u64,
    delay: Duration,
}

/// What the wire has seen: source ports of probes by link, and how many there were.
#[derive(Debug, Default)]
struct Seen {
    ports: [BTreeSet<u16>; 2],
    probes: u64,
}

struct World {
    fault: Arc<Mutex<Fault>>,
    seen: Arc<Mutex<Seen>>,
    /// Ends the far side and the wire.
    stop: Vec<Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {error}");
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

/// A TUN device of the calling thread's namespace; it goes when the file does.
#[expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]
fn tun(name: &str) -> std::io::Result<File> {
    /// _IOW('T', 202, int); struct ifreq has 40 bytes, the flags are at 16.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const IFF_TUN_NO_PI: u16 = 0x1001;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&IFF_TUN_NO_PI.to_ne_bytes());
    // SAFETY: the request has the size of a struct ifreq and outlives the call.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    if status == 0 {
        Ok(file)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// One end: two devices, an address on loopback, and both ways to the other's.
fn side(own: u8, other: u8) -> [File; 2] {
    let devices = ["wire1", "wire2"].map(|name| tun(name).unwrap());
    sysctl("net.ipv4.conf.all.rp_filter", "0");
    sysctl("net.ipv4.fib_multipath_hash_policy", "1");
    sysctl("net.ipv6.fib_multipath_hash_policy", "1");
    ip("link set lo up");
    ip(&format!("addr add 10.9.0.{own}/32 dev lo"));
    // Without the wait for duplicates it may be a source at once.
    ip(&format!("-6 addr add fd09::{own}/128 dev lo nodad"));
    for name in ["wire1", "wire2"] {
        sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0");
        ip(&format!("link set {name} up"));
    }
    ip(&format!(
        "route add 10.9.0.{other}/32 src 10.9.0.{own} nexthop dev wire1 nexthop dev wire2"
    ));
    ip(&format!(
        "-6 route add fd09::{other}/128 src fd09::{own} nexthop via fe80::{other} dev wire1 nexthop via fe80::{other} dev wire2"
    ));
    devices
}

/// /proc/sys/net is that of the process's first thread; a program sees its own.
fn sysctl(key: &str, value: &str) {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let write = format!("echo {value} >{path}");
    let status = Command::new("sh").args(["-c", &write]).status().unwrap();
    assert!(status.success(), "{write}");
}

/// The source port of a probe that goes to the responder.
fn probe_port(packet: &[u8]) -> Option<u16> {
    let udp = match (packet.first()? >> 4, packet.len()) {
        (4, PROBE_V4) => packet.get(20..)?,
        (6, PROBE_V6) => packet.get(40..)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    (port(2)? == 9744).then(|| port(0))?
}

/// Moves packets between the ends until told to stop.
#[expect(unsafe_code, reason = "std has no poll")]
fn wire(
    mut near: [File; 2],
    mut far: [File; 2],
    fault: &Mutex<Fault>,
    seen: &Mutex<Seen>,
    stop: &Receiver<()>,
) {
    let mut delayed: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut random = 1u64;
    let mut buffer = [0; 2048];
    loop {
        let files = [&near[0], &near[1], &far[0], &far[1]];
        let mut fds = files.map(|file| libc::pollfd {
            fd: file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let timeout = if delayed.is_empty() { 20 } else { 1 };
        // SAFETY: four entries, which outlive the call.
        unsafe { libc::poll(fds.as_mut_ptr(), 4, timeout) };
        match stop.try_recv() {
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
            Ok(()) | Err(_) => return,
        }
        while delayed.front().is_some_and(|(at, _)| *at <= Instant::now()) {
            let (_, packet) = delayed.pop_front().unwrap();
            far[1].write_all(&packet).unwrap();
        }
        for (n, entry) in fds.iter().enumerate() {
            if entry.revents & libc::POLLIN == 0 {
                continue;
            }
            let (link, to_far) = (n % 2, n < 2);
            let from = if to_far {
                &mut near[link]
            } else {
                &mut far[link]
            };
            let length = from.read(&mut buffer).unwrap();
            let packet = &buffer[..length];
            let port = probe_port(packet).filter(|_| to_far);
            if let Some(port) = port {
                let mut seen = seen.lock().unwrap();
                seen.ports[link].insert(port);
                seen.probes += 1;
            }
            let fault = *fault.lock().unwrap();
            if link == 1 && port.is_some() {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if (random >> 33) % 100 < fault.loss {
                    continue;
                }
                if !fault.delay.is_zero() {
                    delayed.push_back((Instant::now() + fault.delay, packet.to_vec()));
                    continue;
                }
            }
            let to = if to_far {
                &mut far[link]
            } else {
                &mut near[link]
            };
            to.write_all(packet).unwrap();
        }
    }
}

/// Runs `test` in the near namespace; in the far one `serve` runs until the end of the test.
fn between<S: 'static>(
    serve: impl FnOnce() -> S + Send + 'static,
    test: impl FnOnce(&World) + Send + 'static,
) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = own_namespace() {
            println!("skipped: a network namespace needs root ({error})");
            return;
        }
        if let Err(error) = tun("wiretest") {
            println!("skipped: no TUN devices ({error})");
            return;
        }
        let near = side(1, 2);
        let (ready, is_ready) = channel();
        let (stop_far, far_stopped) = channel::<()>();
        let serving = std::thread::spawn(move || {
            own_namespace().unwrap();
            ready.send(side(2, 1)).unwrap();
            let served = serve();
            far_stopped.recv().ok();
            drop(served);
        });
        let far = is_ready.recv().unwrap();
        let (fault, seen) = (Arc::default(), Arc::default());
        let (stop_wire, wire_stopped) = channel();
        let (f, s) = (Arc::clone(&fault), Arc::clone(&seen));
        let wiring = std::thread::spawn(move || wire(near, far, &f, &s, &wire_stopped));
        let mut world = World {
            fault,
            seen,
            stop: vec![stop_far, stop_wire],
            threads: vec![serving, wiring],
        };
        test(&world);
        world.stop.clear();
        for thread in world.threads {
            thread.join().unwrap();
        }
    });
    thread.join().unwrap();
}

fn options(port: Option<u16>, packets_per_s: u32) -> Options {
    Options {
        port,
        paths: 16,
        packets_per_s,
        settings: Settings {
            timeout: Duration::from_secs(2),
            window: Duration::from_secs(2),
            interval: 20 * MS,
        },
        exclude: Vec::new(),
        list: List::default(),
    }
}

/// A responder of ours in the far namespace.
fn responder() -> Probe {
    Probe::start(options(Some(9744), 1)).unwrap()
}

fn list(addresses: &[&str], packets_per_s: u32) -> List {
    let ping = |address: &&str| Ping {
        node: (*address).replace(':', "."),
        port: String::new(),
        from: String::new(),
        paths: 16,
        way: Way::Udp(SocketAddr::new(address.parse::<IpAddr>().unwrap(), 9744)),
    };
    List {
        targets: addresses.iter().map(ping).collect(),
        packets_per_s,
        ..List::default()
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(10 * MS);
    }
}

/// Waits until every path has a window with so many probes.
fn measured(probe: &Probe, probes: u64) -> State {
    until("a window with all paths", || {
        let state = probe.state();
        let is_full = |p: &PathReport| p.window.is_some_and(|w| w.count.sent >= probes);
        let full = state.reports.iter().all(|r| r.paths.iter().all(is_full));
        (full && !state.reports.is_empty()).then_some(state)
    })
}

/// Paths of a target that went over the first and over the second link.
fn by_link(world: &World, probe: &Probe, address: IpAddr) -> [BTreeSet<u8>; 2] {
    let ports: BTreeMap<u16, u8> = probe
        .source_ports(address)
        .iter()
        .copied()
        .zip(0..)
        .collect();
    let seen = world.seen.lock().unwrap();
    let paths = |link: usize| {
        seen.ports[link]
            .iter()
            .filter_map(|p| ports.get(p).copied())
    };
    [paths(0).collect(), paths(1).collect()]
}

fn the_lossy_link_is_found(address: &'static str) {
    between(responder, move |world| {
        *world.fault.lock().unwrap() = Fault {
            loss: 25,
            ..Fault::default()
        };
        let probe = Probe::start(options(None, 1000)).unwrap();
        probe.set_list(list(&[address], 1000));
        let state = until("fifty probes of every path", || {
            let state = probe.state();
            let paths = &state.reports.first()?.paths;
            let enough = paths.iter().all(|path| path.total.sent >= 50);
            enough.then_some(state)
        });
        let [clean, lossy] = by_link(world, &probe, address.parse().unwrap());
        assert!(
            !clean.is_empty() && !lossy.is_empty(),
            "{clean:?} {lossy:?}"
        );
        assert_eq!(clean.len() + lossy.len(), 16, "a path is one path");
        for path in &state.reports[0].paths {
            let loss = path.total.loss().unwrap();
            if lossy.contains(&path.path) {
                assert!((0.02..0.6).contains(&loss), "path {}: {loss}", path.path);
            } else {
                assert_eq!(path.total.lost, 0, "path {}", path.path);
            }
        }
    });
}

#[test]
fn the_paths_over_a_lossy_link_stand_out_and_no_other() {
    the_lossy_link_is_found("10.9.0.2");
}

#[test]
fn the_same_over_ipv6() {
    the_lossy_link_is_found("fd09::2");
}

#[test]
fn a_link_with_delay_shows_in_the_rtt_of_its_paths() {
    between(responder, |world| {
        *world.fault.lock().unwrap() = Fault {
            delay: 60 * MS,
            ..Fault::default()
        };
        let probe = Probe::start(options(None, 500)).unwrap();
        probe.set_list(list(&["10.9.0.2"], 500));
        let state = measured(&probe, 8);
        let [clean, slow] = by_link(world, &probe, "10.9.0.2".parse().unwrap());
        assert!(!clean.is_empty() && !slow.is_empty(), "{clean:?} {slow:?}");
        for path in &state.reports[0].paths {
            let rtt = path.window.unwrap().rtt.unwrap();
            if slow.contains(&path.path) {
                assert!(rtt.min >= 60 * MS, "path {}: {rtt:?}", path.path);
            } else {
                assert!(rtt.min < 30 * MS, "path {}: {rtt:?}", path.path);
            }
        }
        assert_eq!(state.counters.lost, 0);
    });
}

#[test]
fn a_list_that_asks_for_more_gets_the_budget() {
    between(responder, |world| {
        let probe = Probe::start(options(None, 70)).unwrap();
        let started = Instant::now();
        probe.set_list(list(&["10.9.0.2", "fd09::2"], 1_000_000));
        until("two hundred probes", || {
            (world.seen.lock().unwrap().probes >= 200).then_some(())
        });
        let seen = world.seen.lock().unwrap().probes;
        let most = 70.0 * (started.elapsed().as_secs_f64() + 1.0);
        assert!((seen as f64) <= most, "{seen} > {most}");
    });
}

/// The real agent, stopped and continued from here.
struct Agent {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.yaml");
        let text = format!(
            "node: far\nlisten_metrics: \"127.0.0.1:0\"\nstate_dir: \"{}\"\nbpf: {{enabled: false, tcp: false}}\n\
             collectors: {{ethtool: false, rdma: false, gpu: false, kmsg: false}}\n",
            dir.path().join("state").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .args(["run", "--config", config.to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn();
        Agent {
            child: child.unwrap(),
            _dir: dir,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

fn signal(pid: u32, name: &str) {
    let kill = format!("kill -{name} {pid}");
    let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_time_for_which_a_responder_stands_still_is_not_the_fabric_s() {
    let (tell, told) = channel();
    let serve = move || {
        let agent = Agent::start();
        tell.send(agent.child.id()).unwrap();
        agent
    };
    between(serve, move |_world| {
        let pid = told.recv().unwrap();
        // The machine may stand still as well: another try then, but never a wrong sum.
        let mut tries = Vec::new();
        while tries.len() < 5 {
            let probe = Probe::start(options(None, 200)).unwrap();
            probe.set_list(list(&["10.9.0.2"], 200));
            until("the agent answers", || {
                (probe.state().counters.answered > 20).then_some(())
            });
            let stopped = Instant::now();
            signal(pid, "STOP");
            until("it stands still", || {
                (stopped.elapsed() > 500 * MS).then_some(())
            });
            signal(pid, "CONT");
            let still = stopped.elapsed();
            let (rtt, held) = until("a window that has it", || {
                let window = probe.state().reports[0].window?;
                let (rtt, held) = (window.all.rtt?.max, window.their_delay?.max);
                (held > 300 * MS).then_some((rtt, held))
            });
            if still < 1500 * MS && rtt < 100 * MS && probe.state().counters.lost == 0 {
                return;
            }
            tries.push((still, rtt, held, probe.state().counters));
        }
        panic!("{tries:?}");
    });
}
