//! A histogram of durations that takes many at once.
//!
//! The metrics library's own takes a lock for each value, which for a handler that answers at once
//! would be a tenth of its message's whole way.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// How many bounds there are: 100 microseconds, each next one four times as long, about 7 minutes.
const BOUNDS: usize = 12;
const BOUND_MIN: u64 = 100_000;

/// Counts of durations by their length. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// By bound, then what is longer than the last.
    buckets: [AtomicU64; BOUNDS + 1],
    nanoseconds: AtomicU64,
}

impl Times {
    /// Counts `count` durations of this length.
    pub(crate) fn observe(&self, duration: Duration, count: u32) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let place = (0..BOUNDS).position(|place| nanoseconds <= bound(place)).unwrap_or(BOUNDS);
        self.0.buckets[place].fetch_add(count.into(), Ordering::Relaxed);
        let sum = nanoseconds.saturating_mul(count.into());
        self.0.nanoseconds.fetch_add(sum, Ordering::Relaxed);
    }
}

fn bound(place: usize) -> u64 {
    BOUND_MIN << (2 * place)
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = (0..BOUNDS).map(|place| bound(place) as f64 / 1e9).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Times {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn many_durations_count_as_often_as_they_were() {
        let times = Times::default();
        times.observe(Duration::from_micros(100), 64);
        times.observe(Duration::from_millis(2), 1);
        times.observe(Duration::from_secs(3600), 2);
        let mut registry = Registry::default();
        registry.register("handler", "How long", times);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "handler_sum 7200.0084",
            "handler_count 67",
            "handler_bucket{le=\"0.0001\"} 64",
            "handler_bucket{le=\"0.0016\"} 64",
            "handler_bucket{le=\"0.0064\"} 65",
            "handler_bucket{le=\"419.4304\"} 65",
            "handler_bucket{le=\"+Inf\"} 67",
        ] {
            assert!(text.lines().any(|written| written == line), "no `{line}` in\n{text}");
        }
    }
}
