//! Examples as a script, then a model that knows only the rules.

use proptest::prelude::*;

use super::*;

fn small() -> BreakerPolicy {
    BreakerPolicy {
        attempts_min: 4,
        failure_rate: 0.5,
        window: Duration::from_secs(10),
        pause: Duration::from_secs(5),
        pause_max: Duration::from_secs(15),
    }
}

/// Each line is a second, a word and what is answered to it.
fn check(policy: BreakerPolicy, script: &[(u64, &str, &str)]) {
    let start = Instant::now();
    let mut breaker = Breaker::new(policy);
    for (second, word, expected) in script {
        let now = start + Duration::from_secs(*second);
        let answer = match *word {
            "ok" => change(breaker.record(now, true)),
            "fail" => change(breaker.record(now, false)),
            "probe ok" => change(breaker.probe_result(now, true)),
            "probe fail" => change(breaker.probe_result(now, false)),
            "may I" => match breaker.permit(now) {
                Permit::Go => "go".to_owned(),
                Permit::Probe => "probe".to_owned(),
                Permit::Wait(time) => format!("wait {}", time.as_secs()),
            },
            "abandon" => {
                breaker.probe_abandoned();
                String::new()
            }
            other => panic!("the script says `{other}`, which is no word of it"),
        };
        assert_eq!(answer, *expected, "at second {second}: {word}");
    }
}

fn change(change: Option<Change>) -> String {
    match change {
        None => String::new(),
        Some(Change::Closed) => "closed".to_owned(),
        Some(Change::Opened { pause }) => format!("open for {}", pause.as_secs()),
    }
}

const BROKEN: [(u64, &str, &str); 4] =
    [(0, "fail", ""), (0, "fail", ""), (0, "fail", ""), (0, "fail", "open for 5")];

#[test]
fn it_opens_when_enough_of_enough_attempts_failed() {
    check(
        small(),
        &[
            (0, "ok", ""),
            (0, "ok", ""),
            (0, "fail", ""),
            (0, "may I", "go"),
            (1, "fail", "open for 5"),
        ],
    );
}

#[test]
fn too_few_attempts_are_not_judged() {
    check(small(), &[(0, "fail", ""), (1, "fail", ""), (2, "fail", ""), (2, "may I", "go")]);
}

#[test]
fn failures_older_than_the_window_are_forgotten() {
    check(
        small(),
        &[(0, "fail", ""), (0, "fail", ""), (0, "fail", ""), (10, "fail", ""), (10, "may I", "go")],
    );
    check(small(), &[(0, "fail", ""), (0, "fail", ""), (0, "fail", ""), (9, "fail", "open for 5")]);
}

#[test]
fn a_success_never_opens_it() {
    let policy = BreakerPolicy { attempts_min: 1, failure_rate: 0.0, ..small() };
    check(policy, &[(0, "ok", ""), (0, "may I", "go"), (0, "fail", "open for 5")]);
}

#[test]
fn a_rate_above_one_never_opens_it() {
    let policy = BreakerPolicy { attempts_min: 1, failure_rate: 1.1, ..small() };
    check(policy, &[(0, "fail", ""), (0, "fail", ""), (0, "may I", "go")]);
}

#[test]
fn after_the_pause_one_probe_is_let_through() {
    let rest = [
        (1, "may I", "wait 4"),
        (5, "may I", "probe"),
        (5, "may I", "wait 5"),
        (6, "may I", "wait 5"),
    ];
    check(small(), &[&BROKEN[..], &rest].concat());
}

#[test]
fn a_probe_that_works_closes_it_with_nothing_held_against_it() {
    let rest =
        [(5, "may I", "probe"), (6, "probe ok", "closed"), (6, "fail", ""), (6, "may I", "go")];
    check(small(), &[&BROKEN[..], &rest].concat());
}

#[test]
fn each_probe_that_fails_doubles_the_pause_up_to_its_maximum() {
    let rest = [
        (5, "may I", "probe"),
        (6, "probe fail", "open for 10"),
        (15, "may I", "wait 1"),
        (16, "may I", "probe"),
        (16, "probe fail", "open for 15"),
        (31, "may I", "probe"),
        (31, "probe fail", "open for 15"),
    ];
    check(small(), &[&BROKEN[..], &rest].concat());
}

#[test]
fn the_pause_starts_anew_after_it_was_closed() {
    let rest = [
        (5, "may I", "probe"),
        (5, "probe fail", "open for 10"),
        (15, "may I", "probe"),
        (15, "probe ok", "closed"),
    ];
    let again = [(16, "fail", ""), (16, "fail", ""), (16, "fail", ""), (16, "fail", "open for 5")];
    check(small(), &[&BROKEN[..], &rest, &again].concat());
}

