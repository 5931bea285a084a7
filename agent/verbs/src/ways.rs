//! Which address handle leads where, and when it is looked for again. Pure: time is given, handles
//! are the caller's.
//!
//! A handle holds the MAC address that the next hop had when it was made. So it is made anew, while
//! the old one serves, when a neighbour's address has changed, when pings on it are lost ([`Ways::doubt`],
//! ever less often while that does not help), and when it is old: a responder does not learn that
//! its answers are lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::Duration;

/// Ways that are kept: those of all targets of a node and of as many who ping it.
const WAYS_MAX: usize = 2 * weir_verbs_protocol::TARGETS_MAX;
/// A way on which nothing was sent for this long is forgotten when there are too many.
const IDLE: Duration = Duration::from_secs(30);
/// A target whose address was not found is not looked for again before: a look can take a second.
const MISSING_AGAIN: Duration = Duration::from_secs(10);
/// After doubt or a change of neighbours a way is looked for again no sooner than after this...
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// ... and, as long as the doubt does not end, after twice as long each time up to this.
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// A way is looked for again at this age.
const AGE_MAX: Duration = Duration::from_secs(60);
/// A handle that was replaced is kept for the packets that were posted with it.
const RETIRED_FOR: Duration = Duration::from_secs(2);

/// Where an address handle leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub gid: Ipv6Addr,
    pub flow_label: u32,
    pub hop_limit: u8,
}

/// What is known of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Known,
    /// It is looked for.
    Sought,
    /// The network says that there is none.
    Unreachable,
    /// This host has no room for another, or failed to make it.
    NoRoom,
}

#[derive(Debug)]
struct Known<A> {
    address: A,
    used: Duration,
    /// When it was found.
    found: Duration,
    /// It is being looked for again.
    asked: bool,
    /// Neighbours have changed since.
    stale: bool,
    /// Not to be looked for again before, and how long to wait after that.
    again: Duration,
    wait: Duration,
}

#[derive(Debug)]
enum Way<A> {
    Known(Known<A>),
    Sought,
    Missing { until: Duration, look: Look },
}

/// The ways of one port, with handles of type `A`.
#[derive(Debug)]
pub struct Ways<A> {
    ways: BTreeMap<Route, Way<A>>,
    retired: VecDeque<(Duration, A)>,
}

impl<A> Default for Ways<A> {
    fn default() -> Ways<A> {
        Ways {
            ways: BTreeMap::new(),
            retired: VecDeque::new(),
        }
    }
}

impl<A> Ways<A> {
    /// Whether there is a way. What has to be looked for goes to `ask`, which may refuse: then it
    /// is asked with the next packet.
    pub fn look(&mut self, route: Route, now: Duration, ask: impl FnOnce(Route) -> bool) -> Look {
        match self.ways.get_mut(&route) {
            Some(Way::Known(known)) => {
                let old = now.saturating_sub(known.found) >= AGE_MAX;
                if (known.stale || old) && !known.asked && now >= known.again && ask(route) {
                    known.asked = true;
                    known.stale = false;
                    known.again = now.saturating_add(AGAIN_FIRST);
                }
                return Look::Known;
            }
            Some(Way::Sought) => return Look::Sought,
            Some(Way::Missing { until, look }) if now < *until => return *look,
            Some(Way::Missing { .. }) => {}
            None => {
                self.make_room(now);
                if self.ways.len() >= WAYS_MAX {
                    return Look::NoRoom;
                }
            }
        }
        if ask(route) {
            self.ways.insert(route, Way::Sought);
        }
        Look::Sought
    }

    /// The handle of a way that is known, which is used at `now`.
    pub fn take(&mut self, route: Route, now: Duration) -> Option<&A> {
        match self.ways.get_mut(&route)? {
            Way::Known(known) => {
                known.used = now;
                Some(&known.address)
            }
            Way::Sought | Way::Missing { .. } => None,
        }
    }

