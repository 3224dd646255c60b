//! Processes that die: nothing is lost, little is repeated, and attempts are counted right.

use crate::lab::{
    Lab, PATIENCE, SHORT_WAITS, Seen, dead_letters, drained, properties, sample, until,
};
use crate::process::{Process, Role, Stage};

/// A window of 17: 16 that are handled, and one that is parked.
const WINDOW: &str = "in_flight_max = 16\nparked_max = 1\n";

async fn worked_off(lab: &Lab, stage: &Stage, distinct: usize) {
    until("everything is handled", || async {
        stage.handled().len() == distinct && lab.ready().await == 0
    })
    .await;
}

#[tokio::test]
async fn a_process_killed_among_1000_messages_loses_none_and_repeats_at_most_what_was_in_flight() {
    let lab = Lab::new().await;
    let role = Role { milliseconds: 3, ..Role::default() };
    let stage = Stage::new(lab.toml(WINDOW, ""), role);
    lab.prepare(&stage.config).await;
    lab.publish(0..1000).await;
    let first = stage.start(&lab).await;
    stage.wait_for_lines(300).await;
    first.kill();
    let before = stage.lines().len();
    assert!(before < 1000, "it was killed in the middle, not after {before}");
    let second = stage.start(&lab).await;
    worked_off(&lab, &stage, 1000).await;
    assert!(second.terminate().await.success());
    let repeated: u32 = stage.handled().values().map(|times| times - 1).sum();
    assert!(repeated <= 17, "{repeated} were handled twice");
    assert_eq!(lab.ready().await, 0, "what was handled is acknowledged");
}

#[tokio::test]
async fn kills_among_failing_messages_lose_none_and_dead_letter_none() {
    let lab = Lab::new().await;
    let kills = sample(4, 10);
    let total = kills * 250;
    let role = Role { milliseconds: 5, fails: 1, fails_every: 5, ..Role::default() };
    let stage = Stage::new(lab.toml(WINDOW, SHORT_WAITS), role);
    lab.prepare(&stage.config).await;
    lab.publish(0..total).await;
    for kill in 1..=kills {
        let child = stage.start(&lab).await;
        stage.wait_for_lines(kill as usize * 150).await;
        child.kill();
    }
    let last = stage.start(&lab).await;
    worked_off(&lab, &stage, total as usize).await;
    assert!(last.terminate().await.success());
    let repeated: u32 = stage.handled().values().map(|times| times - 1).sum();
    // Each kill repeats its window at most; a copy whose original was not acknowledged any more is repeated too.
    assert!(repeated <= 2 * 17 * kills, "{repeated} were handled twice");
    assert_eq!(lab.raw.count(&lab.dead()).await, 0);
    for line in stage.lines().iter().filter(|line| line.handled) {
        let least = if line.number % 5 == 0 { 2 } else { 1 };
        assert_eq!(line.attempt, least, "{line:?}");
    }
}

#[tokio::test]
async fn a_message_that_ends_the_process_is_dead_lettered_as_poison_and_its_neighbours_are_handled()
{
    const POISON: u32 = 25;
    let lab = Lab::new().await;
    let role = Role { milliseconds: 300, aborts_on: Some(POISON), ..Role::default() };
    let keys = "in_flight_max = 50\ncrashes_max = 3\n";
    let stage = Stage::new(lab.toml(keys, ""), role);
    lab.prepare(&stage.config).await;
    lab.publish(0..200).await;
    // Each start is one life of a service that its platform starts again.
    let mut lives = 0;
    let last = loop {
        lives += 1;
        assert!(lives < 15, "it never stops dying");
        let mut child: Process = stage.start_doomed(&lab).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let survived = loop {
            if !child.is_running() {
                break false;
            }
            if stage.handled().len() == 199 && lab.raw.count(&lab.dead()).await == 1 {
                break true;
            }
            assert!(tokio::time::Instant::now() < deadline, "it hangs in life {lives}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        if survived {
            break child;
        }
    };
    assert!(lives > 3, "a message is no suspect before crashes_max");
    assert!(last.terminate().await.success());
    let service =
        lab.start(&lab.toml(keys, ""), |_: redeliver::Delivery<u32>| async { Ok(()) }).await;
    drained(&service).await;
    let dead = dead_letters(&service).await;
    let described: Vec<_> = dead.iter().map(|letter| (letter.id.clone(), letter.reason)).collect();
    assert_eq!(described, [(Some(POISON.to_string()), Some(redeliver::Reason::Poison))]);
    service.stop().await;
}

/// Whatever is asked for at the same time, there is one lane of suspects: a second would hold one through a crash that
/// is none of its doing.
#[tokio::test]
async fn suspects_that_are_there_at_the_start_and_those_that_come_at_once_share_one_consumer() {
    let lab = Lab::new().await;
    let toml = lab.toml("crashes_max = 1\n", "");
    lab.prepare(&toml).await;
    let suspects = format!("{}.suspects", lab.queue);
    lab.raw.publish(&suspects, b"0", properties(0)).await;
    lab.publish(1..2).await;
    lab.give_back_one().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&toml, move |delivery: redeliver::Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    until("both are handled", || async { seen.count() == 2 }).await;
    drained(&service).await;
    assert_eq!(lab.consumers(&suspects).await, 1);
    service.stop().await;
    seen.assert_each_once(0..2);
}

#[tokio::test]
async fn a_suspect_that_another_process_leaves_behind_is_handled_by_one_that_has_long_started() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(
            &lab.toml("stall_after = \"1s\"\n", ""),
            move |delivery: redeliver::Delivery<u32>| {
                handler.note(&delivery);
                async { Ok(()) }
            },
        )
        .await;
    lab.publish(1..2).await;
    until("it has started", || async { seen.count() == 1 }).await;
    lab.raw.publish(&format!("{}.suspects", lab.queue), b"0", properties(0)).await;
    until("it is handled", || async { seen.count() == 2 }).await;
    service.stop().await;
    seen.assert_each_once(0..2);
}
