//! The four kinds of answers that an actix handler can give: each works, fails, panics, hangs.

use actix::prelude::*;
use redeliver::{Delivery, Handled};

use crate::bench::{THRICE, obey, orders, text};

struct Plain;
struct Owned;
struct WithActor(u32);
struct Atomic(u32);

macro_rules! actors {
    ($($actor:ty),*) => { $(impl Actor for $actor { type Context = Context<Self>; })* };
}
actors!(Plain, Owned, WithActor, Atomic);

impl Handler<Delivery<String>> for Plain {
    type Result = Handled;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut Context<Self>) -> Handled {
        futures_util::FutureExt::now_or_never(obey(delivery)).expect("it answers at once")
    }
}

impl Handler<Delivery<String>> for Owned {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut Context<Self>) -> Self::Result {
        if delivery.payload.starts_with("stack") {
            panic!("on the stack");
        }
        Box::pin(obey(delivery))
    }
}

impl Handler<Delivery<String>> for WithActor {
    type Result = ResponseActFuture<Self, Handled>;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(obey(delivery).into_actor(self).map(|handled, actor, _| {
            actor.0 += 1;
            handled
        }))
    }
}

impl Handler<Delivery<String>> for Atomic {
    type Result = AtomicResponse<Self, Handled>;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(obey(delivery).into_actor(self).map(|handled, actor, _| {
            actor.0 += 1;
            handled
        })))
    }
}

const ALL: [&str; 4] = ["plain", "owned", "with the actor", "atomic"];

/// What becomes of one message, in a handler of this kind, while two others are there.
fn check(kind: &str, word: &str, lines: &[&str]) {
    let timeout = "timeout = \"3s\"";
    let mut test = match kind {
        "plain" => orders(timeout, THRICE, || Plain),
        "owned" => orders(timeout, THRICE, || Owned),
        "with the actor" => orders(timeout, THRICE, || WithActor(0)),
        _ => orders(timeout, THRICE, || Atomic(0)),
    };
    test.publish("orders", text("before", "ok"));
    test.publish("orders", text("7", word));
    test.publish("orders", text("after", "ok"));
    test.finish();
    let (ours, others): (Vec<_>, Vec<_>) =
        test.log().into_iter().partition(|line| line.starts_with("7: attempt"));
    assert_eq!(ours, lines, "{kind}: {word}");
    assert_eq!(others, ["before: attempt 1 handled", "after: attempt 1 handled"], "{kind}: {word}");
}

#[test]
fn every_kind_of_answer_can_say_that_it_worked() {
    for kind in ALL {
        check(kind, "ok", &["7: attempt 1 handled"]);
    }
}

#[test]
fn every_kind_of_answer_can_fail() {
    for kind in ALL {
        check(
            kind,
            "retry once",
            &["7: attempt 1 retry after 200ms: not yet", "7: attempt 2 handled"],
        );
    }
}

#[test]
fn a_panic_costs_one_attempt_in_every_kind_of_answer() {
    for kind in ALL {
        check(
            kind,
            "panic once",
            &[
                "7: attempt 1 retry after 200ms: panicked: the handler has a bug",
                "7: attempt 2 handled",
            ],
        );
    }
}

#[test]
fn a_panic_on_the_stack_costs_one_attempt() {
    check(
        "owned",
        "stack",
        &[
            "7: attempt 1 retry after 200ms: panicked: on the stack",
            "7: attempt 2 retry after 200ms: panicked: on the stack",
            "7: attempt 3 dead-lettered: exhausted: panicked: on the stack",
        ],
    );
}

#[test]
fn what_hangs_is_aborted_in_every_kind_of_answer_that_can_hang() {
    for kind in &ALL[1..] {
        check(
            kind,
            "hang once",
            &["7: attempt 1 retry after 200ms: took longer than 3s", "7: attempt 2 handled"],
        );
    }
}
