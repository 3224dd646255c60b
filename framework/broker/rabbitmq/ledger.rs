//! Which deliveries of a channel the broker still waits for us to settle.
//!
//! Pure: knows numbers, no channel. It decides what may be acknowledged by `multiple`: a slower neighbour
//! must neither be acknowledged with the others nor hold them back.

use std::collections::VecDeque;

/// The delivery tags of one channel, which count up from 1 without gaps.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Every tag up to here is settled.
    settled_to: u64,
    /// The tags after that; true while the broker waits for it.
    open: VecDeque<bool>,
    /// How many are true.
    open_count: usize,
}

/// How to acknowledge a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Acks {
    /// Everything that is open up to and with this tag.
    pub(super) up_to: Option<u64>,
    /// Those behind a neighbour that is still open, one by one.
    pub(super) singles: Vec<u64>,
}

impl Ledger {
    /// Notes a delivery.
    pub(super) fn deliver(&mut self, tag: u64) {
        // Tags that were skipped belong to nobody here; they count as settled.
        while self.last() + 1 < tag {
            self.open.push_back(false);
        }
        if tag > self.last() {
            self.open.push_back(true);
            self.open_count += 1;
        }
    }

    /// Notes a settlement. False if there is nothing to settle: never delivered, or settled before.
    pub(super) fn settle(&mut self, tag: u64) -> bool {
        let Some(offset) = tag.checked_sub(self.settled_to + 1) else { return false };
        let was_open = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.open.get_mut(offset))
            .is_some_and(|open| std::mem::replace(open, false));
        self.open_count -= usize::from(was_open);
        was_open
    }

    /// Splits tags that were just settled by acknowledging into those one frame can name and the rest.
    ///
    /// Constant work for each tag, whatever the size of the window.
    pub(super) fn acks(&mut self, acked: &mut Vec<u64>) -> Acks {
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.settled_to += 1;
        }
        let mut acks = Acks::default();
        for tag in acked.drain(..) {
            if tag <= self.settled_to {
                // The greatest of ours, not `settled_to`: the broker refuses a tag that it does not wait for.
                acks.up_to = acks.up_to.max(Some(tag));
            } else {
                acks.singles.push(tag);
            }
        }
        acks
    }

    /// How many are delivered and not settled.
    pub(super) fn open_count(&self) -> usize {
        self.open_count
    }

    /// Whether anything was ever delivered.
    pub(super) fn has_delivered(&self) -> bool {
        self.last() > 0
    }

    fn last(&self) -> u64 {
        self.settled_to + self.open.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn delivered(count: u64) -> Ledger {
        let mut ledger = Ledger::default();
        (1..=count).for_each(|tag| ledger.deliver(tag));
        ledger
    }

    fn acks(ledger: &mut Ledger, tags: &[u64]) -> Acks {
        let mut settled = tags.iter().copied().filter(|tag| ledger.settle(*tag)).collect();
        ledger.acks(&mut settled)
    }

    #[test]
    fn a_prefix_takes_one_frame() {
        assert_eq!(acks(&mut delivered(9), &[3, 1, 2]), Acks { up_to: Some(3), singles: vec![] });
    }

    #[test]
    fn a_slow_first_message_holds_nobody_back() {
        let mut ledger = delivered(4);
        assert_eq!(acks(&mut ledger, &[2, 4]), Acks { up_to: None, singles: vec![2, 4] });
        assert_eq!(acks(&mut ledger, &[1]), Acks { up_to: Some(1), singles: vec![] });
        assert_eq!(acks(&mut ledger, &[3]), Acks { up_to: Some(3), singles: vec![] });
        assert_eq!(ledger.open_count(), 0);
    }

    #[test]
    fn what_was_settled_before_or_never_delivered_is_not_settled() {
        let mut ledger = delivered(2);
        assert!(ledger.settle(1) && !ledger.settle(1));
        assert!(!ledger.settle(0) && !ledger.settle(3) && !ledger.settle(u64::MAX));
    }

    proptest! {
        /// A model broker: a frame by `multiple` takes all that is open up to its tag, which must be open.
        #[test]
        fn the_broker_ends_up_with_exactly_what_was_acknowledged(
            count in 1_u64..80, batches in prop::collection::vec(prop::collection::vec(1_u64..90, 0..20), 0..20)
        ) {
            let mut ledger = delivered(count);
            let mut broker: BTreeSet<u64> = (1..=count).collect();
            let mut wanted = broker.clone();
            for batch in &batches {
                batch.iter().for_each(|tag| { wanted.remove(tag); });
                let acks = acks(&mut ledger, batch);
                for tag in &acks.singles {
                    prop_assert!(broker.remove(tag), "{} was not open", tag);
                }
                if let Some(tag) = acks.up_to {
                    prop_assert!(broker.contains(&tag), "{} was not open", tag);
                    broker = broker.split_off(&(tag + 1));
                }
                prop_assert_eq!(&broker, &wanted);
                prop_assert_eq!(ledger.open_count(), wanted.len());
            }
        }
    }
}
