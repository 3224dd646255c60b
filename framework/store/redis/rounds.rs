//! Questions of one kind in one call of a script, as many as came while the last one was on its way.
//!
//! Owns who waits for the next round and which rounds are on their way. What fails for now is asked again in the next
//! round, by whoever still wants to know; nobody waits longer than their own deadline, and nobody for somebody else's fault.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{Cmd, Value};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::task::unconstrained;
use tokio::time::sleep;

use super::beat::{Beat, UnderWay};
use super::link::{Failed, Link};
use super::part::Part;
use super::reply;
use super::scripts::{Code, call};
use crate::store::{StoreError, StoreFault};

/// So many in one call: at most a millisecond of Redis, which does nothing else meanwhile (8 us each for a claim and a lock
/// that are free, Redis 7.0 on a busy machine).
pub(super) const ROUND_MAX: usize = 128;
/// And so many bytes, because results of handlers may be large.
const ROUND_BYTES_MAX: usize = 1 << 20;
/// Rounds on their way at once.
const ROUNDS_MAX: usize = 16;
/// What takes longer than this is not waited for any more before the next round leaves: a round, or somebody who gathers.
const GATHER_MAX: Duration = Duration::from_millis(10);
/// Before what failed for now is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What is asked in rounds of one kind.
pub(super) struct Form {
    pub(super) what: &'static str,
    pub(super) code: &'static Code,
    /// Keys of one question.
    pub(super) keys: usize,
    /// Numbers that neighbours share.
    pub(super) rules: usize,
    pub(super) first: First,
    pub(super) lone: Option<Lone>,
}

/// What one question alone is asked with before anything else. It answers nothing, and does nothing, where the case is not the
/// simple one.
pub(super) struct Lone {
    pub(super) code: &'static Code,
    /// Whether the largest fence that was seen, and the first rule, go with it.
    pub(super) has_rules: bool,
}

/// The first argument of a round.
pub(super) enum First {
    /// The largest fence that any of those who ask has seen.
    Seen,
    /// What channels begin with, to wake others.
    Channels(String),
}

pub(super) struct Rounds(Arc<Shared>);

struct Shared {
    link: Link,
    form: Form,
    /// Kept with rounds of other kinds.
    beat: Beat,
    queue: Mutex<Queue>,
    /// The first came since the last round left, or enough for another.
    came: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    is_driven: bool,
    /// What the last round heard that failed for now.
    heard: Option<Failed>,
}

struct Request {
    part: Part,
    until: Instant,
    /// It was in a round that the server refused, perhaps on account of one of them.
    is_alone: bool,
    done: oneshot::Sender<Result<Value, Failed>>,
}

impl Rounds {
    pub(super) fn new(link: Link, form: Form, beat: Beat) -> Self {
        let (queue, came) = (Mutex::default(), Notify::new());
        Self(Arc::new(Shared { link, form, beat, queue, came }))
    }

