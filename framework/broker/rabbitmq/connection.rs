//! One connection to the server, made anew on demand whenever it was lost.
//!
//! Owns when and how to connect, and what the server says about the connection as a whole. Reconnects by
//! itself rather than by lapin's recovery: a fresh connection has fresh channels, so that nothing made for an
//! old one, no acknowledgement above all, can ever reach a new delivery.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt;
use lapin::runtime::default_runtime;
use lapin::tcp::AMQPUriTcpExt;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::{fault, tls};
use crate::broker::{BrokerError, BrokerState, Fault};
use crate::config::{self, Tls};
use crate::retry::Schedule;

/// How long one attempt to connect may take, name resolution and TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long the server may take to answer on a channel; a quorum queue is declared by a vote of its nodes.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long closing may take before the socket is dropped.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Used unless the url says otherwise: a dead peer is noticed after twice this.
const HEARTBEAT_SECONDS: u16 = 30;
/// A connection that lived for so long was a good one: the next is made at once.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

/// The thread that lapin's sockets and tasks live on.
///
/// Of our own, because lapin otherwise uses the runtime it is called from: a handler that blocks that one
/// would stop the heartbeats, and the server would close the connection under all subscriptions.
pub(super) struct Engine(Option<Runtime>);

impl Engine {
    pub(super) fn start() -> Result<Arc<Self>, BrokerError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("redeliver-rabbitmq")
            .enable_all()
            .build()
            .map_err(|error| {
                BrokerError::new(
                    Fault::Other,
                    format!("starting the thread of RabbitMQ's client: {error}"),
                )
            })?;
        Ok(Arc::new(Self(Some(runtime))))
    }

    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("the runtime is there until the engine is dropped").handle()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // In the background: the last owner may be dropped inside another runtime, where waiting panics.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where to connect, and as whom. Shows neither user nor password.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    tls: Option<Tls>,
    shown: String,
}

impl Address {
    /// Reads the table `[brokers.name]`.
    pub(super) fn read(name: &str, settings: &config::Broker) -> Result<Self, BrokerError> {
        let refused =
            |what: &str| BrokerError::new(Fault::Refused, format!("brokers.{name}.{what}"));
        let url = settings
            .url
            .as_ref()
            .ok_or_else(|| refused("url is missing; write \"amqp://host:5672/%2f\""))?;
        // The parser's own error may show the whole url, password and all.
        let unreadable = |_| {
            let advice = match unreadable_setting(url.expose()) {
                Some(name @ "auth_mechanism") => {
                    format!("`{name}` after the `?` is none that is known; write plain or external")
                }
                Some(name) => format!(
                    "`{name}` after the `?` is no whole number, or too large; write it like {name}=30"
                ),
                None => {
                    "write \"amqp://user@host:5672/vhost\", special characters as %XX".to_owned()
                }
            };
            refused(&format!("url ({url}) cannot be read; {advice}"))
        };
        let mut uri: AMQPUri = url.expose().parse().map_err(unreadable)?;
        if let Some(host) = ipv6_host(url.expose()) {
            // lapin's parser knows names only and would connect to localhost.
            uri.authority.host = host.to_owned();
        }
        if settings.tls.is_some() && uri.scheme == AMQPScheme::AMQP {
            return Err(refused(
                "tls is set, but the url begins with amqp://; write amqps://, or remove tls",
            ));
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        Ok(Self { uri, tls: settings.tls.clone(), shown: url.to_string() })
    }
}

impl Address {
    /// A server that asks for a certificate and gets none may just drop the connection.
    fn explain(&self, mut error: BrokerError) -> BrokerError {
        let shows_none = self.tls.as_ref().is_none_or(|tls| tls.cert.is_none());
        if error.fault == Fault::Unreachable && self.uri.scheme == AMQPScheme::AMQPS && shows_none {
            error.text.push_str("; if the server asks for a certificate, set tls.cert and tls.key");
        }
        error
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The name of a setting after the `?` for which alone the url cannot be read; never its value, which could be anything.
fn unreadable_setting(url: &str) -> Option<&str> {
    let (base, settings) = url.split_once('?')?;
    base.parse::<AMQPUri>().ok()?;
    let is_unreadable = |pair: &&str| format!("{base}?{pair}").parse::<AMQPUri>().is_err();
    let pair = settings.split('&').find(is_unreadable)?;
    Some(pair.split_once('=').map_or(pair, |(name, _)| name))
}

fn ipv6_host(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(host, _)| host)
}

/// A connection for one purpose, healed on demand.
pub(super) struct Link {
    /// For what heals it in the background, which must not keep it alive.
    this: Weak<Self>,
    engine: Arc<Engine>,
    address: Address,
    /// As the server shows it: service, host, process and purpose.
    label: String,
    live: ArcSwapOption<Live>,
    healing: Mutex<Healing>,
    /// The other connection to the same server: where one can connect, the other should not wait.
    other: OnceLock<Weak<Self>>,
    /// The other one was made.
    news: Notify,
    /// How many were made.
    made: watch::Sender<u64>,
    /// Ends every attempt to connect, and every wait for the next.
    closed: watch::Sender<bool>,
    last_failure: Arc<std::sync::Mutex<String>>,
}

/// A connection that was made.
pub(super) struct Live {
    pub(super) connection: Connection,
    blocked: watch::Receiver<Option<String>>,
    since: Instant,
}

/// How the next attempt is paced.
struct Healing {
    schedule: Schedule,
    not_before: Option<Instant>,
    /// The last attempt made no connection at all. A server that takes connections and drops them is not met more
    /// often for having taken another one.
    was_refused: bool,
}

impl Healing {
    fn new() -> Self {
        Self { schedule: Schedule::default(), not_before: None, was_refused: false }
    }

