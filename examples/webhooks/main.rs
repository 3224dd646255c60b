//! The main job: webhook deliveries are published, handled by an actor, retried and dead-lettered,
//! and in the end everything is accounted for.
//!
//! ```text
//! cargo run --release --example webhooks                                  no server needed
//! cargo run --release --example webhooks -- --broker rabbitmq             the same, on RabbitMQ
//! cargo run --release --example webhooks -- --broker kafka                and on Kafka
//! cargo run --release --example webhooks -- publish --broker rabbitmq     one half of it,
//! cargo run --release --example webhooks -- consume --broker rabbitmq     and the other
//! ```
//!
//! Some ids fail on their first attempt and some for ever; a hash of the id decides, so that every
//! process, also one that is started after another was killed, agrees on which.

mod chosen;
mod deliveries;
mod effects;
mod end;
mod guards;
mod notifier;
mod options;
mod outage;
mod place;
mod progress;
mod summary;
mod tell;
#[cfg(feature = "kafka")]
mod topic;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use redeliver::broker::Fault;
use redeliver::config::BrokerKind;
use redeliver::{PublishError, Service};

use deliveries::Webhook;
use effects::Effects;
use notifier::{Notifier, Tally};
use options::{Job, Options, Part};
use outage::ridden_out;
use progress::Progress;
use summary::{Account, Letters};
use tell::tell;

type Error = Box<dyn std::error::Error>;

/// How many messages are on their way to the broker, not confirmed yet.
const UNCONFIRMED_MAX: usize = 64;

/// How long ids may be missing from RabbitMQ before they are lost. What comes out of a wait while the server starts is held
/// by it, counted nowhere, and tried again after 181 s (docs/rabbitmq.md).
const HELD_MAX: Duration = Duration::from_secs(240);

#[actix::main]
async fn main() -> ExitCode {
    // What lapin and redis log of their connections, redeliver heals, and tells where it cannot.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "error,lapin=off,redis=off".into()))
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    let job = match Options::of_command_line().into_job() {
        Ok(job) => job,
        Err(error) => return fail(&error),
    };
    let mut account = Account::new();
    let done = match done(&job, &mut account).await {
        // While it waited for the broker: told of as one that comes later is.
        Err(error) if is_interrupted(&error) => {
            account.end(Err(outage::STOPPED.into()));
            Ok(())
        }
        done => done,
    };
    account.complaints.iter().for_each(|complaint| tell!("wrong: {complaint}"));
    // Not by println!, which panics where nobody reads it.
    if let Err(error) = writeln!(io::stdout(), "{}", account.json()) {
        return fail(&format!("writing the summary to standard output: {error}").into());
    }
    match done {
        Ok(()) => ExitCode::from(u8::from(!account.complaints.is_empty())),
        Err(error) => fail(&error),
    }
}

/// Does the job, and enters into `account` what is known of it, however it ends. An error if it could not be begun.
async fn done(job: &Job, account: &mut Account) -> Result<(), Error> {
    job.place.create(&job.config).await?;
    match job.part {
        Part::Run => run(job, account).await,
        Part::Publish => publish(job, account).await,
        Part::Consume => consume(job, account).await,
    }
}

/// A signal came before the service had started.
fn is_interrupted(error: &Error) -> bool {
    matches!(error.downcast_ref(), Some(redeliver::Error::Interrupted))
}

fn fail(error: &Error) -> ExitCode {
    tell!("webhooks: {error}");
    ExitCode::from(2)
}

/// Publishes and consumes in one process, then compares what came of it with what had to.
async fn run(job: &Job, account: &mut Account) -> Result<(), Error> {
    let webhooks = deliveries::of(job)?;
    let ids = deliveries::ids(&webhooks);
    account.summary.distinct = Some(ids.len());
    let progress = Progress::of_run(job, &webhooks, &ids);
    let (tally, effects) = (Arc::new(Tally::of(&ids)), open_effects(job)?);
    let service = start_consuming(job, &tally, &effects).await?;
    let all = async {
        send_all(job, &service, &webhooks, account, |_| progress.show(&tally)).await?;
        let (letters, lost) = all_accounted(job, &service, &progress, &tally, &ids).await?;
        account.complaints = summary::complaints(job, &ids, &letters, &lost);
        account.summary.dead_lettered = Some(letters.len());
        account.summary.lost = Some(lost.len());
        Ok(())
    };
    let ended = unless_failed(&effects, all).await;
    progress.finish(&tally);
    account.end(ended);
    account.count(tally.handled().len(), tally.retried());
    service.stop().await;
    Ok(())
}

