//! Order by key and by lane, over failures.

use std::time::Duration;

use redeliver::{Delivery, Failure, Handled};
use tokio::time::sleep;

use crate::ground::{Ground, Kind, drained, text};
use crate::seen::Seen;

const RETRY: &str =
    "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"100ms\"\nattempts_max = 4\n";
const WAITS: &str = "order_wait_max = \"60s\"\norder_on_long_wait = \"reorder\"\n";

/// The ids that were handled, in the order of their effects: every seventh fails once before it has one.
async fn effects(ground: &Ground, keys: &str, count: u32, keys_count: u32) -> Vec<u32> {
    let seen = Seen::default();
    let noted = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        let noted = noted.clone();
        async move {
            let number: u32 = delivery.id().and_then(|id| id.parse().ok()).unwrap_or_default();
            sleep(Duration::from_millis(u64::from(number % 3))).await;
            if number.is_multiple_of(7) && delivery.attempt() == 1 {
                return Err(Failure::retry("not yet"));
            }
            noted.note(&delivery);
            Handled::Ok(())
        }
    };
    let service = ground.start(&ground.toml(keys, RETRY), handler).await;
    for number in 0..count {
        let key = format!("customer-{}", number % keys_count);
        let message = text(&number.to_string(), "ok").key(key.clone()).header("customer", key);
        ground.send(&service, message).await;
    }
    drained(&service).await;
    service.stop().await;
    let effects: Vec<u32> =
        seen.runs().iter().map(|run| run.id.parse().expect("ids are numbers")).collect();
    assert_eq!(effects.len(), count as usize, "each has one effect");
    effects
}

pub(crate) async fn one_key_keeps_its_order_over_failures_and_others_go_on(kind: Kind) {
    let ground = Ground::new(kind).await;
    let keys = format!("ordering = \"key\"\nkey = \"header:customer\"\n{WAITS}");
    let effects = effects(&ground, &keys, 120, 6).await;
    for customer in 0..6 {
        let of_one = effects.iter().filter(|number| *number % 6 == customer);
        assert!(of_one.is_sorted(), "customer {customer}: {effects:?}");
    }
    assert!(!effects.is_sorted(), "keys go on beside one another");
}

pub(crate) async fn one_lane_takes_one_message_after_the_other(kind: Kind) {
    let ground = Ground::with_lanes(kind, 1).await;
    let effects = effects(&ground, &format!("ordering = \"lane\"\n{WAITS}"), 40, 6).await;
    assert!(effects.is_sorted(), "{effects:?}");
}
