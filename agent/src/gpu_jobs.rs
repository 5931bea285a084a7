//! Which jobs compute on which GPU: the driver's processes joined with what their launchers told them.

use crate::bpf::jobs::JobIdentity;
use std::collections::{BTreeMap, BTreeSet};

/// Processes on GPUs that are told one by one: 64 on each of 16.
const GPU_PROCESSES_MAX: usize = 1024;
/// A process that computes on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuProcess {
    /// PCI address.
    pub gpu: String,
    pub pid: u32,
    /// `None` if no launcher told it one, or it is not ours to read.
    pub job: Option<JobIdentity>,
}

/// Finds the job of each process on a GPU. A process is asked for its job when it is new there, for a
/// number may be used again.
#[must_use]
pub fn join(
    processes: &BTreeMap<String, Vec<u32>>,
    known: &mut BTreeMap<u32, Option<JobIdentity>>,
    identify: impl Fn(u32) -> Option<JobIdentity>,
) -> Vec<GpuProcess> {
    let pairs = processes
        .iter()
        .flat_map(|(gpu, pids)| pids.iter().map(move |pid| (gpu, *pid)));
    let pairs: Vec<(&String, u32)> = pairs.take(GPU_PROCESSES_MAX).collect();
    let present: BTreeSet<u32> = pairs.iter().map(|(_, pid)| *pid).collect();
    known.retain(|pid, _| present.contains(pid));
    let joined = pairs.into_iter().map(|(gpu, pid)| GpuProcess {
        gpu: gpu.clone(),
        pid,
        job: known.entry(pid).or_insert_with(|| identify(pid)).clone(),
    });
    joined.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_process_on_a_gpu_has_the_job_of_whoever_it_is_now() {
        let asked = RefCell::new(Vec::new());
        let identify = |pid| {
            asked.borrow_mut().push(pid);
            (pid != 7).then(|| JobIdentity {
                key: format!("slurm:{}", asked.borrow().len()),
                rank: Some(pid),
                size: None,
                source: "SLURM_JOB_ID",
            })
        };
        let mut known = BTreeMap::new();
        let mut keys = |gpus: &[(&str, &[u32])]| {
            let of = |(gpu, pids): &(&str, &[u32])| ((*gpu).to_owned(), pids.to_vec());
            let processes = gpus.iter().map(of).collect();
            let joined = join(&processes, &mut known, identify);
            let key = |p: GpuProcess| (p.gpu, p.pid, p.job.map(|j| j.key));
            joined.into_iter().map(key).collect::<Vec<_>>()
        };
        let one = |gpu: &str, pid, job: Option<&str>| (gpu.to_owned(), pid, job.map(str::to_owned));
        let first = keys(&[("a", &[5, 7]), ("b", &[5])]);
        let job = Some("slurm:1");
        assert_eq!(
            first,
            [one("a", 5, job), one("a", 7, None), one("b", 5, job)]
        );
        assert_eq!(keys(&[("a", &[5])]), [one("a", 5, job)]);
        assert_eq!(keys(&[]), []);
        // The number is another process's.
        assert_eq!(keys(&[("a", &[5])]), [one("a", 5, Some("slurm:3"))]);
        let many: Vec<u32> = (0..5000).collect();
        assert_eq!(keys(&[("a", &many)]).len(), GPU_PROCESSES_MAX);
    }
}
