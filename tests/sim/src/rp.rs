//! The reaction point: how a sender's rate follows its congestion notifications, as NVIDIA's firmware does DCQCN.
//!
//! ```text
//!              CNP           grid of rate_reduce_monitor_period after the first CNP
//!   idle ─────────────► cut pending ─────────────► cut: R_C *= 1 - alpha/2, timer and byte counter start again
//!                                                     │ timer or byte counter expires
//!                                                     ▼
//!            stage < F: fast recovery   R_C = (R_C + R_T)/2
//!            stage = F: additive        R_T += AI,  R_C = (R_C + R_T)/2
//!            stage > F: hyper           R_T += HAI, R_C = (R_C + R_T)/2
//! ```
//!
//! Nothing here needs an event of its own: what happened since the last look (alpha's decay, a pending cut, timers)
//! is caught up with, in its order in time, when a packet is to be sent or a notification arrives. The stage is the
//! highest of both counters for leaving fast recovery and the lowest for hyper increase (Zhu et al., SIGCOMM 2015);
//! with the byte counter off, the timer's alone.

use crate::time::{Time, US};
use serde::{Deserialize, Serialize};

/// Parameters of the reaction point, by the names and units of NVIDIA's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RpParams {
    /// False sends at the line's rate whatever is notified.
    pub enabled: bool,
    /// Additive increase, Mb/s.
    pub rpg_ai_rate: f64,
    /// Hyper increase, Mb/s.
    pub rpg_hai_rate: f64,
    /// Time between increases, us.
    pub rpg_time_reset: f64,
    /// Bytes between increases; 0 turns the byte counter off.
    pub rpg_byte_reset: u64,
    /// Increases that are fast recovery (F).
    pub rpg_threshold: u32,
    /// Gain of alpha, in 1024ths of what alpha keeps: 1019 is g = 5/1024.
    pub dce_tcp_g: f64,
    /// Time between updates of alpha, us.
    pub dce_tcp_rtt: f64,
    /// Least time between cuts, us.
    pub rate_reduce_monitor_period: f64,
    /// Alpha at the first notification, in 1024ths (1024 is 1.0).
    pub initial_alpha: f64,
    /// A cut leaves at least so many percent of the rate.
    pub min_dec_fac: f64,
    /// The lowest rate, Mb/s.
    pub min_rate: f64,
    /// The rate set by the first notification, Mb/s; 0 leaves it.
    pub rate_to_set_on_first_cnp: f64,
    /// A cut takes alpha / 2^(rpg_gd - 10) of the rate.
    pub rpg_gd: u32,
    /// Every cut lowers the target rate, also one that follows another without an increase between.
    pub clamp_tgt_rate: bool,
}

impl Default for RpParams {
    /// What NVIDIA's adapters ship with, but for the byte counter: the unit of theirs is not documented, and it is off.
    fn default() -> Self {
        Self {
            enabled: true,
            rpg_ai_rate: 5.0,
            rpg_hai_rate: 50.0,
            rpg_time_reset: 300.0,
            rpg_byte_reset: 0,
            rpg_threshold: 1,
            dce_tcp_g: 1019.0,
            dce_tcp_rtt: 1.0,
            rate_reduce_monitor_period: 4.0,
            initial_alpha: 1024.0,
            min_dec_fac: 50.0,
            min_rate: 100.0,
            rate_to_set_on_first_cnp: 0.0,
            rpg_gd: 11,
            clamp_tgt_rate: false,
        }
    }
}

/// Parameters in the units of the engine.
#[derive(Debug, Clone, Copy)]
pub struct RpConstants {
    pub(crate) enabled: bool,
    ai: f64,
    hai: f64,
    timer: Time,
    bytes: u64,
    threshold: u32,
    keep: f64,
    alpha_every: Time,
    cut_every: Time,
    alpha_first: f64,
    cut_share: f64,
    least_share: f64,
    min_rate: f64,
    first_rate: f64,
    clamp: bool,
}

impl From<&RpParams> for RpConstants {
    fn from(p: &RpParams) -> Self {
        let period = |us: f64| crate::time::from_us(us).max(US / 100);
        Self {
            enabled: p.enabled,
            ai: p.rpg_ai_rate * 1e6,
            hai: p.rpg_hai_rate * 1e6,
            timer: period(p.rpg_time_reset),
            bytes: p.rpg_byte_reset,
            threshold: p.rpg_threshold,
            keep: (p.dce_tcp_g / 1024.0).clamp(0.0, 1.0),
            alpha_every: period(p.dce_tcp_rtt),
            cut_every: period(p.rate_reduce_monitor_period),
            alpha_first: (p.initial_alpha / 1024.0).clamp(0.0, 1.0),
            cut_share: 0.5f64.powi(i32::try_from(p.rpg_gd).unwrap_or(11) - 10),
            least_share: (p.min_dec_fac / 100.0).clamp(0.0, 1.0),
            min_rate: p.min_rate * 1e6,
            first_rate: p.rate_to_set_on_first_cnp * 1e6,
            clamp: p.clamp_tgt_rate,
        }
    }
}

