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
mod place;
mod progress;
mod summary;
#[cfg(feature = "kafka")]
mod topic;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, stream};
use redeliver::Service;

use deliveries::Webhook;
use effects::Effects;
use notifier::{Notifier, Tally};
use options::{Job, Options, Part};
use progress::Progress;
use summary::Summary;

type Error = Box<dyn std::error::Error>;

/// How many messages are on their way to the broker, not confirmed yet.
const UNCONFIRMED_MAX: usize = 64;

#[actix::main]
async fn main() -> ExitCode {
    // What lapin logs of its connections, redeliver heals, and tells where it cannot.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "error,lapin=off".into()))
        .with_writer(std::io::stderr)
        .init();
    let job = match Options::parse().into_job() {
        Ok(job) => job,
        Err(error) => return fail(&error),
    };
    match done(&job).await {
        Ok((summary, complaints)) => {
            complaints.iter().for_each(|complaint| eprintln!("wrong: {complaint}"));
            println!("{}", summary.json());
            ExitCode::from(u8::from(!complaints.is_empty()))
        }
        Err(error) => fail(&error),
    }
}

async fn done(job: &Job) -> Result<(Summary, Vec<String>), Error> {
    job.place.create(&job.config).await?;
    match job.part {
        Part::Run => run(job).await,
        Part::Publish => publish(job).await,
        Part::Consume => consume(job).await,
    }
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("webhooks: {error}");
    ExitCode::from(2)
}

/// Publishes and consumes in one process, then compares what came of it with what had to.
async fn run(job: &Job) -> Result<(Summary, Vec<String>), Error> {
    let started = Instant::now();
    let webhooks = deliveries::of(job)?;
    let ids = deliveries::ids(&webhooks);
    let progress = Progress::of_run(job, &webhooks, &ids);
    let tally = Arc::new(Tally::default());
    let service = start_consuming(job, &tally).await?;
    let published = send_all(job, &service, &webhooks, |_| progress.show(&tally)).await?;
    let ended = end::reached(job, &service, || progress.show(&tally)).await?;
    progress.finish(&tally);
    let mut complaints = Vec::new();
    let (mut dead, mut lost) = (None, None);
    if ended {
        let letters = summary::dead_letters(&service).await?;
        let lost_ids = summary::lost(&ids, &tally.handled(), &letters);
        complaints = summary::complaints(job, &ids, &letters, &lost_ids);
        dead = Some(letters.len());
        lost = Some(lost_ids.len());
    } else {
        complaints.push(String::from("stopped by a signal before the end"));
    }
    service.stop().await;
    let summary = Summary {
        published: Some(published),
        distinct: Some(ids.len()),
        handled: Some(tally.handled().len()),
        retried: Some(tally.retried()),
        dead_lettered: dead,
        lost,
        seconds: summary::seconds(started),
    };
    Ok((summary, complaints))
}

/// Publishes, and consumes nothing.
async fn publish(job: &Job) -> Result<(Summary, Vec<String>), Error> {
    let started = Instant::now();
    let webhooks = deliveries::of(job)?;
    let ids = deliveries::ids(&webhooks);
    let service = Service::builder(job.config.clone()).without_handler(options::SUBSCRIPTION);
    let service = service.start().await?;
    let progress = Progress::of_publish(job, &webhooks);
    let published = send_all(job, &service, &webhooks, |count| progress.published(count)).await?;
    progress.close();
    service.stop().await;
    let summary = Summary {
        published: Some(published),
        distinct: Some(ids.len()),
        seconds: summary::seconds(started),
        ..Summary::default()
    };
    Ok((summary, Vec::new()))
}

/// Consumes what others published, until nothing more can come.
async fn consume(job: &Job) -> Result<(Summary, Vec<String>), Error> {
    let started = Instant::now();
    let tally = Arc::new(Tally::default());
    let service = start_consuming(job, &tally).await?;
    let progress = Progress::of_consume(job);
    let ended = end::reached(job, &service, || progress.show(&tally)).await?;
    progress.finish(&tally);
    let dead = match ended {
        true => Some(summary::dead_letters(&service).await?.len()),
        false => None,
    };
    service.stop().await;
    let summary = Summary {
        handled: Some(tally.handled().len()),
        retried: Some(tally.retried()),
        dead_lettered: dead,
        seconds: summary::seconds(started),
        ..Summary::default()
    };
    Ok((summary, Vec::new()))
}

async fn start_consuming(job: &Job, tally: &Arc<Tally>) -> Result<Service, Error> {
    let effects = job.effects.as_deref().map(Effects::open).transpose()?.map(Arc::new);
    let (chosen, tally) = (job.chosen, Arc::clone(tally));
    let notifier = move || Notifier::new(chosen, effects.clone(), Arc::clone(&tally));
    let service = Service::builder(job.config.clone());
    Ok(service.subscribe(options::SUBSCRIPTION, notifier).start().await?)
}

/// Sends every delivery as often as asked; how many messages were confirmed.
async fn send_all(
    job: &Job,
    service: &Service,
    webhooks: &[Webhook],
    show: impl Fn(u64),
) -> Result<u64, Error> {
    let publisher = service.publisher(&job.place.broker)?;
    let all = (0..job.repeat).flat_map(|_| webhooks);
    let sends = stream::iter(all.map(|webhook| {
        let message = webhook.message(&job.place);
        let publisher = publisher.clone();
        async move { publisher.send(message).await }
    }));
    let confirmed = sends.buffer_unordered(UNCONFIRMED_MAX).try_fold(0, async |count, _| {
        show(count + 1);
        Ok(count + 1)
    });
    Ok(confirmed.await?)
}
