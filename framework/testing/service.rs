//! A service in a test: on the test's own thread, on memory brokers, on a clock that stands still.
//!
//! Owns the clock: time passes only in [`TestService::advance`], [`TestService::finish`] and
//! [`TestService::run`], and then everything that is due in between happens at its own time, in
//! milliseconds of real time. Changes nothing else: supervisors, consumers, retriers, policies and
//! handlers are those of a real service.

use std::sync::Arc;
use std::time::Duration;

use actix::SystemRunner;
use tokio::time::Instant;

use super::in_memory::in_memory;
use super::record::{Record, Witness};
use crate::clock::Clock;
use crate::dead_letters::DeadLetter;
use crate::error::Error;
use crate::publisher::{Message, MessageId, Publisher};
use crate::service::{Service, ServiceBuilder, Stop};

/// So many turns of the runtime in which nothing became of any message: all is quiet.
const QUIET_TURNS: u32 = 128;
/// After so many turns without time passing, something goes round for ever.
const TURNS_MAX: u32 = 500_000;
/// How long a blocking handler's thread is left alone between two looks, in real time.
const LOOK: Duration = Duration::from_micros(50);
/// Longer than messages wait for their attempts, and short enough to be given up soon.
const FINISH_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A service under test.
///
/// ```
/// use std::time::Duration;
/// use redeliver::testing::TestService;
/// use redeliver::{config::Config, Delivery, Failure, Handled, Message, Service};
///
/// async fn ship(delivery: Delivery<u32>) -> Handled {
///     if delivery.attempt() == 1 { Err(Failure::retry("not yet")) } else { Ok(()) }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     [retry.standard]
///     jitter = "none"
/// "#)?;
/// let mut service = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// service.publish("orders", Message::json(&7)?.id("order-7"));
/// service.advance(Duration::from_millis(200));
/// assert_eq!(service.log(), [
///     "order-7: attempt 1 retry after 200ms: not yet",
///     "order-7: attempt 2 handled",
/// ]);
///
/// service.clear_log();
/// service.seed(7);                                   // jitter comes out in another way
/// service.publish("orders", Message::json(&"not a number")?.id("order-8"));
/// service.finish();
/// assert_eq!(service.dead_letters("orders")[0].id.as_deref(), Some("order-8"));
/// assert_eq!(service.elapsed(), Duration::from_millis(200), "a dead letter took no time");
/// assert_eq!(service.stop().left, 0);
/// # Ok(())
/// # }
/// ```
///
/// # Limits
/// The test must not run inside another runtime: a plain `#[test]`, not `#[tokio::test]`. What a
/// handler does outside (a socket, a thread that is not a blocking handler's) takes real time,
/// and the clock does not wait for it.
pub struct TestService {
    service: Service,
    witness: Arc<Witness>,
    start: Instant,
    published: usize,
    // Last, so that it is dropped last: the actors live on it.
    runner: SystemRunner,
}

