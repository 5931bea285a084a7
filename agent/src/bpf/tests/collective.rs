//! Probes on small libraries that bear the real ones' names and functions.

use super::rig::{Built, Pair, Running, build, inside, is_root, load, until};
use crate::bpf::{BpfOptions, Collective, CollectiveOp};

const NCCL: &str = r#"
#include <stddef.h>
#include <setjmp.h>
typedef struct { char internal[128]; } ncclUniqueId;
jmp_buf escape;
static int communicator;
int ncclCommInitRank(void **comm, int nranks, ncclUniqueId id, int rank) { *comm = &communicator; return nranks < rank; }
int ncclAllReduce(const void *s, void *r, size_t n, int type, int op, void *comm, void *stream) { return 0; }
int ncclAllReduceConfig(const void *s, void *r, size_t n, int type, int op, void *comm, void *stream, void *config)
{ return ncclAllReduce(s, r, n, type, op, comm, stream) + 0 * *(volatile char *)config; }
int ncclReduce(const void *s, void *r, size_t n, int type, int op, int root, void *comm, void *stream) { return 0; }
int ncclSend(const void *s, size_t n, int type, int peer, void *comm, void *stream) { return 5; }
int ncclBroadcast(const void *s, void *r, size_t n, int type, int root, void *comm, void *stream) { longjmp(escape, 1); }
int ncclGroupEnd(void) { return 0; }
"#;

const NCCL_CALLER: &str = r#"
#include <stdio.h>
#include <setjmp.h>
#include <stddef.h>
typedef struct { char internal[128]; } ncclUniqueId;
extern jmp_buf escape;
int ncclCommInitRank(void **, int, ncclUniqueId, int);
int ncclAllReduce(const void *, void *, size_t, int, int, void *, void *);
int ncclAllReduceConfig(const void *, void *, size_t, int, int, void *, void *, void *);
int ncclReduce(const void *, void *, size_t, int, int, int, void *, void *);
int ncclSend(const void *, size_t, int, int, void *, void *);
int ncclBroadcast(const void *, void *, size_t, int, int, void *, void *);
int ncclGroupEnd(void);
int main(void) {
    char line[64], data[64] = {0};
    void *comm = 0;
    ncclUniqueId id = {{0}};
    setlinebuf(stdout);
    while (fgets(line, sizeof line, stdin)) {
        ncclCommInitRank(&comm, 8, id, 3);
        ncclAllReduce(data, data, 1024, 7, 0, comm, 0);
        ncclAllReduceConfig(data, data, 100, 9, 0, comm, 0, data);
        ncclReduce(data, data, 5000000000, 8, 0, 1, comm, 0);
        if (!setjmp(escape)) ncclBroadcast(data, data, 1, 1, 0, comm, 0);
        ncclSend(data, 3, 99, 1, comm, 0);
        ncclGroupEnd();
        printf("%llu\n", (unsigned long long)comm);
    }
}
"#;

const MPI: &str = "
int MPI_Bcast(void *data, int n, int type, int root, int comm) { return 0; }
";

const MPI_CALLER: &str = r#"
#include <stdio.h>
int MPI_Bcast(void *, int, int, int, int);
int main(void) {
    char line[64];
    setlinebuf(stdout);
    while (fgets(line, sizeof line, stdin)) {
        MPI_Bcast(line, 10, 0x4c00080b, 0, 0x44000000);
        puts("done");
    }
}
"#;

fn options(netns_filter: bool) -> BpfOptions {
    BpfOptions {
        netns_filter,
        collective: true,
        ..BpfOptions::default()
    }
}

