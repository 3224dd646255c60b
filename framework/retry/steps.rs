//! The grid of waits that a broker holds.
//!
//! A broker's wait has one fixed delay (a queue's TTL, a topic's nominal delay), so that no message stands behind a
//! longer one. Owns which delays those are, and which of them a message takes. Declares nothing and knows no broker.
//!
//! Which question to ask:
//!
//! | the delay comes from | ask |
//! |---|---|
//! | a schedule without jitter | [`WaitSteps::round_up`], which is [`WaitSteps::exact`] unless a bound was hit |
//! | a schedule with jitter | [`WaitSteps::round_by_chance`] |
//! | a handler's "retry after", the rest of a wait | [`WaitSteps::round_up`] |

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Jitter, Policy};

/// The shortest wait at a broker: below it the way there and back is most of the delay.
///
/// ```
/// use redeliver::retry::{Policy, WAIT_MIN, WaitSteps};
///
/// let steps = WaitSteps::for_policies(&[&Policy::default()], 16);
/// assert!(steps.as_slice().iter().all(|step| *step >= WAIT_MIN));
/// ```
pub const WAIT_MIN: Duration = Duration::from_millis(100);

/// The longest wait at a broker in one hop.
///
/// ```
/// use std::time::Duration;
/// use redeliver::retry::WAIT_MAX;
///
/// assert_eq!(WAIT_MAX, Duration::from_secs(86_400));
/// ```
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Waits that no policy needs to name, in seconds: each at most three times as long as the one before.
const STANDARD: [u64; 16] =
    [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 28_800, 57_600, 86_400];

/// The delays of a subscription's waits: whole milliseconds, rising, at least one.
///
/// ```
/// use std::time::Duration;
/// use redeliver::retry::{Backoff, Jitter, Policy, WaitSteps};
///
/// let listed = Policy {
///     backoff: Backoff::List,
///     jitter: Jitter::None,
///     delays: vec![Duration::from_secs(5), Duration::from_secs(60)],
///     ..Policy::default()
/// };
/// let steps = WaitSteps::for_policies(&[&listed], 16);
/// assert_eq!(steps.as_slice(), [Duration::from_secs(5), Duration::from_secs(60)]);
/// assert_eq!((steps.shortest(), steps.longest()), (Duration::from_secs(5), Duration::from_secs(60)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitSteps {
    /// Rising and never empty: all constructors see to it.
    steps: Vec<Duration>,
}

impl WaitSteps {
    /// The waits that these policies need, at most `steps_max` of them (0 counts as 1), all
    /// between [`WAIT_MIN`] and [`WAIT_MAX`].
    ///
    /// - A policy without jitter gets exactly its delays (rounded up to a millisecond), but for those of at most its
    ///   `in_process_max`, which stay in the process.
    /// - Policies with jitter share a geometric grid from the shortest delay that leaves the process to the longest
    ///   of [`Policy::range`], with at most two steps for each doubling.
    /// - If both together are more than `steps_max`, the exact delays give way: one grid spans everything, and a
    ///   delay that is not on it is rounded up, so a message comes late rather than early.
    /// - If no delay leaves the process there is one step, of the longest `in_process_max` (at least [`WAIT_MIN`]):
    ///   a handler's "retry after" and a clean stop still need a place to wait, in several hops if long.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::{Policy, WaitSteps};
    ///
    /// let steps = WaitSteps::for_policies(&[&Policy::default()], 16);
    /// assert!(steps.as_slice().len() <= 16);
    /// assert_eq!(steps.shortest(), Duration::from_secs(1));
    /// assert_eq!(steps.longest(), Duration::from_secs(600));
    /// ```
    pub fn for_policies(policies: &[&Policy], steps_max: usize) -> WaitSteps {
        let steps_max = steps_max.max(1);
        let exact = exact_steps(policies, steps_max);
        let drawn = span(policies.iter().filter_map(|policy| drawn_span(policy)));
        let steps = match drawn {
            None if exact.len() <= steps_max => exact,
            Some(drawn) if exact.len() + 2 <= steps_max => {
                let room = steps_max - exact.len();
                exact.into_iter().chain(grid(drawn, room)).collect()
            }
            None | Some(_) => {
                let listed = policies.iter().filter_map(|policy| exact_span(policy));
                span(listed.chain(drawn)).map(|all| grid(all, steps_max)).unwrap_or_default()
            }
        };
        WaitSteps::of(steps)
            .unwrap_or_else(|| WaitSteps { steps: vec![step_without_schedule(policies)] })
    }

