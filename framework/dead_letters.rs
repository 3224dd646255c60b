//! Dead letters from code: list, show, redrive, purge.
//!
//! Owns what a dead letter looks like to a person and which ones a filter means. Moves messages
//! only one way: copy confirmed, then removed; so that stopping in the middle loses nothing, and
//! doing it again goes on where it stopped.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::broker::{
    Broker, BrokerError, Copy, DeadLetterReader, Envelope, HeaderValue, Place, Received, Source,
};
use crate::clock::Clock;
use crate::error::Error;
use crate::outside;
use crate::pipeline::{Reason, id_of};
use crate::wire::{self, Carried, Stamps};

/// The dead letters of one subscription.
///
/// Reading them hides them: in memory and on RabbitMQ nobody else sees what open [`Pages`] have read (on RabbitMQ up to 32
/// more), until they are closed or dropped. So within a process one call at a time reads them: another waits for 5
/// seconds, and then is an error that says so, never an answer that leaves out what is held. What another **process**
/// holds no broker tells; there, a redrive or a purge means only what it sees, and can be made again.
///
/// ```
/// # actix::System::new().block_on(async {
/// # use redeliver::{Delivery, Failure, Handled, Message, Service, config::Config};
/// # let config = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"";
/// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
/// # let service = Service::builder(Config::from_toml(config)?).subscribe("orders", refuse).start().await?;
/// # service.publisher("main")?.send(Message::bytes("7").to_queue("orders").id("order-7")).await?;
/// # while service.depth("orders").await?.dead == Some(0) { tokio::time::sleep(std::time::Duration::from_millis(5)).await; }
/// # service.pause("orders").await?;
/// use redeliver::{Filter, Redrive};
///
/// let dead_letters = service.dead_letters("orders")?;
/// let mut pages = dead_letters.pages(100).await?;
/// while let Some(page) = pages.next().await? {
///     for letter in page {
///         println!("{:?}: {:?}, {:?}", letter.id, letter.reason, letter.error);
///     }
/// }
/// pages.close().await?;
/// let letter = dead_letters.show("order-7").await?.expect("it was rejected");
/// assert_eq!(letter.error.as_deref(), Some("sold out"));
///
/// let filter = Filter { error_class: Some("stock".to_owned()), ..Filter::default() };
/// let redriven = dead_letters.redrive(&Redrive { filter, rate_max: Some(50), ..Redrive::default() }).await?;
/// assert_eq!(redriven.moved, 1);
/// assert_eq!(dead_letters.purge(&Filter::default()).await?, 0, "none is left");
/// # service.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct DeadLetters {
    broker: Arc<dyn Broker>,
    source: Arc<Source>,
    clock: Clock,
}

/// One dead letter.
///
/// ```
/// use redeliver::{DeadLetter, Reason};
///
/// # use redeliver::{Delivery, Failure, Handled};
/// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
/// # test.publish("orders", Message::json(&7)?.id("order-7"));
/// let letters: Vec<DeadLetter> = test.dead_letters("orders");
/// let letter = &letters[0];
/// assert_eq!((letter.id.as_deref(), letter.attempts), (Some("order-7"), 1));
/// assert_eq!((letter.reason, letter.error.as_deref()), (Some(Reason::Rejected), Some("sold out")));
/// assert_eq!((letter.error_class.as_deref(), &letter.body[..]), (Some("stock"), &b"7"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The message's id.
    pub id: Option<String>,
    /// Why it is here; `None` where neither we nor the broker said.
    pub reason: Option<Reason>,
    /// The last error; of what the broker dead-lettered, that of the attempt before its last wait.
    pub error: Option<String>,
    /// Its class.
    pub error_class: Option<String>,
    /// Attempts that were made, as far as is known: 0 where the broker dead-lettered what it never saw in one of our
    /// waits, whatever its headers say.
    pub attempts: u32,
    /// How often it was redriven before.
    pub generation: u32,
    /// The message's type.
    pub kind: Option<String>,
    /// Where it came from.
    pub origin: Option<String>,
    /// Who gave it up; nobody of ours where the broker did.
    pub consumer: Option<String>,
    /// When it was first delivered.
    pub first_seen: Option<SystemTime>,
    /// When it became a dead letter; in whole seconds where the broker made it one.
    pub dead_at: Option<SystemTime>,
    /// The content type.
    pub content_type: Option<String>,
    /// Every header that is text or a number.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub body: Bytes,
}