impl TestService {
    /// Starts what would be a real service, with every broker and store of its configuration
    /// replaced by one in memory. What is left to chance is the same in every run.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, Message, Service, config::Config, testing::TestService};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    ///
    /// // As in production; no RabbitMQ is asked.
    /// let config = "brokers.main = { kind = \"rabbitmq\", url = \"amqp://rabbit.example\" }\n\
    ///               subscriptions.orders = { broker = \"main\", queue = \"shop.orders\" }";
    /// let config = Config::from_toml(config)?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`ServiceBuilder::start`].
    ///
    /// # Panics
    /// When it is called from within a runtime.
    pub fn start(builder: ServiceBuilder) -> Result<Self, Error> {
        let runner = actix::System::with_tokio_rt(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().start_paused(true).build().expect("a runtime can be built")
        });
        fastrand::seed(0);
        let booted = runner.block_on(async {
            let start = Instant::now();
            let witness = Arc::new(Witness::new(start));
            let clock = Clock::Virtual(start);
            let booting = builder.on_one_thread(clock, witness.clone(), in_memory);
            let booting = booting.boot(Box::pin(std::future::pending())).await;
            let (service, life) = booting?;
            actix::spawn(life);
            settle(&witness).await;
            Ok::<_, Error>((service, witness, start))
        });
        let (service, witness, start) = booted?;
        Ok(Self { service, witness, start, published: 0, runner })
    }

    /// Makes what is left to chance (jitter) come out in another way, the same in every run.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Err(Failure::retry("not yet")) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// for seed in [7, 7, 8] {
    ///     test.seed(seed);
    ///     test.publish("orders", Message::json(&7)?.id("order-7"));
    /// }
    /// assert_eq!(test.log()[0], test.log()[1], "the same delay");
    /// assert_ne!(test.log()[0], test.log()[2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn seed(&mut self, seed: u64) {
        fastrand::seed(seed);
    }

    /// Publishes to a subscription's queue and lets everything happen that is due at once. A
    /// message without an id gets `SUBSCRIPTION-1`, `-2` and so on.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// let id = test.publish("orders", Message::json(&7)?);
    /// assert_eq!(id.as_str(), "orders-1", "the same in every run");
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"], "by now, as it was due at once");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// When there is no such subscription, or the message says a queue that does not exist.
    pub fn publish(&mut self, subscription: &str, message: Message) -> MessageId {
        self.published += 1;
        let id = format!("{subscription}-{}", self.published);
        let Some(known) = self.service.inner().subscriptions.get(subscription) else {
            panic!("there is no subscription `{subscription}` in the configuration");
        };
        let queue = known.scope.settings.queue.as_deref().unwrap_or(subscription);
        let message = message.or_to(queue, &id);
        let publisher = Publisher::new(known.broker.publisher());
        let sent = self.run(async move { publisher.send(message).await });
        sent.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Lets this much time pass; everything that is due in between happens at its own time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled {
    ///     tokio::time::sleep(Duration::from_secs(5)).await;
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.advance(Duration::from_secs(4));
    /// assert!(test.log().is_empty(), "it is not done yet");
    /// test.advance(Duration::from_secs(1));
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn advance(&mut self, time: Duration) {
        self.drive(async {
            tokio::time::sleep(time).await;
        });
    }

    /// Lets time pass until no message is ready, in hand or waiting.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Err(Failure::retry("not yet")) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert_eq!(test.log()[7], "orders-1: attempt 8 dead-lettered: exhausted: not yet");
    /// assert_eq!(test.elapsed(), Duration::from_millis(200 * 127), "in a moment of real time");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// When that does not come about within a week, as where a subscription is paused.
    pub fn finish(&mut self) {
        let (service, witness) = (self.service.clone(), Arc::clone(&self.witness));
        let finished = self.drive(async move {
            let end = Instant::now() + FINISH_MAX;
            loop {
                settle(&witness).await;
                if is_done(&service).await {
                    return true;
                }
                tokio::select! {
                    () = witness.wrote.notified() => {}
                    () = tokio::time::sleep_until(end) => return false,
                }
            }
        });
        assert!(finished, "messages are still there: {:#?}", self.lines());
    }

    /// Runs a future to its end, letting time pass where it has to wait, and then everything that
    /// is due at once: for what only [`Service`] can do.
    ///
    /// ```
    /// # use redeliver::{config::Config, testing::TestService, Delivery, Handled, Service};
    /// # async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # let config = Config::from_toml(
    /// #     "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\""
    /// # )?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// let service = test.service();
    /// test.run(async move { service.pause("orders").await })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.drive(future)
    }

    /// The service itself.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// let service = test.service();
    /// let metrics = test.run(async move { service.metrics().await });
    /// assert!(metrics.contains("redeliver_handled_total{subscription=\"orders\"} 1"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// How much time has passed since the start.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.elapsed(), Duration::ZERO, "however long this machine took");
    /// test.advance(Duration::from_secs(3600));
    /// assert_eq!(test.elapsed(), Duration::from_secs(3600));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn elapsed(&self) -> Duration {
        // The runtime's clock is read within it.
        let start = self.start;
        self.runner.block_on(async move { start.elapsed() })
    }

    /// What became of every message so far, in order, a line each.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     if order.payload == 0 { Err(Failure::reject("no order 0")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.id("order-7"));
    /// test.publish("orders", Message::json(&0)?.id("order-0"));
    /// assert_eq!(test.log(), ["order-7: attempt 1 handled", "order-0: attempt 1 dead-lettered: rejected: no order 0"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn log(&self) -> Vec<String> {
        self.lines()
    }

    /// The same as [`log`](Self::log), as values.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, testing::Fate};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// for order in 1..=100 {
    ///     test.publish("orders", Message::json(&order)?);
    /// }
    /// assert!(test.records().iter().all(|record| record.fate == Fate::Handled && record.attempt == 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn records(&self) -> Vec<Record> {
        self.witness.records().clone()
    }

    /// Forgets what was written down so far.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.clear_log();
    /// test.publish("orders", Message::json(&8)?);
    /// assert_eq!(test.log(), ["orders-2: attempt 1 handled"], "what came after; numbers go on");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_log(&mut self) {
        self.witness.records().clear();
    }

    /// The dead letters of a subscription.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, Reason};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&"not a number")?);
    /// let letters = test.dead_letters("orders");
    /// assert_eq!((letters.len(), letters[0].reason), (1, Some(Reason::Undecodable)));
    /// assert_eq!(test.dead_letters("orders").len(), 1, "it was looked at, not removed");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// When there is no such subscription.
    pub fn dead_letters(&mut self, subscription: &str) -> Vec<DeadLetter> {
        let letters = self.service.dead_letters(subscription);
        let letters = letters.unwrap_or_else(|error| panic!("{error}"));
        let read = self.run(async move {
            let mut pages = letters.pages(100).await?;
            let mut all = Vec::new();
            while let Some(page) = pages.next().await? {
                all.extend(page);
            }
            pages.close().await?;
            Ok::<_, Error>(all)
        });
        read.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Stops the service as a signal would. What that has left with the broker can still be asked for, which is an
    /// error in earnest: the depth and the dead letters are then the next process's.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Handled, Stop};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled {
    ///     tokio::time::sleep(Duration::from_secs(10)).await;
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[service]\nshutdown_grace = \"5s\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.stop(), Stop { left: 1 }, "a grace of 5s is too short for it");
    /// let service = test.service();
    /// assert_eq!(test.run(async move { service.depth("orders").await })?.ready, Some(1), "it is the next process's");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop(&mut self) -> Stop {
        let service = self.service.clone();
        self.run(async move { service.stop().await })
    }

    fn lines(&self) -> Vec<String> {
        self.witness.records().iter().map(ToString::to_string).collect()
    }

    /// Runs `future` between two moments of quiet, and lets no time pass while a blocking handler
    /// works.
    fn drive<T>(&self, future: impl Future<Output = T>) -> T {
        let witness = &self.witness;
        self.runner.block_on(async {
            settle(witness).await;
            let done = tokio::select! {
                done = future => done,
                never = stand_still_for_threads(witness) => match never {},
            };
            settle(witness).await;
            done
        })
    }
}

