//! Thresholds and limits of the core, each with its reason.

use std::time::Duration;

/// How far the controller may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Verdicts only.
    #[default]
    Observe,
    /// Verdicts and the change that would be made.
    Advise,
    /// Changes under lease.
    Act,
}

impl Mode {
    /// Name in the configuration and the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Advise => "advise",
            Mode::Act => "act",
        }
    }
}

/// All that an operator can set of the core.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub mode: Mode,
    pub hotspot: Hotspot,
    pub trial: Trial,
    pub probe: crate::pinglist::Settings,
    pub health: Health,
}

/// When a link counts as hot and what a hot link is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Hotspot {
    /// Share of capacity, over the busy part of the interval, from which a link whose queue shows
    /// pressure is hot. 0.75: a colliding uplink of the lab was seen between 0.8 and 1.0, since the
    /// ring waits for compute in between. Hot alone is no verdict.
    pub utilisation_hot: f64,
    /// The same where packets are marked: DCQCN keeps a contended link well below its rate. 0.5: an independent
    /// simulator's colliding uplinks were seen between 0.5 and 0.9 over half a millisecond.
    pub utilisation_marked: f64,
    /// Share of capacity from which a link is full: every member of an oversubscribed group must
    /// be, and a link whose queue nobody sees. A balanced job in the lab stays below 0.93.
    pub utilisation_full: f64,
    /// Queueing delay that proves pressure, at the link's own rate. 0.4 ms at 200 Mbit/s is seven
    /// full frames.
    pub queue_delay_hot: Duration,
    /// Share of packets marked Congestion Experienced that proves pressure. A clean link marks none; DCQCN holds a
    /// shared one at some per cent. 0.1 % is above what one short burst leaves in a second.
    pub marked_hot: f64,
    /// The same where nobody knows when the jobs of a link have something on the wire (NCCL's calls return before it is
    /// done): as many marks prove that it was full whenever they had. 0.5 %: five times what one burst leaves.
    pub marked_alone: f64,
    /// Share of packets dropped by the queue that proves pressure. 0.03 %: TCP halves its rate for less than one in a
    /// thousand at 10 Gbit/s, and a stray drop in a second is none.
    pub dropped_hot: f64,
    /// Share of an interval for which a port is paused that is worth a question. 1 %: 10 ms in a second, ten times
    /// what bursts of a healthy all-to-all leave.
    pub paused_hot: f64,
    /// A receiver that pauses its link for this share of the time is slow. 5 %: a job that uses the link fully loses as much.
    pub slow_receiver: f64,
    /// A receiver that lets its link stand for this share of the time, and takes next to nothing, is a storm.
    pub storm: f64,
    /// A sibling below this share of capacity has room.
    pub sibling_idle: f64,
    /// Verdict after this many hot samples out of the last `window` of them.
    pub samples_hot: usize,
    pub window: usize,
    /// Incast: this many distinct senders to one receiver, at least.
    pub incast_senders: usize,
    /// Collision: the slowest flow must gain this factor by the best plan.
    pub gain_min: f64,
    /// Share of a link's traffic that the known flows must explain before it is judged.
    pub explained_min: f64,
    /// What both ends of a cable count is compared over windows of this length: a minute is sixty times what may be
    /// on its way between two readings.
    pub cable_window: Duration,
    /// An incident ends when its links were not hot for this long, where nodes are sampled each second; for as many intervals
    /// where they are sampled more seldom.
    pub clear_after: Duration,
}

/// How a change is tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// A lease not renewed for this long restores the baseline.
    pub ttl: Duration,
    /// Iterations before the change that a verdict is judged against, at least.
    pub iterations_before: usize,
    /// Iterations after it, the discarded one not counted.
    pub iterations_after: usize,
    /// Kept if the median iteration takes at most this share of the time before.
    pub keep_ratio: f64,
    /// Rolled back at once when two judged iterations in a row are slower by this factor.
    pub harm_ratio: f64,
    /// Most changes in one trial; more than that is a redesign, not a repair.
    pub changes_max: usize,
    /// Every agent must have answered by then.
    pub apply_timeout: Duration,
    /// No judgement by then: back to the baseline.
    pub hold_timeout: Duration,
    /// No new trial for the same job for this long after one ended.
    pub cooldown: Duration,
    /// A kept change is given back when its job was silent for this long.
    pub job_gone: Duration,
}

/// When a device counts as ill. The rules' own numbers are in [`crate::health::rules`].
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// A node that connected is not judged by its links until none came or went for this long. 15 s:
    /// mlx5 trains a link within ten.
    pub settle: Duration,
    /// It is judged after this long in any case. Two minutes: a server's NICs come up within one of
    /// its agent.
    pub boot_grace: Duration,
    /// A link that goes down three times in this long flaps, or twice in a fifth of it. Five minutes: a
    /// peer that boots brings its link down by firmware and by driver, more than a minute apart.
    pub flap_window: Duration,
    /// Bit errors for each bit that a good link makes. 1e-12 is the limit of IEEE 802.3 up to 100 Gbit/s; good links
    /// of any speed are far below.
    pub bit_error_ratio: f32,
    /// Temperature of a transceiver module, in thousandths of a degree Celsius, that is too hot for
    /// any: optics are made for up to 70 °C, the hardened ones for 85 °C.
    pub module_millidegrees_max: u64,
    /// What stands for this long is worse than it looked. Half an hour: nobody took care of it.
    pub escalate_after: Duration,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            settle: Duration::from_secs(15),
            boot_grace: Duration::from_secs(120),
            flap_window: Duration::from_secs(300),
            bit_error_ratio: 1e-12,
            module_millidegrees_max: 85_000,
            escalate_after: Duration::from_secs(1800),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            mode: Mode::Observe,
            hotspot: Hotspot {
                utilisation_hot: 0.75,
                utilisation_marked: 0.5,
                utilisation_full: 0.95,
                queue_delay_hot: Duration::from_micros(400),
                marked_hot: 0.001,
                marked_alone: 0.005,
                dropped_hot: 0.0003,
                paused_hot: 0.01,
                slow_receiver: 0.05,
                storm: 0.5,
                sibling_idle: 0.6,
                samples_hot: 2,
                window: 3,
                incast_senders: 3,
                gain_min: 1.2,
                explained_min: 0.5,
                cable_window: Duration::from_secs(60),
                clear_after: Duration::from_secs(5),
            },
            trial: Trial {
                ttl: Duration::from_secs(10),
                iterations_before: 3,
                iterations_after: 3,
                keep_ratio: 0.95,
                harm_ratio: 1.05,
                changes_max: 32,
                apply_timeout: Duration::from_secs(3),
                hold_timeout: Duration::from_secs(60),
                cooldown: Duration::from_secs(30),
                job_gone: Duration::from_secs(30),
            },
            probe: crate::pinglist::Settings::default(),
            health: Health::default(),
        }
    }
}