/// Which dead letters are meant: those that fit everything that is set.
///
/// ```
/// use std::time::Duration;
/// use redeliver::{Filter, Reason};
///
/// let filter = Filter {
///     reason: Some(Reason::Exhausted),
///     older_than: Some(Duration::from_secs(3600)),
///     ..Filter::default()
/// };
/// assert_eq!(filter.id, None, "whatever its id");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this id.
    pub id: Option<String>,
    /// Of this reason.
    pub reason: Option<Reason>,
    /// Of this error class.
    pub error_class: Option<String>,
    /// Of this message type.
    pub kind: Option<String>,
    /// Dead for at least this long.
    pub older_than: Option<Duration>,
}

/// How a redrive goes about it.
///
/// ```
/// use redeliver::Redrive;
///
/// let how_many = Redrive { dry_run: true, ..Redrive::default() };
/// let slowly = Redrive { rate_max: Some(10), count_max: 1000, ..Redrive::default() };
/// assert!(!slowly.dry_run && how_many.count_max == usize::MAX, "the defaults: all of them, in earnest");
/// ```
#[derive(Clone, Debug)]
pub struct Redrive {
    /// Which ones.
    pub filter: Filter,
    /// Only counts.
    pub dry_run: bool,
    /// Messages a second at the most, 1 or more; `None` for as fast as they are confirmed.
    pub rate_max: Option<u32>,
    /// Messages at the most.
    pub count_max: usize,
    /// Handles ids again that are done, each once: what subscriptions with `idempotency` would
    /// acknowledge as duplicates, a `mismatch` above all.
    pub force: bool,
}

impl Default for Redrive {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            dry_run: false,
            rate_max: None,
            count_max: usize::MAX,
            force: false,
        }
    }
}

/// What a redrive did.
///
/// ```
/// use redeliver::{Redrive, Redriven};
///
/// # use redeliver::{Delivery, Failure, Handled};
/// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
/// # test.publish("orders", Message::json(&7)?.id("order-7"));
/// # let service = test.service();
/// # test.run(async move {
/// let letters = service.dead_letters("orders")?;
/// let would = letters.redrive(&Redrive { dry_run: true, ..Redrive::default() }).await?;
/// assert_eq!(would, Redriven { matched: 1, moved: 0 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// How many the filter meant.
    pub matched: usize,
    /// How many are back in their source, confirmed, and removed here.
    pub moved: usize,
}

impl DeadLetters {
    pub(crate) fn new(broker: Arc<dyn Broker>, source: Arc<Source>, clock: Clock) -> Self {
        Self { broker, source, clock }
    }

    /// All dead letters, `size` at a time, in the order of the queue, without consuming them.
    ///
    /// ```
    /// # use redeliver::{Delivery, Failure, Handled};
    /// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
    /// # for order in 7..10 { test.publish("orders", Message::json(&order)?.id(format!("order-{order}"))); }
    /// # let service = test.service();
    /// # test.run(async move {
    /// let letters = service.dead_letters("orders")?;
    /// let mut pages = letters.pages(2).await?;
    /// let first: Vec<_> = pages.next().await?.unwrap_or_default().into_iter().map(|letter| letter.id).collect();
    /// assert_eq!(first, [Some("order-7".to_owned()), Some("order-8".to_owned())], "the oldest first");
    /// pages.close().await?;
    /// assert!(letters.pages(0).await.is_err(), "would list nothing");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A `size` of 0; what the broker says; others are open in this process and are not closed soon.
    pub async fn pages(&self, size: usize) -> Result<Pages, Error> {
        if size == 0 {
            return Err(self.refused("pages(0) would list nothing; use a size of 1 or more"));
        }
        Ok(Pages { reader: self.reader().await?, size })
    }