    /// Until it is time for the next attempt, or there is `news` that one may work now.
    async fn wait(&self, news: &Notify) {
        let Some(not_before) = self.not_before else { return };
        tokio::select! {
            () = sleep_until(not_before) => {}
            () = news.notified(), if self.was_refused => {}
        }
    }
}

impl Link {
    pub(super) fn new(engine: Arc<Engine>, address: Address, label: String) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            engine,
            address,
            label,
            live: ArcSwapOption::empty(),
            healing: Mutex::new(Healing::new()),
            other: OnceLock::new(),
            news: Notify::new(),
            made: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            last_failure: Arc::new(std::sync::Mutex::new("not connected yet".to_owned())),
        })
    }

    /// Tells both, whenever one of them is connected again, that the other may be too.
    pub(super) fn pair(one: &Arc<Self>, other: &Arc<Self>) {
        // They are paired once, where they are made.
        let _ = one.other.set(Arc::downgrade(other));
        let _ = other.other.set(Arc::downgrade(one));
    }

    /// The connection, made now if there is none.
    ///
    /// One caller at a time connects; attempts are spaced with full jitter, however many callers there are.
    pub(super) async fn live(&self) -> Result<Arc<Live>, BrokerError> {
        if let Some(live) = self.connected() {
            return Ok(live);
        }
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            // Never an error: the sender is here.
            _ = closed.wait_for(|closed| *closed) => Err(self.closed_by_us()),
            made = self.make_anew() => made,
        }
    }

    async fn make_anew(&self) -> Result<Arc<Live>, BrokerError> {
        let mut healing = self.healing.lock().await;
        if let Some(live) = self.connected() {
            return Ok(live);
        }
        // Taken out, so that a good connection earns one immediate attempt and not a loop of them.
        if self.live.swap(None).is_some_and(|lost| lost.since.elapsed() > PROVEN_AFTER) {
            healing.schedule.restart();
            healing.not_before = None;
        }
        healing.wait(&self.news).await;
        // Set beforehand: whoever is cancelled on the way still counts as an attempt.
        healing.not_before = Some(Instant::now() + healing.schedule.next_delay());
        let made = self.connect().await;
        healing.was_refused = made.is_err();
        match &made {
            Ok(_) => self.tell_other(),
            Err(error) => self.note_failure(error.text.clone()),
        }
        // Whoever closed may have looked before it was there.
        if *self.closed.borrow() {
            self.live.store(None);
            return Err(self.closed_by_us());
        }
        made
    }

    /// How many connections were made so far.
    pub(super) fn made(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    fn tell_other(&self) {
        if let Some(other) = self.other.get().and_then(Weak::upgrade) {
            other.news.notify_one();
        }
    }

    fn closed_by_us(&self) -> BrokerError {
        let text = format!("the connection to {} was closed by this process", self.address);
        BrokerError::new(Fault::Closed, text)
    }

    /// A new channel.
    pub(super) async fn channel(&self) -> Result<(Arc<Live>, Channel), BrokerError> {
        let live = self.live().await?;
        let channel = answer(
            &format!("opening a channel to {}", self.address),
            live.connection.create_channel(),
        )
        .await?;
        Ok((live, channel))
    }

    pub(super) fn state(&self) -> BrokerState {
        match self.connected() {
            Some(live) => match live.blocked.borrow().clone() {
                Some(reason) => BrokerState::Blocked(reason),
                None => BrokerState::Connected,
            },
            None => BrokerState::Disconnected(self.last_failure()),
        }
    }

    pub(super) async fn close(&self) {
        // Not under the lock of `healing`, which is held while the server is not there.
        self.closed.send_replace(true);
        if let Some(live) = self.live.swap(None) {
            self.note_failure("closed by this process".to_owned());
            // One that is down hears no goodbye.
            if live.connection.status().connected() {
                // Whatever comes of it: the socket is dropped next.
                let _ = timeout(CLOSE_MAX, live.connection.close(200, "bye".into())).await;
            }
        }
    }

    fn connected(&self) -> Option<Arc<Live>> {
        self.live.load_full().filter(|live| live.connection.status().connected())
    }

    async fn connect(&self) -> Result<Arc<Live>, BrokerError> {
        let attempt = format!("connecting to {}", self.address);
        let unreachable =
            |what: &str| BrokerError::new(Fault::Unreachable, format!("{attempt}: {what}"));
        let connecting = self
            .start_connecting()
            .map_err(|what| BrokerError::new(Fault::Refused, format!("{attempt}: {what}")))?;
        let abort = connecting.abort_handle();
        let connection = match timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(made)) => {
                made.map_err(|error| self.address.explain(fault::fault(&attempt, &error)))?
            }
            Ok(Err(_)) => return Err(unreachable("the attempt was aborted")),
            Err(_) => {
                abort.abort();
                return Err(unreachable(&format!("no answer within {} s", CONNECT_MAX.as_secs())));
            }
        };
        let live =
            Arc::new(Live { blocked: self.watch(&connection), connection, since: Instant::now() });
        self.live.store(Some(live.clone()));
        self.made.send_modify(|made| *made += 1);
        Ok(live)
    }

    /// Connects on the engine's thread, which the connection's tasks then stay on.
    fn start_connecting(&self) -> Result<JoinHandle<lapin::Result<Connection>>, String> {
        let Address { uri, tls, .. } = self.address.clone();
        let upgrade = match uri.scheme {
            AMQPScheme::AMQPS => Some(tls::connector(&tls.unwrap_or_default())?),
            AMQPScheme::AMQP => None,
        };
        let properties =
            ConnectionProperties::default().with_connection_name(self.label.clone().into());
        Ok(self.engine.handle().spawn(async move {
            let open = async move |uri: AMQPUri, runtime| {
                let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri };
                let stream = plain.connect_async(&runtime).await?;
                match &upgrade {
                    Some(connector) => {
                        Ok(stream.into_rustls(connector, &plain.authority.host).await?)
                    }
                    None => Ok(stream),
                }
            };
            Connection::connector(uri, default_runtime()?, open, properties).await
        }))
    }

    /// Follows what the server says about the connection until it ends.
    fn watch(&self, connection: &Connection) -> watch::Receiver<Option<String>> {
        let (sender, receiver) = watch::channel(None);
        let (last_failure, this) = (self.last_failure.clone(), self.this.clone());
        let status = connection.status().clone();
        let mut events = Box::pin(connection.events_listener());
        self.engine.handle().spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(reason) => drop(sender.send_replace(Some(reason))),
                    Event::ConnectionUnblocked => drop(sender.send_replace(None)),
                    Event::Error(error) => {
                        note(&last_failure, fault::said(&error));
                        // Told once: nobody may need this connection for hours, and health looks at it.
                        if !status.connected() {
                            break;
                        }
                    }
                    _ => {}
                }
            }
            // Whoever waits for it to be unblocked finds out that it is gone.
            drop(sender);
            heal(this).await;
        });
        receiver
    }

    fn note_failure(&self, text: String) {
        note(&self.last_failure, text);
    }

    fn last_failure(&self) -> String {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Connects again for as long as it takes; [`Link::live`] spaces the attempts.
async fn heal(link: Weak<Link>) {
    while let Some(link) = link.upgrade() {
        if link.live().await.is_ok() || *link.closed.borrow() {
            return;
        }
    }
}

fn note(last_failure: &std::sync::Mutex<String>, text: String) {
    *last_failure.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// Waits for the server's answer to `asking`, at most [`ANSWER_MAX`].
pub(super) async fn answer<T>(
    attempt: &str,
    asking: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(ANSWER_MAX, asking).await {
        Ok(answered) => answered.map_err(|error| fault::fault(attempt, &error)),
        Err(_) => Err(BrokerError::new(
            Fault::Unreachable,
            format!("{attempt}: no answer within {} s", ANSWER_MAX.as_secs()),
        )),
    }
}

impl Live {
    /// Waits until the server takes messages.
    pub(super) async fn unblocked(&self) {
        if self.blocked.borrow().is_none() {
            return;
        }
        // An error means that the connection is gone, which whoever waits will find out by using it.
        let _ = self.blocked.clone().wait_for(Option::is_none).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_to(url: String) -> Arc<Link> {
        let settings =
            config::Broker { url: Some(config::Url::new(url)), ..config::Broker::default() };
        let address = Address::read("main", &settings).expect("the url can be read");
        let engine = Engine::start().expect("a thread can be started");
        Link::new(engine, address, String::from("test"))
    }

    #[tokio::test(start_paused = true)]
    async fn one_connection_that_was_refused_is_tried_again_as_soon_as_the_other_is_made() {
        let healing = |was_refused| Healing {
            not_before: Some(Instant::now() + Duration::from_secs(30)),
            was_refused,
            ..Healing::new()
        };
        let (one, other) =
            (link_to("amqp://127.0.0.1:9".into()), link_to("amqp://127.0.0.1:9".into()));
        Link::pair(&one, &other);
        let began = Instant::now();
        one.tell_other();
        healing(true).wait(&other.news).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        // A server that drops what it took is met no more often for that.
        one.tell_other();
        healing(false).wait(&other.news).await;
        assert_eq!(began.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn closing_waits_for_no_attempt_to_connect() {
        // It takes the connection and never says a word.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("amqp://{}/%2f", silent.local_addr().expect("it listens"));
        let link = link_to(url);
        let connecting = tokio::spawn({
            let link = link.clone();
            async move { link.live().await.map(drop) }
        });
        tokio::task::yield_now().await;
        let asked = Instant::now();
        link.close().await;
        let error = connecting.await.expect("no panic").expect_err("it was closed");
        assert!(error.to_string().contains("was closed by this process"), "{error}");
        assert!(asked.elapsed() < CONNECT_MAX, "took {:?}", asked.elapsed());
    }
}
