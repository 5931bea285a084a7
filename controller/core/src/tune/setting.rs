//! What the tuner sets, within which bounds, and by which moves it gets from one setting to the next.

use crate::io::PinChange;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A class of switches or a model of NICs: all of a class hold the same setting.
pub type Class = Arc<str>;

/// Marking by the switches of a class (RED on the egress queue of the lossless class).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ecn {
    /// False marks nothing: congestion control is off.
    pub on: bool,
    /// Nothing is marked up to here, KB of 1000 bytes.
    pub kmin_kb: f64,
    /// Everything is marked above, KB of 1000 bytes.
    pub kmax_kb: f64,
    /// Share marked at Kmax, 0.0..=1.0.
    pub pmax: f64,
}

/// Reaction and notification point of a NIC model, by the names of NVIDIA's firmware.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// `rpg_time_reset`: time between increases, us.
    pub timer_us: f64,
    /// `rpg_ai_rate`: additive increase, Mb/s.
    pub ai_mbps: f64,
    /// `rpg_hai_rate`: hyper increase, Mb/s.
    pub hai_mbps: f64,
    /// `rate_reduce_monitor_period`: least time between cuts, us.
    pub cut_gap_us: f64,
    /// `min_time_between_cnps`: least time between notifications of a queue pair, us.
    pub cnp_gap_us: f64,
}

/// Everything that a session may change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Setting {
    /// Marking, by class of switches.
    pub ecn: BTreeMap<Class, Ecn>,
    /// Rates, by model of NICs.
    pub nic: BTreeMap<Class, Rate>,
    /// Routes that stand beside the hash.
    pub pins: Vec<PinChange>,
}

/// What does not change in a session: where each class pauses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bounds {
    /// Bytes in KB of 1000 at which a port of the class sends its first pause while no other port is congested. Of a
    /// dynamic threshold: alpha / (1 + alpha) of the shared pool. A class that is missing has no PFC to stay below, and
    /// nothing of it may be set.
    pub xoff_kb: BTreeMap<Class, f64>,
}

/// Share of xoff that Kmax stays below: marking must begin before pausing does (Zhu et al., SIGCOMM 2015, 4).
const BELOW_XOFF: f64 = 0.95;
/// One candidate changes no parameter by a larger factor.
pub const STEP_MAX: f64 = 8.0;
/// Ranges: those of Paraleon's search where it names them (ICNP 2024), NVIDIA's where firmware is narrower.
const PMAX: (f64, f64) = (0.01, 1.0);
const TIMER_US: (f64, f64) = (50.0, 600.0);
const AI_MBPS: (f64, f64) = (5.0, 100.0);
const HAI_MBPS: (f64, f64) = (30.0, 1000.0);
const GAP_US: (f64, f64) = (4.0, 128.0);

/// Why a setting is not tried.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// Kmin is not below Kmax.
    Order {
        class: Class,
        kmin_kb: f64,
        kmax_kb: f64,
    },
    /// Kmax is not below the point at which the class pauses.
    Xoff {
        class: Class,
        kmax_kb: f64,
        xoff_kb: f64,
    },
    /// A parameter is out of range.
    Range {
        class: Class,
        name: &'static str,
        value: f64,
    },
    /// A parameter changes by more than [`STEP_MAX`].
    Step {
        class: Class,
        name: &'static str,
        factor: f64,
    },
    /// The class is not known.
    Unknown { class: Class },
    /// Nothing would change.
    Same,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Order {
                class,
                kmin_kb,
                kmax_kb,
            } => {
                write!(
                    f,
                    "{class}: Kmin {kmin_kb} KB must be below Kmax {kmax_kb} KB"
                )
            }
            Refusal::Xoff {
                class,
                kmax_kb,
                xoff_kb,
            } => {
                write!(
                    f,
                    "{class}: Kmax {kmax_kb} KB must be below xoff {xoff_kb} KB"
                )
            }
            Refusal::Range { class, name, value } => {
                write!(f, "{class}: {name} {value} is out of range")
            }
            Refusal::Step {
                class,
                name,
                factor,
            } => {
                write!(
                    f,
                    "{class}: {name} by {factor:.1}, at most {STEP_MAX} in one step"
                )
            }
            Refusal::Unknown { class } => write!(f, "{class}: no such class in this session"),
            Refusal::Same => f.write_str("nothing would change"),
        }
    }
}