    /// The dead letter of this id.
    ///
    /// ```
    /// # use redeliver::{Delivery, Failure, Handled};
    /// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
    /// # for order in 7..10 { test.publish("orders", Message::json(&order)?.id(format!("order-{order}"))); }
    /// # let service = test.service();
    /// # test.run(async move {
    /// let letters = service.dead_letters("orders")?;
    /// let letter = letters.show("order-8").await?.expect("it was rejected");
    /// assert_eq!((&letter.body[..], letter.error.as_deref()), (&b"8"[..], Some("sold out")));
    /// assert!(letters.show("order-1").await?.is_none(), "that one was handled, or never sent");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What the broker says; pages are open in this process and are not closed soon.
    pub async fn show(&self, id: &str) -> Result<Option<DeadLetter>, Error> {
        let mut pages = self.pages(64).await?;
        let mut found = None;
        while found.is_none()
            && let Some(page) = pages.next().await?
        {
            found = page.into_iter().find(|letter| letter.id.as_deref() == Some(id));
        }
        pages.close().await?;
        Ok(found)
    }

    /// Moves dead letters back to where they are consumed: attempts and age begin anew, the
    /// generation is raised, the id stays. Each is confirmed there before it is removed here.
    /// An id that ended dead is claimed anew; one that is done is acknowledged as a duplicate,
    /// unless [`force`](Redrive::force) is set.
    ///
    /// What fails again while this runs is not taken again. A call that failed or was stopped in
    /// the middle can be made again: what was moved is not here any more.
    ///
    /// ```
    /// # use redeliver::{Delivery, Failure, Handled};
    /// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
    /// # for order in 7..10 { test.publish("orders", Message::json(&order)?.id(format!("order-{order}"))); }
    /// # let service = test.service();
    /// # test.run(async move {
    /// use redeliver::{Filter, Redrive};
    ///
    /// let letters = service.dead_letters("orders")?;
    /// let filter = Filter { id: Some("order-8".to_owned()), ..Filter::default() };
    /// let redriven = letters.redrive(&Redrive { filter, ..Redrive::default() }).await?;
    /// assert_eq!((redriven.matched, redriven.moved), (1, 1));
    /// let never = letters.redrive(&Redrive { rate_max: Some(0), ..Redrive::default() }).await;
    /// assert!(never.is_err(), "would never move one");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A [`rate_max`](Redrive::rate_max) of 0; what the broker says, and how many were moved before; the others are still here. Pages are open in this process
    /// and are not closed soon: nothing was moved, as nobody knows what they hide.
    ///
    /// # Cancel safety
    /// A cancelled call may have moved one message without having removed it here.
    pub async fn redrive(&self, redrive: &Redrive) -> Result<Redriven, Error> {
        if redrive.rate_max == Some(0) {
            let why = "a redrive with rate_max = Some(0) would never move one; use Some(1) or more, or None for as fast \
                       as they are confirmed";
            return Err(self.refused(why));
        }
        let redriving = async {
            let (mut reader, mut done) = (self.reader().await?, Redriven::default());
            let moved = self.move_back(reader.as_mut(), redrive, &mut done).await;
            self.conclude(reader, moved, "moved", done.moved).await?;
            Ok(done)
        };
        outside::in_context(redriving).await
    }

