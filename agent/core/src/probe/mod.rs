//! Active probes, the pure part: who is probed when, what an answer means, and how much of the link
//! all of it may cost.
//!
//! A probe leaves from one of a few source ports, so that the switches' hashes spread the probes of
//! one target over its paths, and comes back to the same port. The responder says for how long it
//! held the probe; that time is not the fabric's and is taken out:
//!
//! ```text
//!   prober   ──tx── t1 ───────────────────────────── t4 ──rx──     RTT = (t4 - t1) - (t3 - t2)
//!                     \                             /              own host:    (t1 - user's tx) + (user's rx - t4)
//!   responder          t2 ───── waits, t3 - t2 ─── t3              their host:  t3 - t2
//! ```
//!
//! t1, t2 and t4 are the kernel's or the NIC's stamps; t3 is read just before the reply is sent.
//! As in R-Pingmesh (SIGCOMM 2024) and Swift (SIGCOMM 2020) host and fabric are told apart.

pub mod budget;
pub mod gate;
pub mod packet;
pub mod prober;
pub mod window;