/// A direction in which a setting can be moved. Each is one idea that can be explained, kept or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// Mark later and less: for links that run dry because senders are cut too often.
    MarkLater,
    /// Mark less at the same depth.
    MarkLess,
    /// Mark earlier and more: for pauses and for neighbours in deep queues.
    MarkEarlier,
    /// Senders climb by larger steps after a cut.
    ClimbFaster,
    /// Senders climb more often after a cut.
    ClimbSooner,
    /// Senders climb more seldom.
    ClimbLater,
    /// Fewer notifications and cuts.
    CutRarer,
    /// No marking at all: pauses alone.
    Off,
}

impl Move {
    /// All of them, thresholds first: order in which they are tried while nothing is known.
    pub const ALL: [Move; 8] = [
        Move::MarkLater,
        Move::MarkLess,
        Move::MarkEarlier,
        Move::ClimbFaster,
        Move::ClimbSooner,
        Move::ClimbLater,
        Move::CutRarer,
        Move::Off,
    ];

    /// Name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Move::MarkLater => "mark later",
            Move::MarkLess => "mark less",
            Move::MarkEarlier => "mark earlier",
            Move::ClimbFaster => "climb faster",
            Move::ClimbSooner => "climb sooner",
            Move::ClimbLater => "climb later",
            Move::CutRarer => "cut rarer",
            Move::Off => "marking off",
        }
    }

    /// The move back; a session does not try it after this one was kept.
    #[must_use]
    pub fn opposite(self) -> Option<Move> {
        match self {
            Move::MarkLater | Move::MarkLess => Some(Move::MarkEarlier),
            Move::MarkEarlier => Some(Move::MarkLater),
            Move::ClimbSooner => Some(Move::ClimbLater),
            Move::ClimbLater => Some(Move::ClimbSooner),
            Move::ClimbFaster | Move::CutRarer | Move::Off => None,
        }
    }

    /// The classes of switches or models of NICs that it moves.
    #[must_use]
    pub fn classes(self, setting: &Setting) -> Vec<Class> {
        match self {
            Move::MarkLater | Move::MarkLess | Move::MarkEarlier | Move::Off => {
                setting.ecn.keys().cloned().collect()
            }
            Move::ClimbFaster | Move::ClimbSooner | Move::ClimbLater | Move::CutRarer => {
                setting.nic.keys().cloned().collect()
            }
        }
    }

    /// The setting one step in this direction, cut to the bounds.
    #[must_use]
    pub fn from(self, setting: &Setting, bounds: &Bounds) -> Setting {
        let mut to = setting.clone();
        for (class, ecn) in &mut to.ecn {
            let Some(xoff_kb) = bounds.xoff_kb.get(class) else {
                continue;
            };
            let top = (xoff_kb * BELOW_XOFF).floor();
            let mark = |kmin: f64, pmax: f64| {
                let kmax_kb = ecn.kmax_kb.max(kmin * 1.5).min(top);
                Ecn {
                    on: true,
                    kmin_kb: kmin.min(kmax_kb / 1.5).round(),
                    kmax_kb,
                    pmax: clamp(pmax, PMAX),
                }
            };
            *ecn = match self {
                Move::MarkLater => mark(ecn.kmin_kb * 4.0, ecn.pmax * 0.2),
                Move::MarkLess => mark(ecn.kmin_kb, ecn.pmax * 0.2),
                Move::MarkEarlier => mark(ecn.kmin_kb / 2.5, ecn.pmax * 2.5),
                Move::Off => Ecn { on: false, ..*ecn },
                Move::ClimbFaster | Move::ClimbSooner | Move::ClimbLater | Move::CutRarer => *ecn,
            };
        }
        for rate in to.nic.values_mut() {
            let timer = |by: f64| Rate {
                timer_us: clamp(rate.timer_us * by, TIMER_US),
                ..*rate
            };
            *rate = match self {
                Move::ClimbFaster => Rate {
                    ai_mbps: clamp(rate.ai_mbps * STEP_MAX, AI_MBPS),
                    hai_mbps: clamp(rate.hai_mbps * STEP_MAX, HAI_MBPS),
                    ..*rate
                },
                Move::ClimbSooner => timer(0.5),
                Move::ClimbLater => timer(2.0),
                Move::CutRarer => Rate {
                    cut_gap_us: clamp(rate.cut_gap_us * 4.0, GAP_US),
                    cnp_gap_us: clamp(rate.cnp_gap_us * 4.0, GAP_US),
                    ..*rate
                },
                Move::MarkLater | Move::MarkLess | Move::MarkEarlier | Move::Off => *rate,
            };
        }
        to
    }
}

fn clamp(x: f64, (low, high): (f64, f64)) -> f64 {
    x.clamp(low, high)
}