    async fn move_back(
        &self,
        reader: &mut dyn DeadLetterReader,
        redrive: &Redrive,
        done: &mut Redriven,
    ) -> Result<(), BrokerError> {
        let pause = redrive.rate_max.map(|rate| Duration::from_secs(1) / rate);
        let publisher = self.broker.publisher();
        let started = self.clock.now();
        // Letters are dated in whole milliseconds: one that was moved and fails again at once is later than that.
        tokio::time::sleep(Duration::from_millis(1)).await;
        while done.matched < redrive.count_max {
            let Some(received) = reader.next().await? else { break };
            let letter = DeadLetter::read(received.envelope.as_ref());
            if !redrive.filter.fits_before(&letter, started) {
                continue;
            }
            done.matched += 1;
            if redrive.dry_run {
                continue;
            }
            publisher.copy(&self.back(&received, redrive.force)).await?;
            reader.remove(received.token).await?;
            done.moved += 1;
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    /// Removes dead letters for good; how many. Those that come while it runs are left for the next call.
    ///
    /// ```
    /// # use redeliver::{Delivery, Failure, Handled};
    /// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
    /// # for order in 7..10 { test.publish("orders", Message::json(&order)?.id(format!("order-{order}"))); }
    /// # let service = test.service();
    /// # test.run(async move {
    /// use redeliver::Filter;
    ///
    /// let letters = service.dead_letters("orders")?;
    /// let filter = |id: &str| Filter { id: Some(id.to_owned()), ..Filter::default() };
    /// assert_eq!(letters.purge(&filter("order-8")).await?, 1);
    /// assert_eq!(letters.purge(&filter("order-8")).await?, 0, "it is gone for good");
    /// assert!(letters.show("order-7").await?.is_some(), "this one was not meant");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What the broker says, and how many were removed before; the others are still here. Pages are open in this process
    /// and are not closed soon: nothing was removed.
    pub async fn purge(&self, filter: &Filter) -> Result<usize, Error> {
        let purging = async {
            let (mut reader, mut count) = (self.reader().await?, 0);
            let removed = self.remove_all(reader.as_mut(), filter, &mut count).await;
            self.conclude(reader, removed, "removed", count).await?;
            Ok(count)
        };
        outside::in_context(purging).await
    }

    async fn remove_all(
        &self,
        reader: &mut dyn DeadLetterReader,
        filter: &Filter,
        count: &mut usize,
    ) -> Result<(), BrokerError> {
        let started = self.clock.now();
        while let Some(received) = reader.next().await? {
            if filter.fits_before(&DeadLetter::read(received.envelope.as_ref()), started) {
                reader.remove(received.token).await?;
                *count += 1;
            }
        }
        Ok(())
    }

    /// Closes the reader, whatever became of the work: a removal that is not known to the broker yet is lost with
    /// the reader, and the letter would be in both places.
    async fn conclude(
        &self,
        mut reader: Box<dyn DeadLetterReader>,
        worked: Result<(), BrokerError>,
        verb: &str,
        count: usize,
    ) -> Result<(), Error> {
        let closed = reader.close().await;
        worked.and(closed).map_err(|error| {
            let name = &self.source.name;
            Error::Broker(format!("dead letters of `{name}`: {count} were {verb}, then: {error}"))
        })
    }

    async fn reader(&self) -> Result<Box<dyn DeadLetterReader>, Error> {
        let reader = self.broker.dead_letters(Arc::clone(&self.source));
        let reader = outside::in_context(reader).await;
        reader.map_err(|error| self.error(&error))
    }

    fn refused(&self, why: &str) -> Error {
        Error::Invalid(format!("dead letters of `{}`: {why}", self.source.name))
    }

    fn error(&self, error: &BrokerError) -> Error {
        Error::Broker(format!("dead letters of `{}`: {error}", self.source.name))
    }

    fn back(&self, received: &Received, force: bool) -> Copy {
        let carried = Carried::read(received.envelope.as_ref());
        let mut stamps = Stamps::new();
        // One that had none where its subscription looks must not get another kind of id by being redriven.
        if let Some(id) = id_of(received.envelope.as_ref(), &carried, &self.source.settings.id) {
            stamps.push((wire::ID, id));
        }
        if let Some(origin) = carried.origin {
            stamps.push((wire::ORIGIN, origin.into()));
        }
        stamps.push((wire::GENERATION, carried.generation.saturating_add(1).to_string()));
        if force {
            stamps.push((wire::FORCED, String::from("1")));
        }
        let envelope = received.envelope.clone();
        Copy { source: Arc::clone(&self.source), envelope, place: Place::Source, stamps }
    }
}

/// Dead letters page by page; those that were read are held until this is closed or dropped, and hidden from everybody
/// else: close it before anything is redriven, purged or shown.
///
/// ```
/// # use redeliver::{Delivery, Failure, Handled};
/// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
/// # test.publish("orders", Message::json(&7)?.id("order-7"));
/// # let service = test.service();
/// # test.run(async move {
/// let mut pages = service.dead_letters("orders")?.pages(100).await?;
/// let first = pages.next().await?.expect("there is one dead letter");
/// assert_eq!(first.len(), 1);
/// assert!(pages.next().await?.is_none(), "that was the last page");
/// pages.close().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pages {
    reader: Box<dyn DeadLetterReader>,
    size: usize,
}

impl Pages {
    /// The next page, or `None` after the last.
    ///
    /// ```
    /// # use redeliver::{Delivery, Failure, Handled};
    /// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
    /// # for order in 7..10 { test.publish("orders", Message::json(&order)?.id(format!("order-{order}"))); }
    /// # let service = test.service();
    /// # test.run(async move {
    /// let mut pages = service.dead_letters("orders")?.pages(2).await?;
    /// let mut lengths = Vec::new();
    /// while let Some(page) = pages.next().await? {
    ///     lengths.push(page.len());
    /// }
    /// assert_eq!(lengths, [2, 1], "of three");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What the broker says.
    pub async fn next(&mut self) -> Result<Option<Vec<DeadLetter>>, Error> {
        let mut page = Vec::new();
        while page.len() < self.size {
            let next = outside::in_context(self.reader.next()).await;
            let next = next.map_err(|error| Error::Broker(error.to_string()))?;
            let Some(received) = next else { break };
            page.push(DeadLetter::read(received.envelope.as_ref()));
        }
        Ok((!page.is_empty()).then_some(page))
    }

