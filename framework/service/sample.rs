//! The gauges of a service, taken when somebody asks for its metrics.
//!
//! Owns who is asked, and for how long. What cannot be had in time stays as it was; whoever does not answer hides
//! nothing but its own.

use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::timeout;

use super::{Inner, Subscription};
use crate::actors::{Holding, InspectAll};

/// How long anybody may take: a broker to tell how much waits, the actors what is held.
const COUNTED_MAX: Duration = Duration::from_secs(1);

pub(super) async fn all(inner: &Inner) {
    let depths = inner.subscriptions.values().map(|subscription| async {
        // Late is as good as never.
        let _ = timeout(COUNTED_MAX, depth(subscription)).await;
    });
    let _ = join(timeout(COUNTED_MAX, holdings(inner)), join_all(depths)).await;
}

/// What the subscriptions hold; the root of the actors waits a shorter time for each of them.
async fn holdings(inner: &Inner) {
    let told = inner.root.send(InspectAll).await.unwrap_or_default();
    for (name, subscription) in &inner.subscriptions {
        match told.get(name) {
            Some(Some(holdings)) => set(subscription, holdings),
            // It has no actors: none yet, none here, or none any more.
            None => set(subscription, &[]),
            Some(None) => {}
        }
    }
}

fn set(Subscription { scope, .. }: &Subscription, holdings: &[Holding]) {
    let metrics = &scope.metrics;
    let sum = |count: fn(&Holding) -> usize| holdings.iter().map(count).sum::<usize>() as i64;
    metrics.in_flight.set(sum(|holding| holding.running));
    metrics.parked.set(sum(|holding| holding.parked));
    metrics.carrying.set(sum(|holding| holding.carrying));
    let oldest = holdings.iter().filter_map(|holding| holding.oldest).min();
    metrics.oldest.set(oldest.map_or(0.0, |oldest| oldest.elapsed().as_secs_f64()));
}

async fn depth(Subscription { scope, broker, .. }: &Subscription) {
    let metrics = &scope.metrics;
    let source = scope.source.load_full();
    let Ok(depth) = broker.depth(&source).await else { return };
    let gauges = [&metrics.ready, &metrics.waiting, &metrics.dead_letters];
    for (gauge, count) in gauges.into_iter().zip([depth.ready, depth.waiting, depth.dead]) {
        if let Some(count) = count {
            gauge.set(count as i64);
        }
    }
}