    /// The waits that exist already, in any order; `None` if there is none.
    ///
    /// Each is rounded up to whole milliseconds and nothing else is done to it, as it names something that exists;
    /// a wait of no time is none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([Duration::from_secs(60), Duration::from_secs(5)]).expect("two are given");
    /// assert_eq!(steps.shortest(), Duration::from_secs(5));
    /// assert_eq!(WaitSteps::of([]), None);
    /// ```
    pub fn of(delays: impl IntoIterator<Item = Duration>) -> Option<WaitSteps> {
        let steps: BTreeSet<Duration> =
            delays.into_iter().map(millis_up).filter(|step| !step.is_zero()).collect();
        (!steps.is_empty()).then(|| WaitSteps { steps: steps.into_iter().collect() })
    }

    /// All steps, shortest first.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([60, 5, 60].map(Duration::from_secs)).expect("some are given");
    /// let queues: Vec<_> = steps.as_slice().iter().map(|step| format!("orders.wait.{}", step.as_millis())).collect();
    /// assert_eq!(queues, ["orders.wait.5000", "orders.wait.60000"], "each once, rising");
    /// ```
    pub fn as_slice(&self) -> &[Duration] {
        &self.steps
    }

    /// The shortest step.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([5, 60].map(Duration::from_secs)).expect("two are given");
    /// assert_eq!(steps.round_up(Duration::from_millis(1)), steps.shortest(), "nobody waits less at the broker");
    /// ```
    pub fn shortest(&self) -> Duration {
        self.steps[0]
    }

    /// The longest step.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([5, 60].map(Duration::from_secs)).expect("two are given");
    /// let asked = Duration::from_secs(90);
    /// let rest = asked - steps.longest();
    /// assert_eq!((steps.round_up(asked), rest), (steps.longest(), Duration::from_secs(30)), "two hops");
    /// ```
    pub fn longest(&self) -> Duration {
        self.steps[self.steps.len() - 1]
    }

    /// The standard steps beyond the longest, rising up to [`WAIT_MAX`]: for a broker that can make a wait when it is
    /// first needed, so that a "retry after" beyond a policy's own delays takes one hop too.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::{WAIT_MAX, WaitSteps};
    ///
    /// let steps = WaitSteps::of([Duration::from_secs(7200)]).expect("one is given");
    /// let beyond: Vec<Duration> = steps.standard_beyond().collect();
    /// assert_eq!(beyond, [14_400, 28_800, 57_600, 86_400].map(Duration::from_secs));
    /// assert_eq!(beyond.last(), Some(&WAIT_MAX));
    /// ```
    pub fn standard_beyond(&self) -> impl Iterator<Item = Duration> + use<> {
        let longest = self.longest();
        STANDARD.into_iter().map(Duration::from_secs).filter(move |step| *step > longest)
    }

    /// The step of just this delay (rounded up to a millisecond), if there is one.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([Duration::from_secs(5)]).expect("one is given");
    /// assert_eq!(steps.exact(Duration::from_micros(4_999_500)), Some(Duration::from_secs(5)));
    /// assert_eq!(steps.exact(Duration::from_secs(4)), None);
    /// ```
    pub fn exact(&self, delay: Duration) -> Option<Duration> {
        let index = self.steps.binary_search(&millis_up(delay)).ok()?;
        Some(self.steps[index])
    }

    /// The shortest step that is not shorter than `delay`; the longest step if `delay` is beyond all, and then the
    /// caller lets the message wait again for the rest.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([1, 10].map(Duration::from_secs)).expect("two are given");
    /// assert_eq!(steps.round_up(Duration::from_secs(2)), Duration::from_secs(10));
    /// assert_eq!(steps.round_up(Duration::from_secs(15)), Duration::from_secs(10));
    /// ```
    pub fn round_up(&self, delay: Duration) -> Duration {
        let index = self.steps.partition_point(|step| *step < delay);
        self.steps.get(index).copied().unwrap_or(self.longest())
    }