    /// What came of a question. `Err`: [`Look::Unreachable`] or [`Look::NoRoom`]; a way that was known
    /// stays what it was.
    pub fn found(&mut self, route: Route, result: Result<A, Look>, now: Duration) {
        let until = now.saturating_add(MISSING_AGAIN);
        let known = |address| Known {
            address,
            used: now,
            found: now,
            asked: false,
            stale: false,
            again: now,
            wait: AGAIN_FIRST,
        };
        match (self.ways.get_mut(&route), result) {
            (Some(Way::Known(old)), Ok(address)) => {
                let retired = std::mem::replace(&mut old.address, address);
                (old.asked, old.found) = (false, now);
                self.retired.push_back((now, retired));
            }
            (Some(Way::Known(old)), Err(_)) => old.asked = false,
            (Some(way), Ok(address)) => *way = Way::Known(known(address)),
            (Some(way), Err(look)) => *way = Way::Missing { until, look },
            // Nobody asked.
            (None, _) => {}
        }
    }

    /// Pings on the way are lost.
    pub fn doubt(&mut self, route: Route, now: Duration, ask: impl FnOnce(Route) -> bool) {
        let Some(Way::Known(known)) = self.ways.get_mut(&route) else {
            return;
        };
        if known.asked || now < known.again {
            return;
        }
        // The former doubt was settled long ago.
        if now.saturating_sub(known.again) >= AGAIN_MOST {
            known.wait = AGAIN_FIRST;
        }
        if ask(route) {
            known.asked = true;
            known.again = now.saturating_add(known.wait);
            known.wait = known.wait.saturating_mul(2).min(AGAIN_MOST);
        }
    }

    /// A neighbour has another address: each way is looked for again when it is used next.
    pub fn neighbours_changed(&mut self) {
        for way in self.ways.values_mut() {
            match way {
                Way::Known(known) => known.stale = true,
                Way::Missing { until, .. } => *until = Duration::ZERO,
                Way::Sought => {}
            }
        }
    }

    /// Lets go of handles that no packet leaves by any more.
    pub fn tidy(&mut self, now: Duration) {
        while let Some((at, _)) = self.retired.front()
            && now.saturating_sub(*at) >= RETIRED_FOR
        {
            self.retired.pop_front();
        }
    }

