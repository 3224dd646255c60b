//! A handler that takes longer than RabbitMQ waits for an acknowledgement, on a server of its own.

use std::sync::Arc;
use std::time::Duration;

use redeliver::{Delivery, Handled};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::common::rabbitmq::{Node, url};
use crate::lab::{Lab, Log, SHORT_WAITS, count};

#[tokio::test(flavor = "multi_thread")]
async fn r19_what_comes_again_because_its_acknowledgement_is_late_does_not_run_beside_itself() {
    let node = Node::start("late", "consumer_timeout = 1000\n").await;
    let (lab, log, gate) = (Lab::new(), Log::default(), Arc::new(Semaphore::new(0)));
    let handler = || {
        let (noting, gate) = (log.clone(), Arc::clone(&gate));
        move |delivery: Delivery<Value>| {
            noting.note(&delivery);
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("it is never closed").forget();
                Handled::Ok(())
            }
        }
    };
    let toml = lab.toml("idempotency = { store = \"main\" }", SHORT_WAITS);
    let toml = toml.replace(&url(), &node.url);
    let one = lab.start(&toml, handler()).await;
    lab.send(&one, "m", json!(1)).await;
    lab.eventually("a run", async || log.len() == 1).await;
    let other = lab.start(&toml, handler()).await;
    // The server gives it to either: here it is adopted, there it waits for the end of the run.
    lab.eventually("the other gets it", async || {
        sleep(Duration::from_millis(1200)).await;
        node.control(&["eval", "[Channel ! tick || Channel <- rabbit_channel:list()]."]);
        sleep(Duration::from_millis(300)).await;
        count(&other, "redeliver_received_total").await > 0
    })
    .await;
    assert_eq!(log.len(), 1, "it does not run beside itself");
    gate.add_permits(10);
    lab.eventually("the other knows that it is done", async || {
        count(&other, "redeliver_duplicates_total").await == 1
    })
    .await;
    lab.send(&one, "next", json!(2)).await;
    lab.eventually("the next one", async || log.len() == 2).await;
    other.stop().await;
    lab.drained(&one).await;
    assert_eq!(log.ids(), ["m", "next"], "each had one run");
    assert_eq!(lab.dead(&one).await, Some(0));
    one.stop().await;
}
