//! The retry policy of a subscription as it is in force: schedules, rules, and the broker's waits.
//!
//! Replaced as a whole when the configuration changes; never changed in place.

use std::sync::Arc;
use std::time::Duration;

use super::Waiting;
use super::decide::Rule;
use crate::config::{BrokerKind, Config, OnLongWait, Ordering, Subscription, Then, Topology};
use crate::retry::{Policy, WAIT_MAX, WaitSteps};

/// The longest that a wait of ours takes: half a minute, and a fifth more by chance.
const OWN_WAIT_MAX: Duration = Duration::from_secs(36);

/// A subscription's schedules, rules and waits.
#[derive(Clone, Debug)]
pub(crate) struct Retries {
    policy: Policy,
    rules: Vec<Resolved>,
    steps: WaitSteps,
    beyond: Beyond,
    /// Where an order is kept: how long a message may hold up the others behind it, and what
    /// happens to one whose wait is longer.
    order: Option<(Duration, OnLongWait)>,
}

/// How a broker lets a message wait for longer than the longest step.
#[derive(Clone, Copy, Debug)]
enum Beyond {
    /// In several hops.
    Hops,
    /// In a standard step, which it makes when it is first needed.
    Standard,
    /// As long as it should.
    Exactly,
}

impl Beyond {
    fn of(settings: &Subscription, config: &Config) -> Self {
        let kind = config.brokers.get(&settings.broker).map(|broker| broker.kind);
        match kind {
            Some(BrokerKind::Memory) => Self::Exactly,
            Some(BrokerKind::Rabbitmq | BrokerKind::Kafka)
                if settings.topology == Topology::Declare =>
            {
                Self::Standard
            }
            Some(BrokerKind::Rabbitmq | BrokerKind::Kafka) | None => Self::Hops,
        }
    }
}

#[derive(Clone, Debug)]
struct Resolved {
    class: Option<String>,
    kind: Option<String>,
    then: Outcome,
}

#[derive(Clone, Debug)]
enum Outcome {
    Reject,
    Ignore,
    Retry(Arc<Policy>),
}

impl Retries {
    /// What `settings` asks for; `config` has been validated.
    pub(crate) fn of(settings: &Subscription, config: &Config) -> Self {
        let table = config.retry_of(settings);
        let policy = table.policy();
        let rules: Vec<Resolved> = table
            .rules
            .iter()
            .map(|rule| Resolved {
                class: rule.class.clone(),
                kind: rule.kind.clone(),
                then: match rule.then {
                    Then::Reject => Outcome::Reject,
                    Then::Ignore => Outcome::Ignore,
                    Then::Retry => Outcome::Retry(Arc::new(
                        rule.retry
                            .as_ref()
                            .and_then(|name| config.retry.get(name))
                            .map_or_else(|| policy.clone(), crate::config::Retry::policy),
                    )),
                },
            })
            .collect();
        let others = rules.iter().filter_map(|rule| match &rule.then {
            Outcome::Retry(policy) => Some(policy.as_ref()),
            Outcome::Reject | Outcome::Ignore => None,
        });
        let policies: Vec<&Policy> = std::iter::once(&policy).chain(others).collect();
        let steps = WaitSteps::for_policies(&policies, settings.wait_steps_max.get());
        // A policy whose waits can be longer was refused unless the file says what happens then.
        let on_long_wait = settings.order_on_long_wait.unwrap_or(OnLongWait::DeadLetter);
        let order = (settings.ordering != Ordering::None)
            .then_some((settings.order_wait_max, on_long_wait));
        Self { policy, rules, steps, beyond: Beyond::of(settings, config), order }
    }

    /// The waits at the broker.
    pub(crate) fn steps(&self) -> &WaitSteps {
        &self.steps
    }

    /// The wait at the broker that takes `delay` in one hop, where there is one; else the longest there is.
    pub(crate) fn step_for(&self, delay: Duration) -> Duration {
        let longest = self.steps.longest();
        match self.beyond {
            Beyond::Exactly if delay > longest => delay.min(WAIT_MAX),
            Beyond::Standard if delay > longest => {
                let mut standard = self.steps.standard_beyond();
                standard.find(|step| *step >= delay).unwrap_or_else(|| longest.max(WAIT_MAX))
            }
            Beyond::Hops | Beyond::Standard | Beyond::Exactly => self.steps.round_up(delay),
        }
    }

