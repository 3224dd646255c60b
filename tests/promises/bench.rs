//! What the tests share: one subscription `orders`, and a handler that does as it is told.

use std::time::Duration;

use redeliver::config::Config;
use redeliver::testing::TestService;
use redeliver::{Delivery, Failure, Handled, IntoHandlers, Message, Service};

/// Three attempts, 200 ms apart.
pub(crate) const THRICE: &str =
    "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"200ms\"\nattempts_max = 3\n";

/// Whatever fails, this breaker stays closed: most tests let everything fail.
const NEVER_OPENS: &str = "breaker = { attempts_min = 1000000 }";

/// A configuration with these lines in `[subscriptions.orders]` and in `[retry.standard]`.
pub(crate) fn config(subscription: &str, retry: &str) -> Config {
    let breaker = if subscription.contains("breaker") { "" } else { NEVER_OPENS };
    let text = format!(
        "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \
         \"orders\"\n{breaker}\n{subscription}\n[retry.standard]\n{retry}"
    );
    Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A service under test with these lines, and these handlers.
pub(crate) fn orders<M>(
    subscription: &str,
    retry: &str,
    handlers: impl IntoHandlers<M>,
) -> TestService {
    let builder = Service::builder(config(subscription, retry));
    TestService::start(builder.subscribe("orders", handlers)).expect("it starts")
}

/// A message with `text` as its JSON.
pub(crate) fn text(id: &str, text: &str) -> Message {
    Message::json(&text).expect("text is JSON").id(id)
}

/// Answers as the message says, once or each time.
pub(crate) async fn obey(delivery: Delivery<String>) -> Handled {
    let (word, when) = delivery.payload.split_once(' ').unwrap_or((&delivery.payload, "always"));
    if when == "once" && delivery.attempt() > 1 {
        return Ok(());
    }
    match word {
        "ok" => Ok(()),
        "retry" => Err(Failure::retry("not yet")),
        "later" => Err(Failure::retry_after(Duration::from_secs(5), "too many requests")),
        "defer" => Err(Failure::defer(Duration::from_secs(2), "somebody else has the lock")),
        "reject" => Err(Failure::reject("no such customer")),
        "invalid" => Err(Failure::retry("not a number").class("validation")),
        "panic" => panic!("the handler has a bug"),
        "hang" => std::future::pending().await,
        "slow" => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        }
        other => Err(Failure::reject(format!("cannot {other}"))),
    }
}

/// What becomes, to its end, of one message `7` that says `word`.
pub(crate) fn check(subscription: &str, retry: &str, word: &str, lines: &[&str]) {
    let mut test = orders(subscription, retry, obey);
    test.publish("orders", text("7", word));
    test.finish();
    assert_eq!(test.log(), lines, "{word}");
}
