//! The same service inside actix, inside tokio, and beside an HTTP server.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use redeliver::{Delivery, Handled, Message, Service, ServiceBuilder, by_type};

use crate::bench::{THRICE, config};

/// Runs `future` on a runtime that knows nothing of actix.
pub(crate) fn blocking_on<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Publishes each as JSON.
pub(crate) async fn publish<T: serde::Serialize>(
    service: &Service,
    values: impl IntoIterator<Item = T>,
) {
    let publisher = service.publisher("main").expect("it is configured");
    for value in values {
        let message = Message::json(&value).expect("JSON").to_queue("orders");
        publisher.send(message).await.expect("it is confirmed");
    }
}

/// Waits until nothing is ready, in hand or waiting.
pub(crate) async fn drained(service: &Service) {
    let done = async {
        loop {
            let depth = service.depth("orders").await.expect("the broker tells");
            if [depth.ready, depth.unsettled, depth.waiting] == [Some(0); 3] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), done).await.expect("it is drained");
}

async fn ship(delivery: Delivery<u32>) -> Handled {
    if delivery.payload.is_multiple_of(3) && delivery.attempt() == 1 {
        return Err(redeliver::Failure::retry("not yet"));
    }
    Ok(())
}

async fn a_hundred_are_handled() {
    let retry = THRICE.replace("200ms", "5ms");
    let builder = Service::builder(config("", &retry)).subscribe("orders", ship).signals(false);
    let service = builder.start().await.expect("it starts");
    publish(&service, 0..100u32).await;
    drained(&service).await;
    let metrics = service.metrics().await;
    assert!(
        metrics.contains("redeliver_handled_total{subscription=\"orders\"} 100\n"),
        "{metrics}"
    );
    assert!(metrics.contains("redeliver_retried_total{subscription=\"orders\"} 34\n"), "{metrics}");
    assert_eq!(service.stop().await.left, 0);
}

async fn refused(builder: ServiceBuilder, words: &[&str]) {
    let Err(error) = builder.start().await else { panic!("it started") };
    for word in words {
        assert!(error.to_string().contains(word), "{word} is missing in: {error}");
    }
}

#[actix::test]
async fn handlers_that_could_never_be_called_are_refused() {
    let builder = || Service::builder(config("", THRICE)).subscribe("orders", ship).signals(false);
    refused(builder().subscribe("orders", ship), &["`orders`", "more than once", "by_type()"])
        .await;
    refused(builder().without_handler("orders"), &["`orders`", "without_handler"]).await;
    let types = by_type().on("paid", ship).on("paid", ship).otherwise(ship).otherwise(ship);
    let builder = Service::builder(config("", THRICE)).subscribe("orders", types);
    refused(builder, &["type `paid`", "every other type"]).await;
}

#[actix::test]
async fn a_service_whose_start_nobody_waits_for_stops_by_itself() {
    let life = Arc::new(());
    let (seen, held) = (Arc::downgrade(&life), life);
    let mut builder = Some(move || {
        let held = Arc::clone(&held);
        let handler = move |_: Delivery<u32>| {
            // What the handler holds goes with its service.
            let _held = &held;
            async { Handled::Ok(()) }
        };
        Service::builder(config("", THRICE)).subscribe("orders", handler).signals(false)
    });
    loop {
        let mut start = Box::pin(builder.as_ref().expect("it is dropped below")().start());
        // Dropped on the way; on a busy machine it may be there before it is looked at.
        let Poll::Ready(started) = futures_util::poll!(&mut start) else { break };
        started.expect("it starts").stop().await;
    }
    builder.take();
    let gone = async {
        while seen.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it stops");
}

#[actix::test]
async fn it_runs_inside_an_actix_system() {
    a_hundred_are_handled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_inside_a_multi_thread_tokio_runtime() {
    tokio::spawn(a_hundred_are_handled()).await.expect("its future is Send");
}

#[actix::test]
async fn it_runs_beside_an_http_server_that_mounts_its_health_and_metrics() {
    use actix_web::{App, HttpResponse, HttpServer, web};
    async fn readyz(service: web::Data<Service>) -> HttpResponse {
        let health = service.health();
        if health.ready {
            HttpResponse::Ok().json(health)
        } else {
            HttpResponse::ServiceUnavailable().json(health)
        }
    }
    async fn metrics(service: web::Data<Service>) -> String {
        service.metrics().await
    }
    let builder = Service::builder(config("", THRICE)).subscribe("orders", ship).signals(false);
    let service = builder.start().await.expect("it starts");
    let data = web::Data::new(service.clone());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).expect("a port");
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    publish(&service, [1u32]).await;
    drained(&service).await;
    let ask = move |path: &str| {
        let url = format!("http://{address}{path}");
        async {
            let read =
                move || ureq::get(&url).call().map(|mut answer| answer.body_mut().read_to_string());
            let read = actix_web::rt::task::spawn_blocking(read).await.expect("the thread ends");
            read.expect("an answer").expect("text")
        }
    };
    let ready = ask("/readyz").await;
    assert!(ready.contains("\"ready\":true"), "{ready}");
    let text = ask("/metrics").await;
    assert!(text.contains("redeliver_handled_total{subscription=\"orders\"} 1\n"), "{text}");
    service.stop().await;
    handle.stop(true).await;
}
