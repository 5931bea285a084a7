//! The tuner: searches for a setting of marking and rates under which collectives take less time and nobody is harmed.
//!
//! ```text
//!            enough iterations                 the group's jobs are unharmed
//!  Incumbent ────────────────► Canary ───────────────────────────────────► Candidate
//!   A ▲ ▲                        │ one leaf or rail                            │ everywhere     B
//!     │ └── a limit breaks ──────┴──────────────────── a limit breaks ─────────┤
//!     └──────────────────────────── enough iterations ─────────────────────────┘
//!   pair: B against the mean of the A before and the A after it; then
//!     sure that it is faster, and nobody pays: kept, it is the incumbent now
//!     no gain, a job pays, or undecided for too long: dropped;   otherwise B again
//!   routes: B once, against what was before the session; kept when nobody pays
//!   nothing left to try: Watching ── a limit breaks ──► Incumbent, without what was kept last
//! ```
//!
//! *What is judged*: whole iterations that began after a change, of all jobs. The gain of a candidate is the mean over
//! the jobs of the log ratio of their iteration times, each job counting alike, by the sequential test of
//! [`sequential`]. Interleaving makes drift cancel: whatever changes slowly changes A and B alike.
//!
//! *What limits it*: no job may become slower by more than [`Limits::slowdown_max`] nor the most paused port be paused by
//! more than [`Limits::pause_max`] of the time, each counted over the whole session against what stood before it, so
//! that small steps cannot add up; no more loss or disorder than the incumbent shows. A job's iteration that takes a
//! quarter longer than any under the incumbent, or two in a row by `slowdown_max`, a lost packet or a port paused for
//! too long end a candidate at once, in the middle of its block. Congestion control off is a candidate like any other.
//!
//! *Order*: routes first, because a collision costs more than any threshold; they alone are not interleaved (`stand`
//! says why). Then what was best for this traffic pattern in an earlier session; then moves ([`Move`]), thresholds
//! before rates, each tried again where it was kept, and last on one class alone what broke a limit on all. When nothing
//! is marked and nobody pauses, no threshold can matter, and none is tried.
//!
//! *Why this search*: a try costs several iterations of every job on the fabric, and a bad one harms them. Annealing
//! (Paraleon, ICNP 2024) changes all parameters at once, by chance, needs some seventy tries a session and accepts worse
//! ones on purpose. A bandit needs a fixed set of arms and pays for each of them in every context. A pattern search over
//! few directions (Hooke and Jeeves 1961) with the tallies of earlier sessions needs a handful, each step is one idea
//! that can be explained and taken back, and it ends. What it gives up: optima that no single direction leads to.
//!
//! Pure: time is an argument, state is plain data (maps, numbers, names), every collection is bounded: jobs by
//! [`JOBS_MAX`], candidates by [`Limits::candidates_max`], iterations kept by `HISTORY` and `RECENT`. Cost: per look a
//! few comparisons a job and one a port.

mod block;
mod memory;
mod sequential;
mod session;
mod setting;

pub use block::{Counters, JOBS_MAX, JobSeen, Look, Measured};
pub use memory::{Edge, Known, Memory, PATTERNS_MAX, Signature, Tally};
pub use sequential::Pairs;
pub use session::{Command, Limits, Phase, Scope, Session, Step, Tuner, Verdict, What};
pub use setting::{Bounds, Class, Ecn, Move, Rate, Refusal, STEP_MAX, Setting};
