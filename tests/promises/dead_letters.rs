//! Dead letters from code: listed, shown, redriven, purged.

use std::time::Duration;

use redeliver::testing::TestService;
use redeliver::{Error, Filter, Reason, Redrive, Redriven};

use crate::bench::{THRICE, obey, orders, text};

/// Ten that were rejected, ten that are exhausted, and one that is invalid.
fn filled() -> TestService {
    let retry = format!("{THRICE}rules = [{{ class = \"validation\", then = \"reject\" }}]\n");
    let mut test = orders("", &retry, obey);
    for id in 0..10 {
        test.publish("orders", text(&format!("reject-{id}"), "reject").kind("order"));
        test.publish("orders", text(&format!("retry-{id}"), "retry").kind("refund"));
    }
    test.publish("orders", text("invalid", "invalid"));
    test.finish();
    assert_eq!(test.dead_letters("orders").len(), 21);
    test.clear_log();
    test
}

fn redrive(test: &mut TestService, redrive: Redrive) -> Redriven {
    let letters = test.service().dead_letters("orders").expect("it is configured");
    test.run(async move { letters.redrive(&redrive).await }).expect("it is redriven")
}

fn purge(test: &mut TestService, filter: Filter) -> usize {
    let letters = test.service().dead_letters("orders").expect("it is configured");
    test.run(async move { letters.purge(&filter).await }).expect("it is purged")
}

fn of_reason(reason: Reason) -> Filter {
    Filter { reason: Some(reason), ..Filter::default() }
}

#[test]
fn listing_shows_everything_and_consumes_nothing() {
    let mut test = filled();
    let letters = test.service().dead_letters("orders").expect("it is configured");
    let sizes = test.run(async move {
        let mut pages = letters.pages(8).await.expect("they can be read");
        let mut sizes = Vec::new();
        while let Some(page) = pages.next().await.expect("they can be read") {
            sizes.push(page.len());
        }
        sizes
    });
    assert_eq!(sizes, [8, 8, 5]);
    let all = test.dead_letters("orders");
    assert_eq!(all.len(), 21, "they are still there");
    let invalid = all.iter().find(|letter| letter.id.as_deref() == Some("invalid"));
    let invalid = invalid.expect("it is listed");
    assert_eq!(invalid.error_class.as_deref(), Some("validation"));
    assert_eq!(invalid.error.as_deref(), Some("not a number"));
    assert_eq!((invalid.reason, invalid.attempts), (Some(Reason::Rejected), 1));
}

#[test]
fn one_is_shown_by_its_id() {
    let mut test = filled();
    let letters = test.service().dead_letters("orders").expect("it is configured");
    let (one, none) = test.run(async move {
        (letters.show("retry-3").await.expect("read"), letters.show("nobody").await.expect("read"))
    });
    let one = one.expect("it is there");
    assert_eq!(
        (one.attempts, one.reason, &one.body[..]),
        (3, Some(Reason::Exhausted), &b"\"retry\""[..])
    );
    assert!(none.is_none());
}

#[test]
fn a_redrive_begins_anew_under_the_same_id_and_what_fails_again_is_there_again_once() {
    let mut test = filled();
    let filter = of_reason(Reason::Exhausted);
    let done = redrive(&mut test, Redrive { filter, ..Redrive::default() });
    assert_eq!(done, Redriven { matched: 10, moved: 10 });
    test.finish();
    let all = test.dead_letters("orders");
    assert_eq!(all.len(), 21);
    let again: Vec<_> =
        all.iter().filter(|letter| letter.reason == Some(Reason::Exhausted)).collect();
    assert_eq!(again.len(), 10);
    assert!(again.iter().all(|letter| letter.generation == 1 && letter.attempts == 3), "{again:?}");
    let mut ids: Vec<_> = again.iter().map(|letter| letter.id.clone()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 10);
    let attempts = test.records().iter().filter(|record| record.attempt == 1).count();
    assert_eq!(attempts, 10, "attempts begin anew");
}