/// State of one queue pair. Rates are bits per second.
#[derive(Debug, Clone)]
pub struct Rp {
    line: f64,
    rate: f64,
    target: f64,
    alpha: f64,
    /// A notification has come since alpha's last update.
    alpha_marked: bool,
    /// False until the first notification: nothing below means anything before.
    active: bool,
    cut_pending: bool,
    alpha_at: Time,
    cut_at: Time,
    timer_at: Time,
    sent: u64,
    stage_time: u32,
    stage_bytes: u32,
    /// Cuts so far.
    pub cuts: u64,
}

impl Rp {
    /// A queue pair that starts at the rate of its line.
    #[must_use]
    pub fn new(line: f64) -> Self {
        Self {
            line,
            rate: line,
            target: line,
            alpha: 1.0,
            alpha_marked: false,
            active: false,
            cut_pending: false,
            alpha_at: 0,
            cut_at: 0,
            timer_at: 0,
            sent: 0,
            stage_time: 0,
            stage_bytes: 0,
            cuts: 0,
        }
    }

    /// The current rate, as of the last look.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The target rate R_T.
    #[must_use]
    pub fn target(&self) -> f64 {
        self.target
    }

    /// Alpha in 0.0..=1.0.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// True while nothing limits the sender below its line.
    #[must_use]
    pub fn at_line(&self) -> bool {
        !self.active || self.rate >= self.line
    }

    /// A line that changed its rate.
    pub fn set_line(&mut self, line: f64) {
        if self.target >= self.line {
            self.target = line;
        }
        if self.rate >= self.line || self.rate > line {
            self.rate = line;
        }
        self.target = self.target.min(line);
        self.line = line;
    }

    /// A notification arrived.
    pub fn notified(&mut self, now: Time, c: &RpConstants) {
        if !c.enabled {
            return;
        }
        self.catch_up(now, c);
        if !self.active {
            self.active = true;
            self.alpha = c.alpha_first;
            self.alpha_marked = false;
            self.alpha_at = now + c.alpha_every;
            self.cut_at = now + c.cut_every;
            self.timer_at = Time::MAX;
            if c.first_rate > 0.0 {
                self.rate = c.first_rate.clamp(c.min_rate, self.rate.max(c.min_rate));
                self.target = self.rate;
            }
        } else {
            self.alpha_marked = true;
        }
        self.cut_pending = true;
    }

    /// Payload and headers of a packet that left.
    pub fn sent(&mut self, bytes: u64, c: &RpConstants) {
        if c.bytes == 0 || !self.active {
            return;
        }
        self.sent += bytes;
        while self.sent >= c.bytes {
            self.sent -= c.bytes;
            self.increase(c);
            self.stage_bytes += 1;
        }
    }

    /// Brings the state to `now`: cuts, alpha and timers happen in the order of their times.
    pub fn catch_up(&mut self, now: Time, c: &RpConstants) {
        if !self.active {
            return;
        }
        loop {
            let cut = if self.cut_pending {
                self.cut_at
            } else {
                Time::MAX
            };
            let next = cut.min(self.timer_at);
            if next > now {
                break;
            }
            if cut <= self.timer_at {
                self.alpha_until(cut, c);
                self.cut_at = cut + c.cut_every;
                self.cut(cut, c);
            } else {
                self.timer_at += c.timer;
                self.increase(c);
                self.stage_time = self.stage_time.saturating_add(1);
                if self.stage_time > c.threshold + 1 && self.rate >= self.line {
                    // At the line's rate for good: no need to count timers one by one.
                    let behind = now.saturating_sub(self.timer_at) / c.timer;
                    self.timer_at += behind * c.timer;
                }
            }
        }
        self.alpha_until(now, c);
        if !self.cut_pending && self.cut_at <= now {
            self.cut_at += ((now - self.cut_at) / c.cut_every + 1) * c.cut_every;
        }
    }

    fn alpha_until(&mut self, now: Time, c: &RpConstants) {
        if self.alpha_at > now {
            return;
        }
        let steps = (now - self.alpha_at) / c.alpha_every + 1;
        self.alpha *= c.keep;
        if self.alpha_marked {
            self.alpha += 1.0 - c.keep;
            self.alpha_marked = false;
        }
        self.alpha *= c.keep.powi(i32::try_from(steps - 1).unwrap_or(i32::MAX));
        self.alpha_at += steps * c.alpha_every;
    }

    fn cut(&mut self, now: Time, c: &RpConstants) {
        if c.clamp || self.stage_time != 0 || self.stage_bytes != 0 {
            self.target = self.rate;
        }
        let share = (1.0 - self.alpha * c.cut_share).max(c.least_share);
        self.rate = (self.rate * share).max(c.min_rate).min(self.line);
        self.stage_time = 0;
        self.stage_bytes = 0;
        self.sent = 0;
        self.cut_pending = false;
        self.timer_at = now + c.timer;
        self.cuts += 1;
    }

    fn increase(&mut self, c: &RpConstants) {
        let (high, low) = if c.bytes == 0 {
            (self.stage_time, self.stage_time)
        } else {
            (
                self.stage_time.max(self.stage_bytes),
                self.stage_time.min(self.stage_bytes),
            )
        };
        if high >= c.threshold {
            let step = if low > c.threshold { c.hai } else { c.ai };
            self.target = (self.target + step).min(self.line);
        }
        self.rate = (f64::midpoint(self.rate, self.target)).min(self.line);
    }
}

#[cfg(test)]
#[path = "rp_tests.rs"]
mod tests;