impl Setting {
    /// This for one class, `other` for all that it does not hold.
    #[must_use]
    pub fn only(mut self, class: &Class, other: &Setting) -> Setting {
        for (c, ecn) in other.ecn.iter().filter(|(c, _)| *c != class) {
            self.ecn.insert(c.clone(), *ecn);
        }
        for (c, rate) in other.nic.iter().filter(|(c, _)| *c != class) {
            self.nic.insert(c.clone(), *rate);
        }
        self
    }

    /// Whether this may be tried where `from` stands.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn check(&self, from: &Setting, bounds: &Bounds) -> Result<(), Refusal> {
        if self == from {
            return Err(Refusal::Same);
        }
        for (class, ecn) in &self.ecn {
            let unknown = || Refusal::Unknown {
                class: class.clone(),
            };
            let old = from.ecn.get(class).ok_or_else(unknown)?;
            if ecn == old || !ecn.on {
                continue;
            }
            let xoff_kb = *bounds.xoff_kb.get(class).ok_or_else(unknown)?;
            // Written so that what is not a number is refused too.
            if !(ecn.kmin_kb >= 0.0 && ecn.kmin_kb < ecn.kmax_kb) {
                let (kmin_kb, kmax_kb) = (ecn.kmin_kb, ecn.kmax_kb);
                return Err(Refusal::Order {
                    class: class.clone(),
                    kmin_kb,
                    kmax_kb,
                });
            }
            if !(0.0..xoff_kb).contains(&ecn.kmax_kb) {
                let kmax_kb = ecn.kmax_kb;
                return Err(Refusal::Xoff {
                    class: class.clone(),
                    kmax_kb,
                    xoff_kb,
                });
            }
            within(class, "pmax", old.pmax, ecn.pmax, PMAX)?;
            within(class, "kmin", old.kmin_kb, ecn.kmin_kb, (0.0, xoff_kb))?;
            within(class, "kmax", old.kmax_kb, ecn.kmax_kb, (0.0, xoff_kb))?;
        }
        for (class, new) in &self.nic {
            let unknown = || Refusal::Unknown {
                class: class.clone(),
            };
            let old = from.nic.get(class).ok_or_else(unknown)?;
            for (name, old, new, range) in [
                ("rpg_time_reset", old.timer_us, new.timer_us, TIMER_US),
                ("rpg_ai_rate", old.ai_mbps, new.ai_mbps, AI_MBPS),
                ("rpg_hai_rate", old.hai_mbps, new.hai_mbps, HAI_MBPS),
                (
                    "rate_reduce_monitor_period",
                    old.cut_gap_us,
                    new.cut_gap_us,
                    GAP_US,
                ),
                (
                    "min_time_between_cnps",
                    old.cnp_gap_us,
                    new.cnp_gap_us,
                    GAP_US,
                ),
            ] {
                within(class, name, old, new, range)?;
            }
        }
        Ok(())
    }

    /// As far towards another setting's knobs as one step goes. Routes stay.
    #[must_use]
    pub fn towards(&self, goal: &Setting) -> Setting {
        let step = |from: f64, to: f64| {
            if from > 0.0 && to > 0.0 {
                to.clamp(from / STEP_MAX, from * STEP_MAX)
            } else {
                to
            }
        };
        let mut next = self.clone();
        for (class, ecn) in &mut next.ecn {
            if let Some(goal) = goal.ecn.get(class) {
                ecn.on = goal.on;
                ecn.kmin_kb = step(ecn.kmin_kb, goal.kmin_kb);
                ecn.kmax_kb = step(ecn.kmax_kb, goal.kmax_kb);
                ecn.pmax = step(ecn.pmax, goal.pmax);
            }
        }
        for (class, rate) in &mut next.nic {
            if let Some(goal) = goal.nic.get(class) {
                rate.timer_us = step(rate.timer_us, goal.timer_us);
                rate.ai_mbps = step(rate.ai_mbps, goal.ai_mbps);
                rate.hai_mbps = step(rate.hai_mbps, goal.hai_mbps);
                rate.cut_gap_us = step(rate.cut_gap_us, goal.cut_gap_us);
                rate.cnp_gap_us = step(rate.cnp_gap_us, goal.cnp_gap_us);
            }
        }
        next
    }
}

