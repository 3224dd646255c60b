//! The retry policy of a subscription as it is in force: schedules, rules, and the broker's waits.
//!
//! Replaced as a whole when the configuration changes; never changed in place.

use std::sync::Arc;
use std::time::Duration;

use super::Waiting;
use super::decide::Rule;
use crate::config::{Config, OnLongWait, Ordering, Subscription, Then};
use crate::retry::{Policy, WaitSteps};

/// A subscription's schedules, rules and waits.
#[derive(Clone, Debug)]
pub(crate) struct Retries {
    policy: Policy,
    rules: Vec<Resolved>,
    steps: WaitSteps,
    /// Where an order is kept: how long a message may hold up the others behind it, and what
    /// happens to one whose wait is longer.
    order: Option<(Duration, OnLongWait)>,
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
        Self { policy, rules, steps, order }
    }

    /// The waits at the broker.
    pub(crate) fn steps(&self) -> &WaitSteps {
        &self.steps
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
        let exact = self.steps.exact(delay);
        Waiting::Broker(exact.unwrap_or_else(|| self.steps.round_by_chance(delay, chance())))
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

    /// A wait that may be waited by any process; one that is longer than all steps takes several.
    pub(crate) fn wait_elsewhere(&self, delay: Duration) -> Waiting {
        Waiting::Broker(self.steps.round_up(delay).max(delay))
    }

    /// The step to take now for a wait at the broker, and what is left of it then.
    pub(crate) fn hop(&self, delay: Duration) -> (Duration, Duration) {
        let step = self.steps.round_up(delay);
        (step, delay.saturating_sub(step))
    }
}