    /// The highest cap of the subscription's own policy and those of its rules: no message can
    /// have made more attempts.
    pub(crate) fn attempts_max(&self) -> u32 {
        let ruled = self.rules.iter().filter_map(|rule| match &rule.then {
            Outcome::Retry(policy) => Some(policy.attempts_max),
            Outcome::Reject | Outcome::Ignore => None,
        });
        ruled.fold(self.policy.attempts_max, Ord::max).get()
    }

    /// The first rule that fits, else the subscription's own policy.
    pub(super) fn rule_for(&self, class: Option<&str>, kind: Option<&str>) -> Rule<'_> {
        let fits = |rule: &&Resolved| match (&rule.class, &rule.kind) {
            (Some(wanted), _) => class == Some(wanted),
            (None, Some(wanted)) => kind == Some(wanted),
            (None, None) => false,
        };
        match self.rules.iter().find(fits).map(|rule| &rule.then) {
            Some(Outcome::Reject) => Rule::Reject,
            Some(Outcome::Ignore) => Rule::Ignore,
            Some(Outcome::Retry(policy)) => Rule::Retry(policy),
            None => Rule::Retry(&self.policy),
        }
    }

    /// By which policy a message of this type is tried again; what a rule gives up, by the subscription's own.
    pub(super) fn policy_for(&self, kind: Option<&str>) -> &Policy {
        match self.rule_for(None, kind) {
            Rule::Retry(policy) => policy,
            Rule::Ignore | Rule::Reject => &self.policy,
        }
    }

    /// Where a delay of the schedule is waited: short ones here; at the broker in the step of just
    /// this length, else in a neighbouring one by chance, so that the mean is kept.
    pub(super) fn wait_for(
        &self,
        delay: Duration,
        policy: &Policy,
        chance: &mut dyn FnMut() -> f64,
    ) -> Waiting {
        if self.stays(delay, policy) {
            return Waiting::Here(delay);
        }
        if delay > self.steps.longest() {
            return self.wait_elsewhere(delay);
        }
        let exact = self.steps.exact(delay);
        Waiting::Broker(exact.unwrap_or_else(|| self.steps.round_by_chance(delay, chance())))
    }

    /// How long one message can hold up those behind it, where an order is kept: every attempt its
    /// whole time, every wait as long as it may be and stay here. What handlers defer comes on top.
    pub(crate) fn order_hold_max(&self, timeout: Duration) -> Duration {
        let Some((wait_max, _)) = self.order else { return Duration::ZERO };
        let ruled = self.rules.iter().filter_map(|rule| match &rule.then {
            Outcome::Retry(policy) => Some(policy.as_ref()),
            Outcome::Reject | Outcome::Ignore => None,
        });
        let held = ruled.chain([&self.policy]).map(|policy| {
            let again = policy.attempts_max.get() - 1;
            let waits = policy.waits_longest_total().min(wait_max.saturating_mul(again));
            let tries = timeout.saturating_mul(again);
            waits.saturating_add(tries).min(policy.age_max.saturating_add(wait_max))
        });
        held.max().unwrap_or_default()
    }

    /// Whether a wait of this length stays in the process.
    fn stays(&self, delay: Duration, policy: &Policy) -> bool {
        match self.order {
            None => delay <= policy.in_process_max,
            Some((wait_max, _)) => delay <= wait_max,
        }
    }

    /// Whether a message that would wait so long may not: it would leave its order, and the
    /// subscription says that it is dead-lettered instead.
    pub(super) fn forbids(&self, waiting: Waiting) -> bool {
        let dead = matches!(self.order, Some((_, OnLongWait::DeadLetter)));
        dead && matches!(waiting, Waiting::Broker(_))
    }

    /// Where a wait is waited that must not end early.
    pub(crate) fn wait_at_least(&self, delay: Duration, policy: &Policy) -> Waiting {
        if self.stays(delay, policy) { Waiting::Here(delay) } else { self.wait_elsewhere(delay) }
    }

    /// Where a wait of ours is waited. Where an order is kept it ends early rather than take the message out of it; and it stays
    /// here where the broker's next step is far longer, because nobody is woken there.
    pub(super) fn wait_in_order(&self, delay: Duration, policy: &Policy) -> Waiting {
        let delay = delay.min(self.order.map_or(Duration::MAX, |(wait_max, _)| wait_max));
        match self.wait_at_least(delay, policy) {
            Waiting::Broker(step) if step > OWN_WAIT_MAX => Waiting::Here(delay),
            waiting => waiting,
        }
    }

    /// A wait that may be waited by any process: in the step that is not shorter, or in several
    /// hops where there is none.
    pub(crate) fn wait_elsewhere(&self, delay: Duration) -> Waiting {
        Waiting::Broker(self.step_for(delay).max(delay))
    }

    /// Where the rest of a wait is waited by a message that came out of one hop of it.
    pub(crate) fn wait_rest(&self, rest: Duration) -> Waiting {
        self.wait_at_least(rest, &self.policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(ordering: &str, retry: &str) -> Duration {
        let text = format!(
            "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"\n\
             {ordering}\n[retry.standard]\n{retry}"
        );
        let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let settings = &config.subscriptions["orders"];
        Retries::of(settings, &config).order_hold_max(Duration::from_secs(10))
    }

    fn steps_of(broker: &str, topology: &str, delays: &[u64]) -> Vec<u64> {
        let text = format!(
            "[brokers.main]\nkind = \"{broker}\"\nurl = \"amqp://localhost\"\n[subscriptions.orders]\nbroker = \"main\"\n\
             queue = \"orders\"\ntopology = \"{topology}\"\n[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"20s\""
        );
        let text = match broker {
            "memory" => text.replace("url", "# url"),
            "kafka" => text
                .replace("amqp://localhost", "localhost:9092")
                .replace("queue = \"orders\"", "topics = [\"orders\"]\ngroup = \"billing\""),
            _ => text,
        };
        let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let retries = Retries::of(&config.subscriptions["orders"], &config);
        let step = |seconds: &u64| retries.step_for(Duration::from_secs(*seconds)).as_secs();
        delays.iter().map(step).collect()
    }

    const DAY: u64 = 86_400;

    #[test]
    fn a_delay_beyond_the_steps_takes_a_standard_one_where_it_can_be_made() {
        let delays = [1, 20, 21, 61, 601, 3600, 20_000, DAY, 3 * DAY];
        for broker in ["rabbitmq", "kafka"] {
            let made = steps_of(broker, "declare", &delays);
            assert_eq!(made, [20, 20, 30, 120, 1800, 3600, 28_800, DAY, DAY]);
            assert_eq!(steps_of(broker, "verify", &delays), [20; 9]);
            assert_eq!(steps_of(broker, "none", &delays), [20; 9]);
        }
        let exact = steps_of("memory", "declare", &delays);
        assert_eq!(exact, [20, 20, 21, 61, 601, 3600, 20_000, DAY, DAY]);
    }

    const FIXED: &str = "backoff = \"fixed\"\njitter = \"none\"\nattempts_max = 5\ndelay_min = ";

    #[test]
    fn an_order_is_held_up_by_every_wait_and_every_attempt_but_the_last() {
        let lane = "ordering = \"lane\"\norder_on_long_wait = \"reorder\"";
        assert_eq!(held("", &format!("{FIXED}\"20s\"")), Duration::ZERO);
        assert_eq!(held(lane, &format!("{FIXED}\"20s\"")), Duration::from_secs(4 * (20 + 10)));
        // Longer waits are not waited in the order.
        assert_eq!(held(lane, &format!("{FIXED}\"5m\"")), Duration::from_secs(4 * (30 + 10)));
        let young = format!("{FIXED}\"20s\"\nage_max = \"40s\"");
        assert_eq!(held(lane, &young), Duration::from_secs(40 + 30));
    }
}