/// A parameter that stays as it is may be anywhere; one that changes must be in range and near.
fn within(
    class: &Class,
    name: &'static str,
    old: f64,
    new: f64,
    (low, high): (f64, f64),
) -> Result<(), Refusal> {
    if new == old {
        return Ok(());
    }
    if !(low..=high).contains(&new) {
        let class = class.clone();
        return Err(Refusal::Range {
            class,
            name,
            value: new,
        });
    }
    let factor = (new / old).max(old / new);
    if old > 0.0 && !(0.0..=STEP_MAX * 1.000_001).contains(&factor) {
        let class = class.clone();
        return Err(Refusal::Step {
            class,
            name,
            factor,
        });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn nv(xoff_kb: f64) -> (Setting, Bounds) {
        let ecn = Ecn {
            on: true,
            kmin_kb: 150.0,
            kmax_kb: 1500.0,
            pmax: 1.0,
        };
        let rate = Rate {
            timer_us: 300.0,
            ai_mbps: 5.0,
            hai_mbps: 50.0,
            cut_gap_us: 4.0,
            cnp_gap_us: 4.0,
        };
        let setting = Setting {
            ecn: [("leaf".into(), ecn), ("spine".into(), ecn)].into(),
            nic: [("cx7".into(), rate)].into(),
            pins: Vec::new(),
        };
        let xoff_kb = [("leaf".into(), xoff_kb), ("spine".into(), xoff_kb)].into();
        (setting, Bounds { xoff_kb })
    }

    fn with_ecn(change: impl Fn(&mut Ecn)) -> Result<(), Refusal> {
        let (from, bounds) = nv(1750.0);
        let mut to = from.clone();
        change(to.ecn.get_mut("leaf").unwrap());
        to.check(&from, &bounds)
    }

    #[test]
    fn thresholds_stand_in_order_below_xoff_and_one_step_away() {
        assert_eq!(with_ecn(|e| e.kmin_kb = 400.0), Ok(()));
        assert!(matches!(
            with_ecn(|e| e.kmin_kb = 1500.0),
            Err(Refusal::Order { .. })
        ));
        assert!(matches!(
            with_ecn(|e| e.kmin_kb = f64::NAN),
            Err(Refusal::Order { .. })
        ));
        assert!(matches!(
            with_ecn(|e| e.kmax_kb = 1750.0),
            Err(Refusal::Xoff { .. })
        ));
        assert!(matches!(
            with_ecn(|e| e.kmax_kb = f64::NAN),
            Err(Refusal::Order { .. })
        ));
        assert!(matches!(
            with_ecn(|e| e.kmin_kb = 1300.0),
            Err(Refusal::Step { .. })
        ));
        assert!(matches!(
            with_ecn(|e| e.pmax = 1.1),
            Err(Refusal::Range { .. })
        ));
        assert_eq!(with_ecn(|_| ()), Err(Refusal::Same));
        let (from, _) = nv(1750.0);
        let mut to = from.clone();
        to.ecn.get_mut("leaf").unwrap().kmin_kb = 200.0;
        let unknown = to.check(&from, &Bounds::default());
        assert!(matches!(unknown, Err(Refusal::Unknown { .. })));
    }

    proptest! {
        #[test]
        fn whatever_moves_follow_each_other_each_candidate_holds_the_bounds(
            moves in proptest::collection::vec(0usize..Move::ALL.len(), 1..30), xoff in 200.0f64..5000.0,
        ) {
            let (mut at, bounds) = nv(xoff);
            for m in moves {
                let to = Move::ALL[m].from(&at, &bounds);
                if to.check(&at, &bounds).is_ok() {
                    at = to;
                    for ecn in at.ecn.values().filter(|e| e.on) {
                        prop_assert!(ecn.kmin_kb < ecn.kmax_kb, "{ecn:?}");
                        // What was there before the session may be above; what a move made is not.
                        prop_assert!(ecn.kmax_kb < xoff || (ecn.kmin_kb, ecn.kmax_kb) == (150.0, 1500.0), "{ecn:?}");
                    }
                }
            }
        }

        #[test]
        fn steps_towards_a_goal_are_legal_and_arrive(kmin in 20.0f64..900.0, pmax in 0.01f64..1.0, timer in 50.0f64..600.0) {
            let (mut at, bounds) = nv(1750.0);
            let mut goal = at.clone();
            for ecn in goal.ecn.values_mut() {
                (ecn.kmin_kb, ecn.pmax) = (kmin, pmax);
            }
            goal.nic.get_mut("cx7").unwrap().timer_us = timer;
            for _ in 0..4 {
                let next = at.towards(&goal);
                if next != at {
                    prop_assert_eq!(next.check(&at, &bounds), Ok(()));
                }
                at = next;
            }
            prop_assert_eq!(at, goal);
        }
    }
}