    /// Gives back what was read, and waits until it is there again.
    ///
    /// ```
    /// # use redeliver::{Delivery, Failure, Handled};
    /// # let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
    /// # for order in 7..10 { test.publish("orders", Message::json(&order)?.id(format!("order-{order}"))); }
    /// # let service = test.service();
    /// # test.run(async move {
    /// let letters = service.dead_letters("orders")?;
    /// let pages = letters.pages(100).await?;
    /// assert!(letters.show("order-7").await.is_err(), "nobody knows what the open pages hide");
    /// pages.close().await?;
    /// assert!(letters.show("order-7").await?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What the broker says; it comes back all the same when the connection closes.
    pub async fn close(mut self) -> Result<(), Error> {
        let closed = outside::in_context(self.reader.close()).await;
        closed.map_err(|error| Error::Broker(error.to_string()))
    }
}

impl DeadLetter {
    fn read(envelope: &dyn Envelope) -> Self {
        let carried = Carried::read(envelope);
        let mut headers = Vec::new();
        envelope.visit_headers(&mut |name, value| match value {
            HeaderValue::Text(text) => headers.push((name.to_owned(), text.to_owned())),
            HeaderValue::Number(number) => headers.push((name.to_owned(), number.to_string())),
            HeaderValue::Bytes(_) | HeaderValue::Other(_) => {}
        });
        let header = |name: &str| {
            headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        // What the broker did came last: our own copies carry nothing of it, and our headers could be anybody's,
        // unless the broker saw one of our waits let it go.
        let theirs = envelope.broker_reason().and_then(Reason::parse);
        let ours = |name: &str| header(name).filter(|_| theirs.is_none());
        let is_our_copy = theirs.is_none() || envelope.broker_saw_it_wait();
        let copied = |name: &str| header(name).filter(|_| is_our_copy);
        Self {
            id: carried.id.as_deref().or_else(|| envelope.id()).map(str::to_owned),
            reason: theirs.or_else(|| ours(wire::REASON).as_deref().and_then(Reason::parse)),
            error: copied(wire::ERROR),
            error_class: ours(wire::ERROR_CLASS),
            attempts: if is_our_copy { carried.attempts } else { 0 },
            generation: carried.generation,
            kind: envelope.kind().map(str::to_owned),
            origin: carried.origin.filter(|_| is_our_copy).map(Into::into),
            consumer: ours(wire::CONSUMER),
            first_seen: carried.first_seen.filter(|_| is_our_copy),
            dead_at: match theirs {
                Some(_) => envelope.broker_dead_at(),
                None => ours(wire::DEAD_AT).as_deref().and_then(wire::parse_time),
            },
            content_type: envelope.content_type().map(str::to_owned),
            body: Bytes::copy_from_slice(envelope.body()),
            headers,
        }
    }
}

impl Filter {
    /// Whether it fits one that was there at `started`: what comes while the others are worked off is for the next call.
    fn fits_before(&self, letter: &DeadLetter, started: SystemTime) -> bool {
        letter.dead_at.is_none_or(|at| at <= started) && self.fits(letter, started)
    }

    fn fits(&self, letter: &DeadLetter, now: SystemTime) -> bool {
        let same = |wanted: &Option<String>, is: &Option<String>| wanted.is_none() || wanted == is;
        let old_enough = self.older_than.is_none_or(|age| {
            letter.dead_at.and_then(|at| now.duration_since(at).ok()).is_some_and(|is| is >= age)
        });
        same(&self.id, &letter.id)
            && same(&self.error_class, &letter.error_class)
            && same(&self.kind, &letter.kind)
            && (self.reason.is_none() || self.reason == letter.reason)
            && old_enough
    }
}