#[test]
fn each_call_is_recorded_with_its_arguments() {
    if !is_root() {
        return;
    }
    let Some(Built { directory, program }) = build("libnccl.so.2", NCCL, NCCL_CALLER) else {
        return;
    };
    let Some(mut bpf) = load(&options(false)) else {
        return;
    };
    let mut running = Running::start(&program, None);
    let pid = running.pid();
    until(&mut bpf, "the probes", |_, bpf| {
        bpf.job_pids().contains(&pid).then_some(())
    });
    let comm: u64 = running.ask("go").parse().expect("a handle");
    let mut calls: Vec<Collective> = Vec::new();
    until(&mut bpf, "the last call", |sample, _| {
        calls.extend(
            sample
                .collectives
                .iter()
                .filter(|call| call.pid == pid)
                .cloned(),
        );
        calls
            .iter()
            .any(|call| call.op == CollectiveOp::NcclGroupEnd)
            .then_some(())
    });
    let seen: Vec<_> = calls
        .iter()
        .map(|call| {
            (
                call.op,
                call.count,
                call.bytes,
                call.datatype,
                call.comm,
                call.result,
            )
        })
        .collect();
    // The call within ncclAllReduceConfig is no call of its own, and the one
    // that never returned leaves no trace in those that follow.
    let expected = [
        (CollectiveOp::NcclCommInitRank, None, None, None, comm, 0),
        (
            CollectiveOp::NcclAllReduce,
            Some(1024),
            Some(4096),
            Some("float32"),
            comm,
            0,
        ),
        (
            CollectiveOp::NcclAllReduce,
            Some(100),
            Some(200),
            Some("bfloat16"),
            comm,
            0,
        ),
        (
            CollectiveOp::NcclReduce,
            Some(5_000_000_000),
            Some(40_000_000_000),
            Some("float64"),
            comm,
            0,
        ),
        (CollectiveOp::NcclSend, Some(3), None, None, comm, 5),
        (CollectiveOp::NcclGroupEnd, None, None, None, 0, 0),
    ];
    assert_eq!(seen, expected);
    assert_eq!((calls[0].nranks, calls[0].rank), (Some(8), Some(3)));
    assert_eq!((calls[1].nranks, calls[1].rank), (None, None));
    assert!(
        calls
            .iter()
            .all(|call| call.tid == pid && call.start_ns < call.end_ns)
    );
    assert!(
        calls
            .windows(2)
            .all(|pair| pair[0].end_ns <= pair[1].start_ns)
    );
    running.finish();
    until(&mut bpf, "the probes released", |sample, bpf| {
        let library = directory.path().to_str().expect("utf-8");
        let said = |note: &String| note.contains(library) && note.contains("released");
        (sample.notes.iter().any(said) && !bpf.job_pids().contains(&pid)).then_some(())
    });
}

#[test]
fn a_call_in_another_namespace_is_not_ours() {
    if !is_root() {
        return;
    }
    let Some(built) = build("libmpi.so.12", MPI, MPI_CALLER) else {
        return;
    };
    let Some(pair) = Pair::make() else { return };
    let Some(mut bpf) = inside(&pair.first, || load(&options(true))) else {
        return;
    };
    let mut ours = Running::start(&built.program, Some(&pair.first));
    let mut theirs = Running::start(&built.program, Some(&pair.second));
    until(&mut bpf, "the probes", |_, bpf| {
        (bpf.job_pids() == [ours.pid()] && bpf.libraries_attached() == 1).then_some(())
    });
    theirs.ask("go");
    ours.ask("go");
    let calls = until(&mut bpf, "our call", |sample, _| {
        (!sample.collectives.is_empty()).then(|| sample.collectives.clone())
    });
    // One file, one pair of probes: the program itself tells whose call it is.
    let seen: Vec<_> = calls
        .iter()
        .map(|call| (call.pid, call.op, call.bytes))
        .collect();
    assert_eq!(seen, [(ours.pid(), CollectiveOp::MpiBcast, Some(80))]);
    ours.finish();
    theirs.finish();
}

#[test]
fn a_library_without_the_functions_is_reported_once() {
    if !is_root() {
        return;
    }
    let library = "int answer(void) { return 42; }";
    let program = r#"
        #include <stdio.h>
        int answer(void);
        int main(void) { char line[64]; while (fgets(line, sizeof line, stdin)) if (answer() != 42) return 1; }
    "#;
    let Some(built) = build("librccl.so.1", library, program) else {
        return;
    };
    let Some(mut bpf) = load(&options(false)) else {
        return;
    };
    let running = Running::start(&built.program, None);
    let told = |notes: &[String]| {
        let of_it = notes.iter().filter(|note| note.contains("librccl.so.1"));
        of_it
            .filter(|note| note.contains("none of the functions"))
            .count()
    };
    until(&mut bpf, "the report", |sample, _| {
        (told(&sample.notes) == 1).then_some(())
    });
    let mut again = 0;
    let later = Running::start(&built.program, None);
    until(&mut bpf, "the second process", |sample, bpf| {
        again += told(&sample.notes);
        bpf.job_pids().contains(&later.pid()).then_some(())
    });
    assert_eq!(again, 0);
    running.finish();
    later.finish();
}
