//! No text makes a reader panic, none takes more than about linear time, and what a reader gives is
//! always a fabric that the controller's topology file can hold.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use weir_import::collection::Collection;
use weir_import::format::{Format, read};
use weir_import::rails::rails;
use weir_import::{check::check, graph::Graph};

const IBNETDISCOVER: &str = "# Topology file: generated\nvendid=0x2c9\ndevid=0xd2f0\nsysimgguid=0x1\nswitchguid=0x1(1)\nSwitch\t41 \"S-0000000000000001\"\t\t# \"MF0;leaf1:MQM8700/U1\" enhanced port 0 lid 7 lmc 0\n[1]\t\"H-0000000000000002\"[1](2) \t\t# \"node1 mlx5_0 \" lid 8 4xHDR\n[2][ext 5]\t\"S-0000000000000003\"[4]\t\t# \"MF0;spine1:MQM8700/U1\" lid 9 4xHDR\n[41]\t\"H-0000000000000004\"[1](4) \t\t# \"Mellanox Technologies Aggregation Node\" lid 10 4xHDR\n\nvendid=0x2c9\ndevid=0x101b\ncaguid=0x2\nCa\t1 \"H-0000000000000002\"\t\t# \"node1 mlx5_0\"\n[1](2) \t\"S-0000000000000001\"[1]\t\t# lid 8 lmc 0 \"MF0;leaf1:MQM8700/U1\" lid 7 4xHDR\n";
const LIST: &str = "CA   134  1 0x0000000000000002 4x EDR - SW  1719 10 0x0000000000000001 ( 'node1 HCA-1' - 'leaf1' )\nSW  1719 10 0x0000000000000001 4x EDR - CA   134  1 0x0000000000000002 ( 'leaf1' - 'node1 HCA-1' )\nSW  1719 37 0x0000000000000001 4x ???                                    'leaf1'\n";
const IBLINKINFO: &str = "Switch: 0x0000000000000001 MF0;leaf1:MQM8700/U1:\n           7    1[  ] ==( 4X        53.125 Gbps Active/  LinkUp)==>       8    1[  ] \"node1 mlx5_0\" ( Could be 106.25 Gbps)\n           7    2[  ] ==(                Down/ Polling)==>             [  ] \"\" ( )\n";
const IBQUERYERRORS: &str = "Errors for 0x1 \"MF0;leaf1:MQM8700/U1\"\n   GUID 0x1 port ALL: [LinkDownedCounter == 48]\n   GUID 0x1 port 1: [SymbolErrorCounter == 65535] [PortXmitData == 12 (48.000B)]\n## Summary: 1 nodes checked\n";
const PERFQUERY: &str = "# Port extended counters: Lid 7 port 1 (CapMask: 0x5300)\nPortSelect:......................1\nCounterSelect:...................0x0000\nPortXmitData:....................17\n";
const IBSTAT: &str = "CA 'mlx5_0'\n\tCA type: MT4129\n\tNode GUID: 0x0000000000000002\n\tPort 1:\n\t\tState: Active\n\t\tPhysical state: LinkUp\n\t\tRate: 400\n\t\tBase lid: 8\n\t\tLink layer: InfiniBand\nInfiniband device 'mlx5_1' port 1 status:\n\tbase lid:\t 0x6c\n\trate:\t\t 200 Gb/sec (2X NDR)\n";
const IBSWINFO: &str = "====\nQuantum\n====\npart number        | X\nGUID               | 0x0000000000000001\nPSU0 status        | OK\n     power (W)     | 72\ntemperature (C)    | 45\nfan#1 (rpm)        | 8000\n";
const LLDP: &str = "{\"lldp\": {\"interface\": [{\"Ethernet0\": {\"chassis\": {\"spine1\": {\"id\": {\"type\": \"mac\", \"value\": \"x\"}, \"capability\": [{\"type\": \"Router\", \"enabled\": true}]}}, \"port\": {\"id\": {\"type\": \"ifname\", \"value\": \"Ethernet4\"}}}}]}}";
const MLXLINK: &str = "{\"result\":{\"output\":{\"Histogram of FEC Errors\":{\"Bin 0\":{\"values\":[\"[0]\",\"22\"]},\"Bin 10\":{\"values\":[\"[10..11]\",\"1\"]}},\"Module Info\":{\"Temperature [C]\":\"61 [-10..80]\",\"MAX Power\":\"8.0 W max\"},\"Physical Counters and BER Info\":{\"Effective Physical BER\":\"15E-255\"}}}}";
const NCCL: &str = "<system version=\"1\">\n<cpu numaid=\"0\" affinity=\"ff\"><pci busid=\"0000:01:00.0\" class=\"0x060400\"><pci busid=\"0000:02:00.0\" class=\"0x030200\"><gpu dev=\"0\"/></pci><pci busid=\"0000:03:00.0\" class=\"0x020000\"><nic><net name=\"mlx5_0\" speed=\"400000\"/></nic></pci></pci></cpu></system>";
const TOPO_M: &str = "\t\u{1b}[4mGPU0\tNIC0\tCPU Affinity\tNUMA Affinity\u{1b}[0m\nGPU0\t X \tPIX\t0-3\t0\nNIC0\tPIX\t X \n\nNIC Legend:\n\n  NIC0: mlx5_0\n";
const SMI: &str = "<nvidia_smi_log><driver_version>1</driver_version><gpu id=\"00000000:01:00.0\"><product_name>Card</product_name><fb_memory_usage><total>5 MiB</total></fb_memory_usage></gpu></nvidia_smi_log>";
const SONIC: &str = "{\"DEVICE_METADATA|localhost\": {\"hostname\": \"leaf1\"}, \"PORT|Ethernet0\": {\"lanes\": \"1,2\", \"speed\": \"100000\"}, \"DEVICE_NEIGHBOR|Ethernet0\": {\"name\": \"node1\", \"port\": \"eth0\"}, \"COUNTERS_QUEUE_NAME_MAP\": {\"Ethernet0:3\": \"oid:0x1\"}}";