    /// One of the two steps around `delay`, picked by a chance in `[0, 1)` so that the mean over many messages is
    /// `delay`. Outside the steps it is the nearest end, where the mean is not kept.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::WaitSteps;
    ///
    /// let steps = WaitSteps::of([1, 3].map(Duration::from_secs)).expect("two are given");
    /// assert_eq!(steps.round_by_chance(Duration::from_secs(2), 0.49), Duration::from_secs(3));
    /// assert_eq!(steps.round_by_chance(Duration::from_secs(2), 0.51), Duration::from_secs(1));
    /// ```
    pub fn round_by_chance(&self, delay: Duration, chance: f64) -> Duration {
        if delay <= self.shortest() {
            return self.shortest();
        }
        if delay >= self.longest() {
            return self.longest();
        }
        let index = self.steps.partition_point(|step| *step < delay);
        let (below, above) = (self.steps[index - 1], self.steps[index]);
        let upwards = (delay - below).as_secs_f64() / (above - below).as_secs_f64();
        if chance < upwards { above } else { below }
    }
}

/// The shortest and the longest delay of some waits.
type Span = (Duration, Duration);

/// The delays of all schedules without jitter; a little more than `steps_max` tells that they are too many.
fn exact_steps(policies: &[&Policy], steps_max: usize) -> Vec<Duration> {
    let mut steps = BTreeSet::new();
    for policy in policies.iter().filter(|policy| policy.jitter == Jitter::None) {
        let mut floor = policy.in_process_max;
        while let Some(delay) = policy.delay_longer_than(floor) {
            steps.insert(step_of(delay));
            if steps.len() > steps_max || delay >= WAIT_MAX {
                break;
            }
            // What rounds to the step that was just taken is not another one.
            floor = step_of(delay);
        }
    }
    steps.into_iter().collect()
}

/// From the first to the last delay of a schedule without jitter that leaves the process.
fn exact_span(policy: &Policy) -> Option<Span> {
    let shortest = policy.delay_longer_than(policy.in_process_max)?;
    (policy.jitter == Jitter::None)
        .then(|| (step_of(shortest), step_of(policy.delay_nominal_longest())))
}

/// From the first to the last delay that a jittered policy can draw and that leaves the process.
fn drawn_span(policy: &Policy) -> Option<Span> {
    let (shortest, longest) = policy.range().into_inner();
    let leaves = policy.jitter != Jitter::None && longest > policy.in_process_max;
    leaves.then(|| (step_of(shortest.max(policy.in_process_max)), step_of(longest)))
}

fn span(spans: impl Iterator<Item = Span>) -> Option<Span> {
    spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
}

/// At most `steps_max` delays, each the same factor longer than the one before; both ends are among them, and of a
/// single one the longest, which is never too early.
fn grid((shortest, longest): Span, steps_max: usize) -> Vec<Duration> {
    let factor = longest.as_secs_f64() / shortest.as_secs_f64();
    let gaps = (factor.log2() * STEPS_PER_DOUBLING).ceil().min((steps_max - 1) as f64);
    let inner = (1..gaps as u32)
        .map(|gap| shortest.mul_f64(factor.powf(f64::from(gap) / gaps)))
        .map(|delay| two_digits_up(delay).min(longest));
    let first = (gaps >= 1.0).then_some(shortest);
    first.into_iter().chain(inner).chain([longest]).collect()
}

/// Finer steps would make queues, not accuracy: the mean is kept by chance.
const STEPS_PER_DOUBLING: f64 = 2.0;

/// 1532 ms becomes 1600 ms: people read these numbers in the names of queues.
fn two_digits_up(delay: Duration) -> Duration {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    let unit = 10_u64.pow(millis.max(1).ilog10().saturating_sub(1));
    Duration::from_millis(millis.div_ceil(unit).saturating_mul(unit))
}

/// The step of the longest wait that stays in a process: what is longer goes through it in hops.
fn step_without_schedule(policies: &[&Policy]) -> Duration {
    step_of(policies.iter().map(|policy| policy.in_process_max).max().unwrap_or_default())
}

fn step_of(delay: Duration) -> Duration {
    millis_up(delay).clamp(WAIT_MIN, WAIT_MAX)
}

fn millis_up(delay: Duration) -> Duration {
    let millis = delay.as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
