//! The functions that are probed, and where each keeps its arguments.
//!
//! Sources: nccl.h (2.32; the `Config` variants take one argument more at the
//! end), mpi.h (MPI 3.1). `pncclX` and `PMPI_X` are the same addresses under
//! other names. Gathers and all-to-all are read by their *receive* count and
//! type, which count even where the send buffer is `MPI_IN_PLACE`.

use weir_ebpf_abi::{CallLayout, op};

use super::sample::CollectiveOp;

/// A function and what its cookie tells the probes.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    pub name: &'static str,
    pub layout: CallLayout,
}

const fn nccl(name: &'static str, op: u8, count: u8, datatype: u8, comm: u8) -> Function {
    Function {
        name,
        layout: CallLayout {
            op,
            count,
            datatype,
            comm,
            count_is_int: false,
            init: false,
        },
    }
}

const fn init(name: &'static str) -> Function {
    Function {
        name,
        layout: CallLayout {
            op: op::NCCL_COMM_INIT_RANK,
            count: 0,
            datatype: 0,
            comm: 0,
            count_is_int: false,
            init: true,
        },
    }
}

const fn mpi(name: &'static str, op: u8, count: u8, datatype: u8, comm: u8) -> Function {
    Function {
        name,
        layout: CallLayout {
            op,
            count,
            datatype,
            comm,
            count_is_int: true,
            init: false,
        },
    }
}

/// All of them. Argument numbers count from 1; 0: the function has none.
pub const FUNCTIONS: [Function; 23] = [
    nccl("ncclAllReduce", op::NCCL_ALL_REDUCE, 3, 4, 6),
    nccl("ncclAllReduceConfig", op::NCCL_ALL_REDUCE, 3, 4, 6),
    nccl("ncclAllGather", op::NCCL_ALL_GATHER, 3, 4, 5),
    nccl("ncclAllGatherConfig", op::NCCL_ALL_GATHER, 3, 4, 5),
    nccl("ncclReduceScatter", op::NCCL_REDUCE_SCATTER, 3, 4, 6),
    nccl("ncclReduceScatterConfig", op::NCCL_REDUCE_SCATTER, 3, 4, 6),
    nccl("ncclBroadcast", op::NCCL_BROADCAST, 3, 4, 6),
    nccl("ncclBroadcastConfig", op::NCCL_BROADCAST, 3, 4, 6),
    nccl("ncclReduce", op::NCCL_REDUCE, 3, 4, 7),
    nccl("ncclReduceConfig", op::NCCL_REDUCE, 3, 4, 7),
    nccl("ncclSend", op::NCCL_SEND, 2, 3, 5),
    nccl("ncclSendConfig", op::NCCL_SEND, 2, 3, 5),
    nccl("ncclRecv", op::NCCL_RECV, 2, 3, 5),
    nccl("ncclRecvConfig", op::NCCL_RECV, 2, 3, 5),
    nccl("ncclGroupStart", op::NCCL_GROUP_START, 0, 0, 0),
    nccl("ncclGroupEnd", op::NCCL_GROUP_END, 0, 0, 0),
    init("ncclCommInitRank"),
    init("ncclCommInitRankConfig"),
    mpi("MPI_Allreduce", op::MPI_ALLREDUCE, 3, 4, 6),
    mpi("MPI_Allgather", op::MPI_ALLGATHER, 5, 6, 7),
    // Its counts are an array.
    mpi("MPI_Reduce_scatter", op::MPI_REDUCE_SCATTER, 0, 4, 6),
    mpi("MPI_Alltoall", op::MPI_ALLTOALL, 5, 6, 7),
    mpi("MPI_Bcast", op::MPI_BCAST, 2, 3, 5),
];

/// Translates a record's operation number; `None` for one that is not ours.
pub fn collective_op(number: u32) -> Option<CollectiveOp> {
    Some(match u8::try_from(number).ok()? {
        op::NCCL_ALL_REDUCE => CollectiveOp::NcclAllReduce,
        op::NCCL_ALL_GATHER => CollectiveOp::NcclAllGather,
        op::NCCL_REDUCE_SCATTER => CollectiveOp::NcclReduceScatter,
        op::NCCL_BROADCAST => CollectiveOp::NcclBroadcast,
        op::NCCL_REDUCE => CollectiveOp::NcclReduce,
        op::NCCL_SEND => CollectiveOp::NcclSend,
        op::NCCL_RECV => CollectiveOp::NcclRecv,
        op::NCCL_GROUP_START => CollectiveOp::NcclGroupStart,
        op::NCCL_GROUP_END => CollectiveOp::NcclGroupEnd,
        op::NCCL_COMM_INIT_RANK => CollectiveOp::NcclCommInitRank,
        op::MPI_ALLREDUCE => CollectiveOp::MpiAllreduce,
        op::MPI_ALLGATHER => CollectiveOp::MpiAllgather,
        op::MPI_REDUCE_SCATTER => CollectiveOp::MpiReduceScatter,
        op::MPI_ALLTOALL => CollectiveOp::MpiAlltoall,
        op::MPI_BCAST => CollectiveOp::MpiBcast,
        _ => return None,
    })
}

/// True if calls of this operation carry a count.
pub fn has_count(op: CollectiveOp) -> bool {
    FUNCTIONS
        .iter()
        .filter(|function| collective_op(u32::from(function.layout.op)) == Some(op))
        .any(|function| function.layout.count != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_an_operation_of_its_family() {
        for function in FUNCTIONS {
            let op = collective_op(u32::from(function.layout.op)).expect(function.name);
            assert_eq!(op.is_mpi(), function.name.starts_with("MPI_"));
            assert!(function.name.starts_with(op.name()), "{}", function.name);
        }
    }

    #[test]
    fn a_count_that_is_an_array_is_no_count() {
        assert!(!has_count(CollectiveOp::MpiReduceScatter));
        assert!(!has_count(CollectiveOp::NcclGroupEnd));
        assert!(has_count(CollectiveOp::MpiBcast));
    }
}