/// Lets everything happen that is due, and no time pass: a runtime whose clock is paused moves it
/// only when nobody has anything to do, and here somebody always has.
async fn settle(witness: &Witness) {
    let mut quiet = 0;
    let mut seen = witness.records().len();
    for _ in 0..TURNS_MAX {
        tokio::task::yield_now().await;
        let sees = witness.records().len();
        if witness.is_somebody_away() {
            std::thread::sleep(LOOK);
            quiet = 0;
        } else if sees == seen {
            quiet += 1;
        } else {
            (quiet, seen) = (0, sees);
        }
        if quiet == QUIET_TURNS {
            return;
        }
    }
    panic!("messages go round without end and without time passing; does a handler defer by zero?");
}

/// Keeps the runtime busy, and so its clock still, while blocking handlers have messages.
async fn stand_still_for_threads(witness: &Witness) -> std::convert::Infallible {
    loop {
        while witness.is_somebody_away() {
            std::thread::sleep(LOOK);
            tokio::task::yield_now().await;
        }
        witness.left.notified().await;
    }
}

async fn is_done(service: &Service) -> bool {
    for name in service.inner().subscriptions.keys() {
        let Ok(depth) = service.depth(name).await else { return false };
        let left = [depth.ready, depth.unsettled, depth.waiting];
        if left.into_iter().flatten().any(|left| left > 0) {
            return false;
        }
    }
    true
}
