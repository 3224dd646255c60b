//! Threads of a program that has no runtime, or has another one: they publish and look after the service all the same.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use redeliver::broker::Fault;
use redeliver::config::Config;
use redeliver::{Redrive, Service};

use crate::ground::{Ground, Kind, text, until};
use crate::seen::{Seen, obey};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// As little of a runtime as there can be: no timers, nothing to spawn on.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

pub(crate) async fn a_thread_that_knows_no_runtime_may_do_everything(kind: Kind) {
    let ground = Arc::new(Ground::new(kind).await);
    let seen = Seen::default();
    let toml = ground.toml("", "");
    let service = ground.start(&toml, obey(&seen)).await;
    let (there, at, config) = (service.clone(), Arc::clone(&ground), toml.clone());
    on_a_thread(move || {
        let publisher = there.publisher("main").expect("it is configured");
        block_on(publisher.send(at.address(text("0", "ok")))).expect("it is confirmed");
        publisher.send_blocking(at.address(text("1", "reject"))).expect("it is confirmed");
    })
    .await;
    until("one is handled and one dead", async || {
        seen.count() == 2 && service.depth("orders").await.is_ok_and(|depth| depth.dead == Some(1))
    })
    .await;
    let there = service.clone();
    on_a_thread(move || block_on(look_after(&there, &config))).await;
    on_a_thread(move || {
        assert_eq!(block_on(service.stop()).left, 0);
        let publisher = service.publisher("main").expect("it is configured");
        for late in [
            publisher.send_blocking(ground.address(text("2", "ok"))),
            block_on(publisher.send(ground.address(text("2", "ok")))),
        ] {
            assert_eq!(late.expect_err("the service has stopped").fault(), Fault::Closed);
        }
    })
    .await;
}

async fn look_after(service: &Service, toml: &str) {
    assert_eq!(service.depth("orders").await.expect("the broker tells").dead, Some(1));
    let counted = "redeliver_dead_letters{subscription=\"orders\"} 1";
    // A count that does not come within a second is left out, which a busy broker's may not.
    for tries in 0.. {
        if service.metrics().await.contains(counted) {
            break;
        }
        assert!(tries < 100, "the dead letter is not counted");
        thread::sleep(Duration::from_millis(100));
    }
    let config = Config::from_toml(toml).expect("it was read before");
    service.reload_with(&config).await.expect("nothing changed");
    service.pause("orders").await.expect("it can be paused");
    let letters = service.dead_letters("orders").expect("it is configured");
    let mut pages = letters.pages(10).await.expect("they can be read");
    let page = pages.next().await.expect("it can be read").expect("there is one");
    assert_eq!(page[0].id.as_deref(), Some("1"));
    pages.close().await.expect("it is given back");
    let slowly = Redrive { rate_max: Some(20), ..Redrive::default() };
    assert_eq!(letters.redrive(&slowly).await.expect("it is moved").moved, 1);
    service.resume("orders").await.expect("it goes on");
}

/// A thread of its own, on which a panic is this test's.
async fn on_a_thread(work: impl FnOnce() + Send + 'static) {
    let (done, over) = tokio::sync::oneshot::channel();
    let thread = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    let _ = over.await;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