const SAMPLES: [(Format, &str); 13] = [
    (Format::Ibnetdiscover, IBNETDISCOVER),
    (Format::IbnetdiscoverList, LIST),
    (Format::Iblinkinfo, IBLINKINFO),
    (Format::Ibqueryerrors, IBQUERYERRORS),
    (Format::Perfquery, PERFQUERY),
    (Format::Ibstat, IBSTAT),
    (Format::Ibswinfo, IBSWINFO),
    (Format::Lldp, LLDP),
    (Format::Mlxlink, MLXLINK),
    (Format::Nccl, NCCL),
    (Format::TopoM, TOPO_M),
    (Format::Smi, SMI),
    (Format::Sonic, SONIC),
];

/// Reads a text and does all that a user can ask for; what comes out must hold together. True if the
/// text was read.
fn use_it(text: &str, format: Format) -> bool {
    let document = match read(text, format) {
        Ok(document) => document,
        Err(error) => {
            assert!(
                error.line >= 1 && error.column >= 1 && !error.expected.is_empty(),
                "{error}"
            );
            return false;
        }
    };
    let mut collection = Collection::default();
    collection.add(document, "here", "switch");
    let picture = collection.finish();
    let Some(fabric) = picture.fabric else {
        return true;
    };
    let mut ends = BTreeSet::new();
    for end in fabric.links.iter().flat_map(|l| [&l.a, &l.b]) {
        assert!(fabric.nodes.contains_key(&end.node), "{end} is of no node");
        assert!(ends.insert(end), "{end} has two cables");
        let colons = end.to_string().matches(':').count();
        assert_eq!(colons, 1, "{end} is no port of a topology file");
    }
    let graph = Graph::new(&fabric);
    assert!(graph.groups().len() <= fabric.nodes.len());
    assert!(rails(&fabric, &graph).len() <= fabric.links.len());
    assert_eq!(fabric.yaml().matches("- {name").count(), fabric.nodes.len());
    assert_eq!(fabric.plan().cables.len(), fabric.links.len());
    true
}