#[test]
fn a_probe_that_told_nothing_is_given_back() {
    let rest =
        [(5, "may I", "probe"), (6, "abandon", ""), (6, "probe ok", ""), (6, "may I", "probe")];
    check(small(), &[&BROKEN[..], &rest].concat());
}

#[test]
fn outcomes_of_attempts_begun_before_it_opened_change_nothing() {
    let rest = [(1, "ok", ""), (1, "fail", ""), (1, "probe ok", ""), (1, "may I", "wait 4")];
    check(small(), &[&BROKEN[..], &rest].concat());
}

#[test]
fn a_pause_without_end_and_a_window_of_no_time_are_borne() {
    let policy = BreakerPolicy {
        attempts_min: 1,
        window: Duration::ZERO,
        pause: Duration::MAX,
        pause_max: Duration::MAX,
        ..small()
    };
    let mut breaker = Breaker::new(policy);
    let now = Instant::now();
    assert_eq!(breaker.record(now, false), Some(Change::Opened { pause: Duration::MAX }));
    assert_eq!(breaker.permit(now), Permit::Wait(Duration::MAX));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Record(bool),
    Permit,
    Probe(bool),
    Abandon,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        4 => prop::bool::weighted(0.3).prop_map(Step::Record),
        3 => Just(Step::Permit),
        2 => any::<bool>().prop_map(Step::Probe),
        1 => Just(Step::Abandon),
    ];
    prop::collection::vec((0..4000_u64, step), 0..200)
}

/// What callers see, without a look inside: until when it is shut, and whether a probe is out.
#[derive(Default)]
struct Model {
    open_until: Option<Instant>,
    probing: bool,
    pause: Duration,
}

proptest! {
    #[test]
    fn one_probe_at_a_time_never_before_it_is_due_and_one_that_works_closes(steps in steps()) {
        let policy = small();
        let mut breaker = Breaker::new(policy.clone());
        let mut model = Model::default();
        let mut now = Instant::now();
        for (gap, step) in steps {
            now += Duration::from_millis(gap);
            match step {
                Step::Record(ok) => {
                    if let Some(change) = breaker.record(now, ok) {
                        prop_assert!(!ok && model.open_until.is_none());
                        prop_assert_eq!(change, Change::Opened { pause: policy.pause });
                        model = Model { open_until: Some(now + policy.pause), probing: false, pause: policy.pause };
                    }
                }
                Step::Permit => match (breaker.permit(now), model.open_until) {
                    (Permit::Go, open_until) => prop_assert!(open_until.is_none()),
                    (Permit::Probe, open_until) => {
                        prop_assert!(open_until.is_some_and(|due| now >= due) && !model.probing);
                        model.probing = true;
                    }
                    (Permit::Wait(time), Some(due)) if now < due => prop_assert_eq!(now + time, due),
                    (Permit::Wait(time), _) => prop_assert!(model.probing && time == model.pause),
                },
                Step::Probe(ok) => {
                    let change = breaker.probe_result(now, ok);
                    if !model.probing {
                        prop_assert_eq!(change, None);
                    } else if ok {
                        prop_assert_eq!(change, Some(Change::Closed));
                        prop_assert_eq!(breaker.permit(now), Permit::Go);
                        model = Model::default();
                    } else {
                        let pause = (model.pause * 2).min(policy.pause_max);
                        prop_assert_eq!(change, Some(Change::Opened { pause }));
                        model = Model { open_until: Some(now + pause), probing: false, pause };
                    }
                }
                Step::Abandon => {
                    breaker.probe_abandoned();
                    model.probing = false;
                }
            }
            prop_assert_eq!(breaker.state() == BreakerState::Closed, model.open_until.is_none());
        }
    }

    #[test]
    fn it_opens_exactly_when_the_counts_of_the_window_say_so(outcomes in prop::collection::vec((0..2000_u64, any::<bool>()), 1..100)) {
        let policy = small();
        let mut breaker = Breaker::new(policy.clone());
        let start = Instant::now();
        let mut seen: Vec<(u128, bool)> = Vec::new();
        // Buckets are counted from the first outcome, whose gap therefore does not matter.
        let mut millis = 0;
        for (gap, ok) in outcomes {
            millis += if seen.is_empty() { 0 } else { gap };
            let second = u128::from(millis) / 1000;
            let now = start + Duration::from_millis(millis);
            seen.push((second, ok));
            let recent = seen.iter().filter(|(then, _)| second - then < 10);
            let (attempts, failures) = recent.fold((0, 0), |(all, bad), (_, ok)| (all + 1, bad + i32::from(!ok)));
            let expected = !ok && attempts >= 4 && failures * 2 >= attempts;
            prop_assert_eq!(breaker.record(now, ok).is_some(), expected);
            if expected {
                break;
            }
        }
    }
}