#[test]
fn a_dry_run_only_counts() {
    let mut test = filled();
    let done = redrive(&mut test, Redrive { dry_run: true, ..Redrive::default() });
    assert_eq!(done, Redriven { matched: 21, moved: 0 });
    assert_eq!(test.dead_letters("orders").len(), 21);
    assert!(test.log().is_empty());
}

#[test]
fn filters_go_by_id_reason_class_type_and_age() {
    let mut test = filled();
    test.advance(Duration::from_secs(60));
    test.publish("orders", text("young", "reject"));
    let mut count = |filter: Filter| {
        redrive(&mut test, Redrive { filter, dry_run: true, ..Redrive::default() }).matched
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(count(Filter::default()), 22);
    assert_eq!(count(Filter { id: text("retry-3"), ..Filter::default() }), 1);
    assert_eq!(count(of_reason(Reason::Rejected)), 12);
    assert_eq!(count(of_reason(Reason::Poison)), 0);
    assert_eq!(count(Filter { error_class: text("validation"), ..Filter::default() }), 1);
    assert_eq!(count(Filter { kind: text("refund"), ..Filter::default() }), 10);
    let old = Filter { older_than: Some(Duration::from_secs(30)), ..Filter::default() };
    assert_eq!(count(old.clone()), 21);
    assert_eq!(count(Filter { kind: text("order"), ..old }), 10);
}

#[test]
fn a_redrive_can_be_bounded_and_goes_on_where_it_stopped() {
    let mut test = filled();
    let filter = of_reason(Reason::Exhausted);
    let some = Redrive { filter, count_max: 4, ..Redrive::default() };
    assert_eq!(redrive(&mut test, some.clone()).moved, 4);
    let rest = Redrive { count_max: usize::MAX, ..some };
    // The first four failed again within the same moment or wait still: none is lost either way.
    test.finish();
    assert_eq!(redrive(&mut test, rest).moved, 10);
    test.finish();
    assert_eq!(test.dead_letters("orders").len(), 21);
}

#[test]
fn a_redrive_keeps_to_its_rate() {
    let mut test = filled();
    let before = test.elapsed();
    redrive(&mut test, Redrive { rate_max: Some(2), ..Redrive::default() });
    let took = test.elapsed() - before;
    assert!(took >= Duration::from_secs(10), "21 messages at 2 a second took {took:?}");
}

#[test]
fn what_would_never_list_or_move_anything_is_refused() {
    let mut test = filled();
    let letters = test.service().dead_letters("orders").expect("it is configured");
    let never = Redrive { rate_max: Some(0), ..Redrive::default() };
    let (listed, redriven) =
        test.run(async move { (letters.pages(0).await.map(drop), letters.redrive(&never).await) });
    for (refused, said) in [(listed, "pages(0)"), (redriven.map(drop), "rate_max = Some(0)")] {
        let Err(Error::Invalid(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("`orders`") && why.contains(said), "{why}");
    }
    assert_eq!(test.dead_letters("orders").len(), 21, "nothing was touched");
}

#[test]
fn a_purge_removes_what_its_filter_means_and_nothing_else() {
    let mut test = filled();
    assert_eq!(purge(&mut test, of_reason(Reason::Exhausted)), 10);
    assert_eq!(test.dead_letters("orders").len(), 11);
    assert_eq!(purge(&mut test, Filter::default()), 11);
    assert!(test.dead_letters("orders").is_empty());
}

#[test]
fn what_an_open_page_hides_is_waited_for_and_never_taken_for_nothing() {
    let mut test = filled();
    let service = test.service();
    test.run(async move {
        let dead = service.dead_letters("orders").expect("it has this subscription");
        let mut pages = dead.pages(5).await.expect("they can be read");
        pages.next().await.expect("it can be read").expect("there is a page");
        let all = Redrive { dry_run: true, ..Redrive::default() };
        let error = dead.redrive(&all).await.expect_err("a page is open").to_string();
        assert!(error.contains("open in another reader"), "{error}");
        assert!(dead.purge(&Filter::default()).await.is_err());
        assert!(dead.show("retry-3").await.is_err());
        let (waited, closed) = futures_util::join!(dead.redrive(&all), pages.close());
        closed.expect("it is given back");
        assert_eq!(waited.expect("it was closed in time").matched, 21);
    });
}
