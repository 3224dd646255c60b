//! What handlers were called with, and the handler that does as its message says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::{Delivery, Failure, Handled};
use tokio::time::{Instant, sleep};

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) at: Instant,
}

/// Every call, in order.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Run>>>);

impl Seen {
    pub(crate) fn note<T>(&self, delivery: &Delivery<T>) {
        let id = delivery.id().unwrap_or_default().to_owned();
        let run = Run { id, attempt: delivery.attempt(), at: Instant::now() };
        self.0.lock().expect("no test panics in here").push(run);
    }

    /// Adds what another saw.
    pub(crate) fn take(&self, other: &Self) {
        self.0.lock().expect("no test panics in here").extend(other.runs());
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        self.0.lock().expect("no test panics in here").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().expect("no test panics in here").len()
    }

    /// The attempts made on each id, in order.
    pub(crate) fn attempts(&self) -> BTreeMap<String, Vec<u32>> {
        let mut attempts = BTreeMap::<String, Vec<u32>>::new();
        for run in self.runs() {
            attempts.entry(run.id).or_default().push(run.attempt);
        }
        attempts
    }

    /// The time between the calls of one id.
    pub(crate) fn gaps(&self, id: &str) -> Vec<Duration> {
        let runs = self.runs();
        let times: Vec<_> = runs.iter().filter(|run| run.id == id).map(|run| run.at).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// Each of these numbers was seen, and none more than once.
    pub(crate) fn assert_each_once(&self, count: u32) {
        let attempts = self.attempts();
        let missing = |number: &u32| !attempts.contains_key(&number.to_string());
        let lost: Vec<_> = (0..count).filter(missing).collect();
        let repeated: Vec<_> = attempts.iter().filter(|(_, runs)| runs.len() > 1).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        assert!(repeated.is_empty(), "handled again: {repeated:?}");
        assert_eq!(attempts.len(), count as usize);
    }
}

/// A handler that answers as its message says, each time or `once`.
pub(crate) fn obey(
    seen: &Seen,
) -> impl Fn(Delivery<String>) -> futures_util::future::BoxFuture<'static, Handled>
+ Clone
+ Send
+ Sync
+ 'static {
    let seen = seen.clone();
    move |delivery| {
        let seen = seen.clone();
        Box::pin(async move {
            seen.note(&delivery);
            let runs = seen.runs();
            let came = runs.iter().filter(|run| Some(&*run.id) == delivery.id()).count();
            answer(&delivery.payload, came).await
        })
    }
}

async fn answer(text: &str, came: usize) -> Handled {
    let (word, when) = text.split_once(' ').unwrap_or((text, "always"));
    if when == "once" && came > 1 {
        return Ok(());
    }
    match word {
        "ok" => Ok(()),
        "retry" => Err(Failure::retry("not yet").class("backend")),
        "later" => Err(Failure::retry_after(Duration::from_millis(1200), "too many requests")),
        "defer" => Err(Failure::defer(Duration::from_millis(700), "somebody else has the lock")),
        "reject" => Err(Failure::reject("no such customer").class("validation")),
        "invalid" => Err(Failure::retry("not a number").class("noise")),
        "panic" => panic!("out of luck"),
        "hang" => std::future::pending().await,
        "slow" => {
            sleep(Duration::from_millis(300)).await;
            Ok(())
        }
        other => Err(Failure::reject(format!("cannot {other}"))),
    }
}