    /// Asks in the next round, and in later ones until `until`. The answer to several questions is the one that all were
    /// answered, or a list of theirs.
    ///
    /// # Cancel safety
    /// What is dropped before its round leaves is not asked.
    pub(super) async fn ask(&self, until: Instant, part: Part) -> Result<Value, StoreError> {
        let shared = &self.0;
        let (done, told) = oneshot::channel();
        let request = Request { part, until, is_alone: false, done };
        if shared.link.is_cluster() {
            // Two keys of one script may not be on two servers.
            shared.link.spawn(round_alone(shared.clone(), request));
        } else {
            shared.push(request);
        }
        // Not tokio's turn to make us give way: who is told out of turn acknowledges out of turn, with a frame for each message.
        // Without a timer: a round keeps the time of all that are in it.
        let answer = match unconstrained(told).await {
            Ok(answer) => answer,
            // The thread that drives connections is gone.
            Err(_) => Err(shared.heard()),
        };
        answer.map_err(|failed| shared.link.down(shared.form.what, failed))
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> Failed {
        self.queue().heard.clone().unwrap_or_else(|| self.link.silence())
    }

    fn push(self: &Arc<Self>, request: Request) {
        let mut queue = self.queue();
        queue.waiting.push_back(request);
        let count = queue.waiting.len();
        let is_driven = std::mem::replace(&mut queue.is_driven, true);
        drop(queue);
        if !is_driven {
            self.link.spawn(drive(Driving { shared: self.clone(), is_over: false }));
        } else if count == 1 || count == ROUND_MAX {
            self.came.notify_one();
        }
    }

    /// Tells those whose time is up while all rounds are on their way.
    fn give_up_waiting(&self) {
        let now = Instant::now();
        let is_over = |request: &Request| request.until <= now;
        let mut queue = self.queue();
        if queue.waiting.iter().any(is_over) {
            let (over, waiting): (VecDeque<_>, _) = queue.waiting.drain(..).partition(is_over);
            queue.waiting = waiting;
            drop(queue);
            over.into_iter().for_each(|it| it.answer(Err(self.heard())));
        }
    }

    /// Who is in the next round, if one may leave: at once when none is on its way, of whatever kind, and nobody gathers.
    fn next_round(&self, under_way: usize, is_ripe: bool) -> Option<Vec<Request>> {
        let mut queue = self.queue();
        let first = queue.waiting.front()?;
        let is_due = self.beat.is_quiet() || is_ripe || queue.waiting.len() >= ROUND_MAX;
        if under_way >= ROUNDS_MAX || !(is_due || first.is_alone) {
            return None;
        }
        let (mut count, mut questions, mut bytes, alone) = (0, 0, 0, first.is_alone);
        for request in &queue.waiting {
            bytes += request.part.len();
            questions += request.part.count();
            let is_over = questions > ROUND_MAX || bytes > ROUND_BYTES_MAX;
            if (is_over || alone || request.is_alone) && count > 0 {
                break;
            }
            count += 1;
        }
        Some(queue.waiting.drain(..count).collect())
    }

    /// True, and nobody drives any more, when there is nothing to do.
    fn may_rest(&self) -> bool {
        let mut queue = self.queue();
        queue.is_driven = !queue.waiting.is_empty();
        !queue.is_driven
    }

    /// The same as [`round`](Self::round), counted as long as it is on its way.
    async fn round_on_its_way(&self, requests: Vec<Request>, _: UnderWay) -> Vec<Request> {
        self.round(requests).await
    }

    /// Asks once; returns who has to ask again.
    async fn round(&self, mut requests: Vec<Request>) -> Vec<Request> {
        // Those whom nobody waits for any more would be asked again for ever.
        requests.retain(|request| !request.done.is_closed());
        // Nobody waits longer than their own time; who has more is asked for again.
        let Some(until) = requests.iter().map(|request| request.until).min() else {
            return requests;
        };
        if let (Some(lone), [request]) = (&self.form.lone, requests.as_slice()) {
            let answer = self.ask_alone(lone, until, request).await;
            match answer {
                // Not the simple case.
                Ok(Some(Value::Nil)) => {}
                answer => return self.answered(answer.map(in_a_list), requests).await,
            }
        }
        let Form { what, code, .. } = self.form;
        let call = || {
            requests.retain(|request| !request.done.is_closed());
            (!requests.is_empty()).then(|| self.call(&requests))
        };
        let answer = self.link.run_once(until, what, code, call).await;
        self.answered(answer, requests).await
    }

    async fn ask_alone(
        &self,
        lone: &Lone,
        until: Instant,
        request: &Request,
    ) -> Result<Option<Value>, Failed> {
        let Form { what, keys, .. } = self.form;
        let part = &request.part;
        let make = || {
            let mut command = call(lone.code, 1);
            command.arg(part.piece(0));
            if lone.has_rules {
                command.arg(part.seen).arg(part.rules[0]);
            }
            command.arg(part.piece(keys));
            (!request.done.is_closed()).then_some(command)
        };
        self.link.run_once(until, what, lone.code, make).await
    }

    /// Tells those who asked; returns who has to ask again.
    async fn answered(
        &self,
        answer: Result<Option<Value>, Failed>,
        requests: Vec<Request>,
    ) -> Vec<Request> {
        let what = self.form.what;
        let answer = match answer {
            Ok(Some(answer)) => answer,
            // Nobody wants to know any more.
            Ok(None) => return Vec::new(),
            Err(failed) => return self.failed(failed, requests).await,
        };
        match answer {
            // The same for all.
            Value::Int(answer) => {
                self.queue().heard = None;
                requests.into_iter().for_each(|it| it.answer(Ok(Value::Int(answer))));
            }
            Value::Array(answers) if answers.len() == questions_of(&requests) => {
                self.queue().heard = None;
                let mut answers = answers.into_iter();
                for request in requests {
                    let answer = match request.part.count() {
                        1 => answers.next().unwrap_or(Value::Nil),
                        count => Value::Array(answers.by_ref().take(count).collect()),
                    };
                    request.answer(Ok(answer));
                }
            }
            other => {
                let failed = Failed::ForGood(reply::strange(what, &other));
                requests.into_iter().for_each(|it| it.answer(Err(failed.clone())));
            }
        }
        Vec::new()
    }

    async fn failed(&self, failed: Failed, mut requests: Vec<Request>) -> Vec<Request> {
        let is_of_one = |error: &StoreError| error.fault == StoreFault::Other;
        match &failed {
            Failed::Now(_) => {
                self.queue().heard = Some(failed);
                self.give_up(&mut requests);
                if !requests.is_empty() {
                    sleep(RETRY_PAUSE).await;
                }
                requests
            }
            // Perhaps of one key among them, to which somebody else wrote. What was asked for the others may be done: it
            // is safe to repeat.
            Failed::ForGood(error) if is_of_one(error) && requests.len() > 1 => {
                requests.iter_mut().for_each(|request| request.is_alone = true);
                requests
            }
            Failed::ForGood(_) | Failed::Unknown => {
                requests.into_iter().for_each(|it| it.answer(Err(failed.clone())));
                Vec::new()
            }
        }
    }

    /// Tells those whose time is up before they could be asked for again.
    fn give_up(&self, requests: &mut Vec<Request>) {
        let soon = Instant::now() + RETRY_PAUSE;
        for request in requests.extract_if(.., |request| request.until <= soon) {
            request.answer(Err(self.heard()));
        }
    }

    fn call(&self, requests: &[Request]) -> Cmd {
        let Form { code, keys, rules, ref first, .. } = self.form;
        let parts = || requests.iter().map(|request| &request.part);
        let mut command = call(code, keys * questions_of(requests));
        // The first key of all, then the second of all: a script asks for those of one kind together.
        for number in 0..keys {
            for key in parts().flat_map(|part| part.of_each(number)) {
                command.arg(key);
            }
        }
        match first {
            First::Seen => command.arg(parts().map(|part| part.seen).max().unwrap_or_default()),
            First::Channels(channels) => command.arg(channels),
        };
        for neighbours in requests.chunk_by(|one, other| one.part.rules == other.part.rules) {
            command.arg(questions_of(neighbours));
            for rule in &neighbours[0].part.rules[..rules] {
                command.arg(*rule);
            }
            for argument in neighbours.iter().flat_map(|it| it.part.arguments(keys)) {
                command.arg(argument);
            }
        }
        command
    }
}

fn questions_of(requests: &[Request]) -> usize {
    requests.iter().map(|request| request.part.count()).sum()
}

/// As a round of one would have been answered.
fn in_a_list(answer: Option<Value>) -> Option<Value> {
    answer.map(|answer| Value::Array(vec![answer]))
}

impl Request {
    fn answer(self, answer: Result<Value, Failed>) {
        // Whoever asked may be gone.
        let _ = self.done.send(answer);
    }
}

/// Lets rounds leave for as long as anybody asks.
async fn drive(mut driving: Driving) {
    let shared = driving.shared.clone();
    let mut rounds = FuturesUnordered::new();
    let mut beat = shared.beat.listen();
    let mut is_ripe = false;
    loop {
        while let Some(requests) = shared.next_round(rounds.len(), is_ripe) {
            is_ripe = false;
            rounds.push(shared.round_on_its_way(requests, shared.beat.leave()));
        }
        if rounds.is_empty() {
            driving.is_over = shared.may_rest();
            if driving.is_over {
                return;
            }
            if shared.beat.is_quiet() {
                // Somebody came just now.
                continue;
            }
        }
        let ripens = async {
            if shared.queue().waiting.is_empty() {
                std::future::pending::<()>().await;
            }
            sleep(GATHER_MAX).await;
        };
        tokio::select! {
            Some(again) = rounds.next() => {
                is_ripe |= !again.is_empty();
                let mut queue = shared.queue();
                again.into_iter().rev().for_each(|request| queue.waiting.push_front(request));
            }
            // Those of other kinds leave at this moment as well.
            () = beat.told() => is_ripe = !shared.queue().waiting.is_empty(),
            () = shared.came.notified() => {}
            () = ripens => {
                is_ripe = true;
                shared.give_up_waiting();
            }
        }
    }
}

/// In a cluster: asks until it is answered or nobody wants to know.
async fn round_alone(shared: Arc<Shared>, request: Request) {
    let mut requests = vec![request];
    while !requests.is_empty() {
        requests = shared.round(requests).await;
    }
}

struct Driving {
    shared: Arc<Shared>,
    is_over: bool,
}

impl Drop for Driving {
    /// Its runtime may end before the store does: whoever waits is told, and whoever comes then drives anew.
    fn drop(&mut self) {
        if !self.is_over {
            let waiting = {
                let mut queue = self.shared.queue();
                queue.is_driven = false;
                std::mem::take(&mut queue.waiting)
            };
            drop(waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::Address;
    use super::super::scripts::SCRIPTS;
    use super::super::{Keys, RedisSettings};
    use super::*;
    use crate::store::{Fence, LockAsk, Owner};

    /// Of a server that nobody can reach.
    fn rounds() -> Rounds {
        let nowhere = RedisSettings::new("main", "redis://127.0.0.1:1");
        let address = Address::parse(&nowhere).expect("an address");
        let lone = Some(Lone { code: &SCRIPTS.acquire_lone, has_rules: true });
        let form = Form {
            what: "acquire a lock",
            code: &SCRIPTS.acquires,
            keys: 3,
            rules: 3,
            first: First::Seen,
            lone,
        };
        Rounds::new(Link::new(&nowhere, Arc::new(address)), form, Beat::new())
    }

    fn part(key: &str) -> Part {
        let owner = Owner::new();
        let ask = LockAsk {
            key,
            owner: &owner,
            holder: "test",
            lease: Duration::from_secs(1),
            fair: false,
            waits: false,
            seen: Fence(0),
        };
        Part::acquire(&Keys::new("redeliver"), &ask)
    }

    #[tokio::test]
    async fn nobody_leaves_while_somebody_gathers_or_a_call_of_another_kind_is_on_its_way() {
        let Rounds(shared) = rounds();
        let ask = |key: &str| {
            let (until, is_alone, done) = (in_milliseconds(600_000), false, oneshot::channel().0);
            shared.queue().waiting.push_back(Request { part: part(key), until, is_alone, done });
        };
        let leaves = |is_ripe| shared.next_round(0, is_ripe).map_or(0, |round| round.len());
        let gathers = shared.beat.gather();
        ask("a");
        assert_eq!(leaves(false), 0, "more will come");
        ask("b");
        drop(gathers);
        let other = shared.beat.leave();
        assert_eq!(leaves(false), 0, "a call is on its way");
        assert_eq!(leaves(true), 2, "for too long");
        ask("c");
        drop(other);
        assert_eq!(leaves(false), 1, "it was answered");
    }

    fn in_milliseconds(count: u64) -> Instant {
        Instant::now() + Duration::from_millis(count)
    }

    #[tokio::test]
    async fn nobody_asks_on_for_somebody_who_is_gone() {
        let rounds = rounds();
        assert!(rounds.ask(in_milliseconds(50), part("a")).await.is_err(), "nobody is there");
        let patience = Instant::now() + Duration::from_secs(30);
        while rounds.0.queue().is_driven {
            assert!(Instant::now() < patience, "it is asked again and again");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn who_has_less_time_than_others_of_the_round_is_told_in_time() {
        let rounds = rounds();
        let patient = rounds.ask(in_milliseconds(600_000), part("a"));
        let hasty = rounds.ask(in_milliseconds(50), part("b"));
        tokio::select! {
            biased;
            _ = patient => panic!("nobody is there, and it has ten minutes"),
            told = hasty => assert!(told.is_err(), "nobody is there"),
        }
    }
}