#[test]
fn the_samples_are_read_and_detected() {
    for (format, text) in SAMPLES {
        assert_eq!(Format::detect(text), Some(format), "{text}");
        assert!(use_it(text, format), "{:?}", read(text, format));
    }
}

/// A change of a text: where, how much goes, what comes.
fn change() -> impl Strategy<Value = (usize, usize, String)> {
    let pieces = prop_oneof![
        "[ -~\\n\\t]{0,4}".prop_map(String::from),
        any::<char>().prop_map(String::from),
        prop::sample::select(vec![
            "\"",
            "[",
            "]",
            "(",
            ":",
            "0x",
            "65535",
            "99999999999999999999",
            "-1",
            "4xHDR",
            "\n\n",
            "{",
            "}",
            "<",
            ">",
            "\u{1b}[",
            "Switch\t1 ",
            "==(",
            "|",
            "GPU0",
            "\r\n",
        ])
        .prop_map(str::to_owned),
    ];
    (any::<prop::sample::Index>(), 0_usize..12, pieces)
        .prop_map(|(at, gone, new)| (at.index(1 << 16), gone, new))
}

fn mutated(text: &str, changes: &[(usize, usize, String)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, gone, new) in changes {
        let at = at % (chars.len() + 1);
        let end = (at + gone).min(chars.len());
        chars.splice(at..end, new.chars());
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text_is_refused_or_read(text in "\\PC{0,200}", n in 0..SAMPLES.len()) {
        use_it(&text, SAMPLES[n].0);
        if let Some(format) = Format::detect(&text) {
            use_it(&text, format);
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300), n in 0..SAMPLES.len()) {
        use_it(&String::from_utf8_lossy(&bytes), SAMPLES[n].0);
    }

    #[test]
    fn changed_samples_are_refused_or_read(n in 0..SAMPLES.len(), changes in prop::collection::vec(change(), 1..6)) {
        let text = mutated(SAMPLES[n].1, &changes);
        use_it(&text, SAMPLES[n].0);
    }

    #[test]
    fn changed_captures_are_refused_or_read(n in 0..CAPTURES.len(), changes in prop::collection::vec(change(), 1..6)) {
        if let Some(text) = capture(CAPTURES[n].1) {
            use_it(&mutated(&text, &changes), CAPTURES[n].0);
        }
    }
}

const CAPTURES: [(Format, &str); 10] = [
    (Format::Ibnetdiscover, "fabric/ufm_sdk/small_topo_file"),
    (
        Format::IbnetdiscoverList,
        "fabric/treydock/ibnetdiscover/test2.out",
    ),
    (
        Format::Iblinkinfo,
        "fabric/snippets/iblinkinfo-quantum-downgraded.txt",
    ),
    (
        Format::Ibqueryerrors,
        "fabric/snippets/ibqueryerrors-sx6036-saturated.txt",
    ),
    (Format::Ibswinfo, "fabric/treydock/ibswinfo/test1.out"),
    (Format::Lldp, "lldp/sonic-dbsyncd/interface_only.json"),
    (Format::Mlxlink, "mlxlink/cx7-400g-dr4-mft4.34.1.json"),
    (Format::Nccl, "nccl-topo/oci-hpc/H100-topology.xml"),
    (Format::TopoM, "topo-m/h100-8gpu-9nic.txt"),
    (Format::Sonic, "sonic/appl_db.json"),
];

/// A capture, where they are beside the checkout; the tests of captures say aloud where not.
fn capture(path: &str) -> Option<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures");
    let root = std::env::var_os("WEIR_FIXTURES").unwrap_or_else(|| beside.into());
    std::fs::read_to_string(std::path::Path::new(&root).join(path)).ok()
}

