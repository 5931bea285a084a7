//! A packet-level simulator of RoCEv2 fabrics: what a NIC and a switch do to the traffic of training jobs, and what
//! they count while they do it. Diagnosis and tuning are proven on it before they touch a cluster.
//!
//! Discrete events, one thread, one seed: the same scenario and seed give the same run, byte for byte. Time is whole
//! picoseconds. A [`sim::Sim`] is a handle: run until a time, read every counter ([`sim::Sim::sample`]), change marking,
//! reaction points, weights, pins, links ([`change::Change`]), and go on.
//!
//! ```text
//! scenario (YAML) ──► topology, jobs ──► Sim ──► counters at any time ──► report, SVG, a controller
//!                      plan: messages      │ wheel: events in order of time
//!                                          │ nic: queue pairs, go-back-N, CNP; rp: DCQCN's rates
//!                                          │ link: ports, ECMP (route), marking, PFC (buffer)
//! ```
//!
//! # What is assumed where the traces of the independent simulator do not say, and their evidence
//!
//! *Headers*: 48 bytes a data packet, 60 an acknowledgement, 43 a pause. `txB`, `txP` and `rxB` of a port that carries
//! one kind only divide evenly.
//!
//! *One acknowledgement a packet, in the class of the data*: as many 60-byte packets come back as data packets went, and
//! the queue of a port that carries both is their sum. With it a clean ring takes 731.6 us as theirs does; the loss of 6 %
//! of the rate to acknowledgements is in that figure.
//!
//! *Notifications ride on acknowledgements*: `cnpSent` equals `cnpHandled` over all hosts, and there are no other packets.
//!
//! *Serialisation in whole nanoseconds* (`whole_ns`): a busy port sends 602 packets in 50 us, which is 83 ns each, not 83.84.
//!
//! *No window*: a sender at 100 Gb/s sends 300 packets before its first notification comes back.
//!
//! *The target rate stays while cuts follow each other*: a sender cut from 100 to 0.1 Gb/s is at 50.05 one timer later.
//!
//! *Queue pairs stay*: a sender's rate at the start of an iteration is that at the end of the one before.
//!
//! *A packet is marked as it leaves, by what still waits in the lossless class*: sums of marks agree (7260 and about 7300
//! in the incast).
//!
//! *Alpha of the buffer is 1/16* (`dynamic_th: -4`): with 1/8 the incast is never paused, with 1/32 it is for 400 us;
//! theirs is for 78 us, and so is ours.
//!
//! *A pause for each packet that arrives above the threshold, and it holds until the resume*: 19 pauses to a paused time of
//! 4.3 us in the incast is what arrives in the time that a pause takes to work. Without marking they are paused for
//! 0.52 us a frame, more than pauses that run out after 5 us could give; the notes on that simulator say 5 us.
//!
//! *The incast beside the victim ends after 20 MB a sender*: its 0 iterations in 3 ms only say more than 3 MB. Without
//! marking the reference's victim is slowed by 528 % and ports are paused for 195 ms in all; with 20 MB ours are 450 % and
//! 202 ms, with an endless incast 1570 % and 850 ms.
//!
//! *Turns by position*: a queue pair that its pacing held back for less than a round keeps its turn. With turns in the
//! order of becoming ready, the deepest queue of the all-to-all grows half as fast as theirs, and a third is marked.
//!
//! *A reported gap slows the sender down* (`nak_slows`, only in the lossy link's model): `cnpHandled` rises with `nackRcvd`
//! there. How the last packet of a message is repaired is not visible; a timeout of 200 us stands for it.
//!
//! *Paths*: their hash is not known. [`infer`] finds from the counters which way each flow went: at the end of a trace
//! they say how many flows took each link, the first rows say which. Iteration times are not looked at.
#![forbid(unsafe_code)]

pub mod bench;
pub mod buffer;
pub mod change;
pub mod config;
pub mod diagnose;
pub mod events;
pub mod hist;
pub mod infer;
pub mod job;
mod link;
mod nic;
pub mod num;
pub mod packet;
pub mod plan;
pub mod port;
pub mod reference;
pub mod report;
pub mod rng;
pub mod round;
pub mod route;
pub mod rp;
pub mod scenario;
pub mod signals;
pub mod sim;
pub mod svg;
pub mod time;
pub mod topology;
pub mod traces;
pub mod truths;
pub mod tune;
pub mod wheel;
