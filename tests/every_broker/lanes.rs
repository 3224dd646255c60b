//! Several lanes of one subscription, in one process and in two.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::{Delivery, Handled};
use tokio::time::sleep;

use crate::ground::{Ground, Kind, drained, until};
use crate::seen::Seen;
use crate::stops::slow;

pub(crate) async fn no_more_are_handled_at_once_than_are_allowed_in_all_lanes_together(kind: Kind) {
    let ground = Ground::with_lanes(kind, 3).await;
    // Kafka's lanes are its partitions.
    let lanes = if kind == Kind::Kafka { "" } else { "consumers = 3\n" };
    let toml = ground.toml(&format!("{lanes}in_flight_max = 5\nin_flight_total_max = 7\n"), "");
    let (now, most) = (Arc::new(Mutex::new(0_u32)), Arc::new(Mutex::new(0_u32)));
    let (running, record) = (now.clone(), most.clone());
    let handler = move |_: Delivery<String>| {
        let (running, record) = (running.clone(), record.clone());
        async move {
            {
                let mut running = running.lock().expect("no test panics in here");
                *running += 1;
                let mut record = record.lock().expect("no test panics in here");
                *record = record.max(*running);
            }
            sleep(Duration::from_millis(60)).await;
            *running.lock().expect("no test panics in here") -= 1;
            Handled::Ok(())
        }
    };
    let service = ground.start(&toml, handler).await;
    ground.send_numbers(&service, 0..150).await;
    drained(&service).await;
    service.stop().await;
    let most = *most.lock().expect("no test panics in here");
    assert!((6..=7).contains(&most), "{most} at once");
}

pub(crate) async fn two_services_share_the_work(kind: Kind) {
    let ground = Ground::new(kind).await;
    let toml = ground.toml("in_flight_max = 4\n", "");
    let seen = [Seen::default(), Seen::default()];
    let one = ground.start(&toml, slow(&seen[0], Duration::from_millis(10))).await;
    let other = ground.start(&toml, slow(&seen[1], Duration::from_millis(10))).await;
    until("both have lanes", async || {
        [&one, &other].iter().all(|it| !it.health().subscriptions["orders"].lanes.is_empty())
    })
    .await;
    ground.send_numbers(&one, 0..300).await;
    // RabbitMQ does not tell what another service holds, so that nobody can see that all is worked off.
    until("all are handled", async || seen.iter().map(Seen::count).sum::<usize>() >= 300).await;
    sleep(Duration::from_millis(500)).await;
    assert!(seen.iter().all(|seen| seen.count() > 0), "both worked");
    let all = Seen::default();
    seen.iter().for_each(|seen| all.take(seen));
    all.assert_each_once(300);
    assert_eq!(one.stop().await.left + other.stop().await.left, 0);
}
