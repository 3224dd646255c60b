//! What is given up while its lane is gone.

use std::sync::Arc;
use std::time::Duration;

use redeliver::{Delivery, Failure};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::broker_proxy::Proxy;
use crate::common::rabbitmq::url;
use crate::lab::{Lab, Log, SHORT_WAITS};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_while_its_lane_is_gone_is_on_record_for_its_copies() {
    let (lab, log, gate) = (Lab::new(), Log::default(), Arc::new(Semaphore::new(0)));
    let proxy = Proxy::to(&url()).await;
    let (noting, passing) = (log.clone(), Arc::clone(&gate));
    let handler = move |delivery: Delivery<Value>| {
        let (noting, passing) = (noting.clone(), Arc::clone(&passing));
        async move {
            noting.note(&delivery);
            let _permit = passing.acquire().await.expect("it is never closed");
            Err(Failure::reject("it never will"))
        }
    };
    let toml = lab.toml("idempotency = { store = \"main\" }", SHORT_WAITS);
    let idle = lab.idle(&toml).await;
    let service = lab.start(&toml.replace(&url(), &proxy.url), handler).await;
    lab.send(&idle, "m", json!(1)).await;
    lab.eventually("a run", async || log.len() == 1).await;
    proxy.hold_back(true);
    proxy.cut();
    lab.eventually("the loss is noticed", async || !service.health().ready).await;
    gate.add_permits(100);
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.hold_back(false);
    lab.eventually("a dead letter", async || lab.dead(&idle).await == Some(1)).await;
    lab.drained(&service).await;
    lab.send(&idle, "m", json!(1)).await;
    lab.drained(&service).await;
    assert_eq!(log.len(), 1, "the copy is a duplicate");
    assert_eq!(lab.dead(&idle).await, Some(1));
    service.stop().await;
    idle.stop().await;
}