    fn make_room(&mut self, now: Duration) {
        if self.ways.len() < WAYS_MAX {
            return;
        }
        self.ways.retain(|_, way| match way {
            Way::Known(known) => now.saturating_sub(known.used) < IDLE,
            Way::Sought => true,
            Way::Missing { until, .. } => now < *until,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn route(n: u32) -> Route {
        Route {
            gid: Ipv6Addr::from_bits(n.into()),
            flow_label: 0,
            hop_limit: 64,
        }
    }

    /// Ways of which one is known: by the handle 1, found at 0.
    fn one() -> Ways<u32> {
        let mut ways = Ways::default();
        assert_eq!(ways.look(route(1), Duration::ZERO, |_| true), Look::Sought);
        ways.found(route(1), Ok(1), Duration::ZERO);
        ways
    }

    /// Whether it is looked for again on use.
    fn asks(ways: &mut Ways<u32>, now: Duration) -> bool {
        let mut asked = false;
        let look = ways.look(route(1), now, |_| {
            asked = true;
            true
        });
        assert_eq!(look, Look::Known);
        asked
    }

    fn doubts(ways: &mut Ways<u32>, now: Duration) -> bool {
        let mut asked = false;
        ways.doubt(route(1), now, |_| {
            asked = true;
            true
        });
        asked
    }

    #[test]
    fn a_neighbour_that_changed_is_looked_for_once_while_the_old_way_serves() {
        let mut ways = one();
        assert!(!asks(&mut ways, S));
        ways.neighbours_changed();
        assert!(asks(&mut ways, S));
        assert_eq!(ways.take(route(1), S), Some(&1));
        ways.neighbours_changed();
        assert!(!asks(&mut ways, S), "it is on its way");
        ways.found(route(1), Ok(2), S);
        assert_eq!(ways.take(route(1), S), Some(&2));
        assert!(!asks(&mut ways, S), "not within a second");
        assert!(asks(&mut ways, 2 * S), "of the second change");
    }

    #[test]
    fn losses_ask_ever_less_often_and_soon_again_after_a_good_time() {
        let mut ways = one();
        let mut asked = Vec::new();
        for second in 0..300 {
            if doubts(&mut ways, second * S) {
                asked.push(second);
                ways.found(route(1), Ok(second), second * S);
            }
        }
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
        assert!(doubts(&mut ways, 1000 * S) && !doubts(&mut ways, 1000 * S));
        ways.found(route(1), Err(Look::Unreachable), 1000 * S);
        assert_eq!(
            ways.take(route(1), 1000 * S),
            Some(&243),
            "better than none"
        );
        assert!(doubts(&mut ways, 1001 * S));
    }

    #[test]
    fn a_way_is_not_used_for_ever_and_what_it_was_outlives_its_packets() {
        let mut ways = one();
        assert!(!asks(&mut ways, AGE_MAX - S));
        assert!(asks(&mut ways, AGE_MAX));
        ways.found(route(1), Ok(2), AGE_MAX);
        ways.tidy(AGE_MAX + RETIRED_FOR - S);
        assert_eq!(ways.retired.len(), 1);
        ways.tidy(AGE_MAX + RETIRED_FOR);
        assert_eq!(ways.retired.len(), 0);
        assert!(!asks(&mut ways, 2 * AGE_MAX - S));
    }

    #[test]
    fn no_room_is_not_the_network_s_fault() {
        let mut ways: Ways<u32> = Ways::default();
        let most = u32::try_from(WAYS_MAX).unwrap();
        for n in 0..most {
            ways.look(route(n), Duration::ZERO, |_| true);
            ways.found(route(n), Ok(n), Duration::ZERO);
        }
        assert_eq!(ways.look(route(most), S, |_| true), Look::NoRoom);
        // Those that are idle make room.
        ways.take(route(7), IDLE);
        assert_eq!(ways.look(route(most), IDLE, |_| true), Look::Sought);
        assert_eq!(ways.ways.len(), 2);
    }

    #[test]
    fn what_is_missing_is_looked_for_after_a_while_or_when_a_neighbour_comes() {
        let mut ways: Ways<u32> = Ways::default();
        let found = |ways: &mut Ways<u32>, now| {
            ways.look(route(1), now, |_| true);
            ways.found(route(1), Err(Look::Unreachable), now);
        };
        found(&mut ways, S);
        assert_eq!(ways.look(route(1), 2 * S, |_| true), Look::Unreachable);
        ways.neighbours_changed();
        assert_eq!(ways.look(route(1), 2 * S, |_| true), Look::Sought);
        found(&mut ways, 2 * S);
        ways.found(route(1), Err(Look::NoRoom), 2 * S);
        assert_eq!(ways.look(route(1), 3 * S, |_| true), Look::NoRoom);
        let later = 3 * S + MISSING_AGAIN;
        assert_eq!(ways.look(route(1), later, |_| true), Look::Sought);
    }

    proptest! {
        /// Whatever happens: a known way never goes, nothing is asked twice at once or more than
        /// once a second, and what was replaced is let go.
        #[test]
        fn a_way_that_is_known_stays_known(
            steps in prop::collection::vec((0_u64..3000, 0_u8..5, any::<bool>()), 0..300),
        ) {
            let mut ways = one();
            let (mut now, mut open, mut last) = (Duration::ZERO, false, None::<Duration>);
            for (ms, what, yes) in steps {
                now += Duration::from_millis(ms);
                let mut asked = false;
                let ask = |_| { asked = yes; yes };
                match what {
                    0 => { ways.look(route(1), now, ask); }
                    1 => ways.doubt(route(1), now, ask),
                    2 => ways.neighbours_changed(),
                    3 => ways.tidy(now),
                    _ => {
                        let result = if yes { Ok(9) } else { Err(Look::Unreachable) };
                        ways.found(route(1), result, now);
                        open = false;
                    }
                }
                if asked {
                    prop_assert!(!open);
                    prop_assert!(last.is_none_or(|last| now - last >= AGAIN_FIRST));
                    (open, last) = (true, Some(now));
                }
                prop_assert!(ways.take(route(1), now).is_some());
            }
            ways.tidy(now + RETIRED_FOR);
            prop_assert!(ways.retired.is_empty());
        }
    }
}
