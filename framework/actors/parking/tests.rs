//! Parking against a sorted list.

use proptest::prelude::*;

use super::*;
use crate::broker::{Received, SharedEnvelope, Token};
use crate::envelope::tests::Bare;

fn work(number: u32) -> Work {
    let received =
        Received { envelope: SharedEnvelope::new(Bare::default()), token: Token(number.into()) };
    Work::of(received, number)
}

proptest! {
    #[test]
    fn what_is_due_comes_out_by_time_and_then_by_age_and_nothing_else_does(
        dues in prop::collection::vec(0..50_u64, 0..60),
        looks in prop::collection::vec(0..60_u64, 0..20),
    ) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut parking = Parking::default();
        let mut model: Vec<(u64, u32)> = Vec::new();
        for (number, due) in dues.iter().enumerate() {
            parking.park(work(number as u32), at(*due), None);
            model.push((*due, number as u32));
        }
        model.sort();
        for look in looks {
            prop_assert_eq!(parking.next_due(), model.first().map(|(due, _)| at(*due)));
            while let Some((work, late)) = parking.take_due(at(look)) {
                let (due, number) = model.remove(0);
                prop_assert_eq!(at(due) + late, at(look));
                prop_assert!(due <= look, "{} is not due at {}", due, look);
                prop_assert_eq!(work.slot, number);
            }
            prop_assert!(model.first().is_none_or(|(due, _)| *due > look), "one was kept back");
            prop_assert_eq!(parking.len(), model.len());
        }
        let mut rest: Vec<_> = parking.drain().map(|(work, due)| (due, work.slot)).collect();
        rest.sort();
        let model: Vec<_> = model.into_iter().map(|(due, number)| (at(due), number)).collect();
        prop_assert_eq!(rest, model);
    }
}

#[test]
fn who_is_rung_for_comes_out_early_and_nobody_else_does() {
    let start = Instant::now();
    let mut parking = Parking::default();
    let numbers: Vec<Number> = (0..3)
        .map(|slot| {
            let number = parking.number_next();
            parking.park(work(slot), start + Duration::from_secs(60), None);
            number
        })
        .collect();
    assert_eq!(parking.take(numbers[1]).map(|work| work.slot), Some(1));
    assert!(parking.take(numbers[1]).is_none(), "it has gone");
    assert!(parking.take_due(start).is_none());
    assert_eq!(parking.len(), 2);
}