/// Publishes, and consumes nothing.
async fn publish(job: &Job, account: &mut Account) -> Result<(), Error> {
    let webhooks = deliveries::of(job)?;
    account.summary.distinct = Some(deliveries::ids(&webhooks).len());
    let service = Service::builder(job.config.clone()).without_handler(options::SUBSCRIPTION);
    let service = service.start().await?;
    let progress = Progress::of_publish(job, &webhooks);
    let show = |count| progress.published(count);
    let ended = send_all(job, &service, &webhooks, account, show).await;
    progress.close();
    account.end(ended);
    service.stop().await;
    Ok(())
}

/// Consumes what others published, until nothing more can come.
async fn consume(job: &Job, account: &mut Account) -> Result<(), Error> {
    let (tally, effects) = (Arc::new(Tally::default()), open_effects(job)?);
    let service = start_consuming(job, &tally, &effects).await?;
    let progress = Progress::of_consume(job);
    let all = all_handled(job, &service, &progress, &tally);
    let ended = unless_failed(&effects, all).await;
    progress.finish(&tally);
    account.summary.dead_lettered = ended.as_ref().ok().map(Letters::len);
    account.end(ended.map(drop));
    account.count(tally.handled().len(), tally.retried());
    service.stop().await;
    Ok(())
}

/// Waits until nothing more can come, then reads the dead letters.
async fn all_handled(
    job: &Job,
    service: &Service,
    progress: &Progress,
    tally: &Tally,
) -> Result<Letters, Error> {
    match end::reached(job, service, || progress.show(tally)).await? {
        true => ridden_out(service, |_| true, async || summary::dead_letters(service).await).await,
        false => Err(outage::STOPPED.into()),
    }
}

/// The same, and whose ids are lost: on RabbitMQ only those that were not held by the server either.
async fn all_accounted<'a>(
    job: &Job,
    service: &Service,
    progress: &Progress,
    tally: &Tally,
    ids: &BTreeSet<&'a str>,
) -> Result<(Letters, Vec<&'a str>), Error> {
    let mut missed_since = None;
    loop {
        let letters = all_handled(job, service, progress, tally).await?;
        let lost = summary::lost(ids, &tally.handled(), &letters);
        if lost.is_empty() || job.place.kind != BrokerKind::Rabbitmq {
            return Ok((letters, lost));
        }
        let since = *missed_since.get_or_insert_with(|| {
            let missing = lost.len();
            tell!("{missing} ids are not there yet: waiting, as the server may hold them for 3 minutes");
            Instant::now()
        });
        if since.elapsed() >= HELD_MAX {
            return Ok((letters, lost));
        }
        // Who looks for the end may have stopped consuming.
        service.resume(options::SUBSCRIPTION).await?;
    }
}

fn open_effects(job: &Job) -> Result<Option<Arc<Effects>>, Error> {
    Ok(job.effects.as_deref().map(Effects::open).transpose()?.map(Arc::new))
}

/// What came of `all`, or why an effect could not be written: what is not on record is not known to be done.
async fn unless_failed<T>(
    effects: &Option<Arc<Effects>>,
    all: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(effects) = effects else { return all.await };
    tokio::select! {
        why = effects.failed() => Err(why.into()),
        ended = all => ended,
    }
}

async fn start_consuming(
    job: &Job,
    tally: &Arc<Tally>,
    effects: &Option<Arc<Effects>>,
) -> Result<Service, Error> {
    let (chosen, tally, effects) = (job.chosen, Arc::clone(tally), effects.clone());
    let notifier = move || Notifier::new(chosen, effects.clone(), Arc::clone(&tally));
    let service = Service::builder(job.config.clone());
    Ok(service.subscribe(options::SUBSCRIPTION, notifier).start().await?)
}

/// Sends every delivery as often as asked; how many messages were confirmed is entered as it grows.
async fn send_all(
    job: &Job,
    service: &Service,
    webhooks: &[Webhook],
    account: &mut Account,
    show: impl Fn(u64),
) -> Result<(), Error> {
    let publisher = service.publisher(&job.place.broker)?;
    let published = account.summary.published.insert(0);
    let all = (0..job.repeat).flat_map(|_| webhooks);
    let sends = stream::iter(all.map(|webhook| {
        let (message, publisher) = (webhook.message(&job.place), &publisher);
        // Again under the same id: whoever handles each id once handles it once.
        let send = async move || publisher.send(message.clone()).await;
        ridden_out(service, is_outage, send)
    }));
    let mut confirmed = sends.buffer_unordered(UNCONFIRMED_MAX);
    while confirmed.try_next().await?.is_some() {
        *published += 1;
        show(*published);
    }
    Ok(())
}

/// The broker was not there; the message is not at fault. It is closed where the service stops, which is what has to be
/// said then, and soon is.
fn is_outage(error: &PublishError) -> bool {
    matches!(error.fault(), Fault::Unreachable | Fault::Unconfirmed | Fault::Closed)
}