/// Nanoseconds that this thread has had a CPU: other load does not count. `None` on a kernel that
/// does not tell it (`CONFIG_SCHED_INFO`).
fn cpu_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Texts that grow with `n` and invite comparing everything with everything.
fn hostile(n: usize) -> Vec<(Format, String)> {
    let mut star = String::new();
    let mut lists = String::new();
    let mut neighbours = Vec::new();
    let mut elements = String::from("<system>");
    let mut queues = Vec::new();
    for i in 1..=n {
        writeln!(
            lists,
            "SW 1 {i} 0x1 4x EDR - CA 2 1 0x{i:x} ( 'a' - 'b c' )"
        )
        .unwrap();
        neighbours.push(format!("{{\"e{i}\":{{\"chassis\":{{\"same\":{{\"id\":{{\"type\":\"mac\",\"value\":\"x\"}}}}}},\"port\":{{\"id\":{{\"type\":\"ifname\",\"value\":\"same\"}}}}}}}}"));
        write!(elements, "<pci class=\"0x020000\" busid=\"{i}\"/>").unwrap();
        queues.push(format!("\"PORT|Ethernet{i}\":{{\"speed\":\"1\"}},\"DEVICE_NEIGHBOR|Ethernet{i}\":{{\"name\":\"n\",\"port\":\"{i}\"}}"));
        if i > n / 5 {
            continue;
        }
        // A full bipartite pod: every switch is every other's sibling; and all names are alike.
        writeln!(
            star,
            "Switch\t64 \"S-{i:016x}\"\t\t# \"MF0;twin:MQM9700/U1\" enhanced port 0 lid 1 lmc 0"
        )
        .unwrap();
        writeln!(
            star,
            "[1]\t\"H-{:016x}\"[1](2) \t\t# \"node mlx5_0\" lid 3 4xHDR",
            0x1_0000_0000 + i
        )
        .unwrap();
        for spine in 0..4 {
            writeln!(
                star,
                "[{}]\t\"S-{:016x}\"[{i}]\t\t# \"MF0;s:MQM9700/U1\" lid 3 4xHDR",
                spine + 2,
                0x2_0000_0000_u64 + spine
            )
            .unwrap();
        }
    }
    vec![
        (Format::Ibnetdiscover, star),
        (Format::IbnetdiscoverList, lists),
        (
            Format::Lldp,
            format!("{{\"lldp\":{{\"interface\":[{}]}}}}", neighbours.join(",")),
        ),
        (Format::Nccl, format!("{elements}</system>")),
        (Format::Sonic, format!("{{{}}}", queues.join(","))),
        (
            Format::Perfquery,
            format!("# P counters: Lid 1 port 1\nx:{}\n", ".".repeat(n * 40)),
        ),
        (
            Format::TopoM,
            format!("\tGPU0\nGPU0\tX\n{}", "\n".repeat(n * 40)),
        ),
        (Format::Ibstat, format!("CA '{}", "'".repeat(n * 40))),
    ]
}

#[test]
fn four_times_the_text_takes_about_four_times_the_time() {
    let (small, large) = (2000, 8000);
    let time = |text: &str, format: Format| {
        let start = cpu_ns()?;
        use_it(text, format);
        Some(cpu_ns()? - start)
    };
    for ((format, less), (_, more)) in hostile(small).into_iter().zip(hostile(large)) {
        let (Some(less), Some(more)) = (time(&less, format), time(&more, format)) else {
            eprintln!("SKIPPED: this kernel does not tell the CPU time of a thread");
            return;
        };
        // Sixteen times would be a square. The kernel counts in ticks of some milliseconds.
        let limit = less * 10 + 50_000_000;
        assert!(more < limit, "{format:?}: {less} ns, then {more} ns");
    }
}

#[test]
fn a_check_of_a_fabric_finds_what_its_reader_noticed() {
    let text = IBNETDISCOVER.replace(
        "[1](2) \t\"S-0000000000000001\"[1]",
        "[1](2) \t\"S-0000000000000001\"[9]",
    );
    let fabric = weir_import::ibnetdiscover::parse(&text).unwrap();
    assert!(
        check(&fabric).iter().any(|f| f.text.contains("sees")),
        "{:?}",
        fabric.findings
    );
}
