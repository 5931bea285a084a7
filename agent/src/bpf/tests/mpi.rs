//! A real job: Open MPI, two ranks, each collective that is probed.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use super::rig::{Running, is_root, load, skipped, until};
use crate::bpf::{BpfOptions, Collective, CollectiveOp, jobs};

const JOB: &str = r#"
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int rank, counts[2] = {3, 5};
    float in[4000], out[8000];
    char line[64];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0) fgets(line, sizeof line, stdin);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Allreduce(in, out, 1000, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out, 500, MPI_INT, MPI_COMM_WORLD);
    MPI_Reduce_scatter(in, out, counts, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    MPI_Alltoall(in, 200, MPI_FLOAT, out, 200, MPI_FLOAT, MPI_COMM_WORLD);
    if (rank == 1) while (access(argv[1], F_OK)) usleep(1000);
    MPI_Bcast(out, 77, MPI_BYTE, 1, MPI_COMM_WORLD);
    MPI_Finalize();
}
"#;

#[test]
fn a_real_jobs_collectives_are_seen_and_one_that_waits_is_in_flight() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("job.c"), JOB).expect("written");
    let compiled = Command::new("mpicc")
        .arg("-o")
        .args([at("job"), at("job.c")])
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        return skipped("no mpicc that works");
    }
    let options = BpfOptions {
        collective: true,
        ..BpfOptions::default()
    };
    let Some(mut bpf) = load(&options) else {
        return;
    };
    let mut job = Running::spawn(
        Command::new("mpirun")
            .args(["--allow-run-as-root", "--oversubscribe", "-np", "2"])
            .arg(at("job"))
            .arg(at("go")),
    );
    let ranks = until(&mut bpf, "both ranks", |_, bpf| {
        let ranks = ranks_of(bpf.job_pids(), &at("job"));
        (ranks.len() == 2).then_some(ranks)
    });
    let ours = |call: &Collective| ranks.values().any(|pid| *pid == call.pid);
    job.tell("go");
    // Rank 0 waits for rank 1, which waits for the file.
    let mut calls: Vec<Collective> = Vec::new();
    let waiting = until(&mut bpf, "the broadcast that waits", |sample, _| {
        calls.extend(sample.collectives.iter().cloned());
        let mut in_flight = sample.in_flight.iter();
        in_flight
            .find(|call| call.pid == ranks[&0] && call.op == CollectiveOp::MpiBcast)
            .cloned()
    });
    assert_eq!((waiting.pid, waiting.bytes), (ranks[&0], Some(77)));
    fs::write(at("go"), "").expect("written");
    until(&mut bpf, "the end", |sample, _| {
        calls.extend(sample.collectives.iter().cloned());
        let ended = calls
            .iter()
            .filter(|call| ours(call) && call.op == CollectiveOp::MpiBcast);
        (ended.count() == 2).then_some(())
    });
    job.finish();
    for pid in ranks.values() {
        let of_rank: Vec<_> = calls.iter().filter(|call| call.pid == *pid).collect();
        let comm = of_rank[0].comm;
        assert!(comm != 0 && of_rank.iter().all(|call| call.comm == comm));
        let seen: Vec<_> = of_rank
            .iter()
            .map(|call| (call.op, call.bytes, call.datatype))
            .collect();
        let expected = [
            (CollectiveOp::MpiAllreduce, Some(4000), Some("float")),
            (CollectiveOp::MpiAllgather, Some(2000), Some("int")),
            (CollectiveOp::MpiReduceScatter, None, Some("double")),
            (CollectiveOp::MpiAlltoall, Some(800), Some("float")),
            (CollectiveOp::MpiBcast, Some(77), Some("byte")),
        ];
        assert_eq!(seen, expected);
    }
}

/// The ranks among these processes, by number; checks that they are of one job.
fn ranks_of(pids: Vec<u32>, program: &Path) -> BTreeMap<u32, u32> {
    let runs =
        |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    let mut keys = Vec::new();
    let mut ranks = BTreeMap::new();
    for pid in pids.into_iter().filter(runs) {
        let job = jobs::identify(pid).expect("mpirun says");
        assert_eq!(job.size, Some(2), "{job:?}");
        ranks.insert(job.rank.expect("mpirun says"), pid);
        keys.push(job.key);
    }
    keys.dedup();
    assert!(keys.len() <= 1, "{keys:?}");
    ranks
}
