//! Batches of records, and the thread that reads them ahead.
//!
//! Owns the memory that records lie in, from librdkafka's queue until the last of a batch is gone. A record costs 2,600
//! instructions to fetch from the queue and to look at, and 500 to free. A lane that finds much to read has that done
//! beside the thread that handles: the reader fills the next batches while one is handled, and takes back those that are
//! done with. It reads nothing that no lane asked for, so that a lane that rests knows that nothing is on its way; it
//! notes no offset, and what is read ahead of a lane that ends is read again.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message};
use self_cell::self_cell;

use super::partition::Queue;

/// At most so many records are read at once.
pub(super) const BATCH_MAX: usize = 256;
/// A batch of at least so many bytes is long enough.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// So many batches are read ahead of a lane.
const AHEAD_MAX: usize = 2;
/// Orders that the thread has not seen yet; what finds no place is done by whoever would have it done.
const ORDERS_MAX: usize = 256;
/// A shorter batch is freed where it ends: to wake the reader for it would cost more.
const TAKEN_BACK_MIN: usize = 64;

/// A record, looked at.
pub(super) struct Record<'a> {
    message: BorrowedMessage<'a>,
    /// Asked for once: librdkafka allocates and clears a kilobyte to find out that there are none, each time.
    has_headers: bool,
}

impl<'a> Record<'a> {
    pub(super) fn of(message: BorrowedMessage<'a>) -> Self {
        let has_headers = message.headers().is_some();
        Self { message, has_headers }
    }
}

type Records<'a> = Vec<Record<'a>>;

self_cell! {
    /// Records with the queue whose memory they lie in.
    struct Lying {
        owner: Arc<Queue>,
        #[covariant]
        dependent: Records,
    }
}

/// Records that were read together; at least one.
pub(super) struct Batch {
    /// There until it is dropped.
    records: Option<Lying>,
}

impl Batch {
    /// The one that `read` takes from the queue.
    pub(super) fn of_one<E>(
        queue: Arc<Queue>,
        read: impl for<'a> FnOnce(&'a Queue) -> Result<Record<'a>, E>,
    ) -> Result<Self, E> {
        let records = Lying::try_new(queue, |queue| Ok(vec![read(queue)?]))?;
        Ok(Self { records: Some(records) })
    }

    /// What is in the queue, without waiting, up to `limit`; `None` if that is nothing.
    pub(super) fn read(queue: &Arc<Queue>, limit: usize) -> Option<Self> {
        Self::read_until(queue, limit, &AtomicBool::new(false))
    }

    fn read_until(queue: &Arc<Queue>, limit: usize, is_over: &AtomicBool) -> Option<Self> {
        let records = Lying::try_new(Arc::clone(queue), |queue| {
            let records = read_until(queue, limit, is_over);
            if records.is_empty() { Err(()) } else { Ok(records) }
        });
        Some(Self { records: Some(records.ok()?) })
    }

    fn records(&self) -> &[Record<'_>] {
        self.records.as_ref().map_or(&[], |records| records.borrow_dependent())
    }

    pub(super) fn len(&self) -> usize {
        self.records().len()
    }

    pub(super) fn record(&self, index: usize) -> &BorrowedMessage<'_> {
        &self.records()[index].message
    }

    pub(super) fn has_headers(&self, index: usize) -> bool {
        self.records()[index].has_headers
    }

    /// Behind the last of its records.
    fn end(&self) -> Option<i64> {
        self.records().last().map(|record| record.message.offset() + 1)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let Some(records) = self.records.take() else { return };
        if records.borrow_dependent().len() < TAKEN_BACK_MIN {
            return;
        }
        let context = Arc::clone(&records.borrow_owner().context);
        if let Some(reader) = &context.reader {
            // Comes back, and is dropped here, when the thread has too much to do, or has ended.
            let _ = reader.orders.try_send(Order::TakeBack(records));
        }
    }
}

fn read_until<'a>(queue: &'a Queue, limit: usize, is_over: &AtomicBool) -> Records<'a> {
    let mut records = Vec::new();
    let mut bytes = 0;
    while records.len() < limit && bytes < BATCH_BYTES_MAX && !is_over.load(Ordering::Relaxed) {
        match queue.records().poll(Duration::ZERO) {
            Some(Ok(record)) => {
                bytes += record.payload_len() + record.key_len();
                records.push(Record::of(record));
            }
            Some(Err(error)) => queue.context.note_error(&error),
            None => break,
        }
    }
    records
}

/// The thread of one consumer that reads ahead of its lanes.
pub(super) struct Reader {
    orders: SyncSender<Order>,
}

enum Order {
    /// Read a batch ahead of this lane.
    Read(Arc<Ahead>),
    /// The last of these is done with.
    TakeBack(Lying),
    End,
}

impl Reader {
    pub(super) fn start(group: &str) -> io::Result<Self> {
        let (orders, received) = sync_channel(ORDERS_MAX);
        let name = format!("ahead-{group}");
        thread::Builder::new().name(name).spawn(move || obey(&received))?;
        Ok(Self { orders })
    }

    /// Ends the thread, whoever still holds what it read.
    pub(super) fn end(&self) {
        // Waits for a place, if it must: the thread itself waits for nothing.
        let _ = self.orders.send(Order::End);
    }
}

fn obey(orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Read(ahead) => ahead.fill(),
            Order::TakeBack(records) => drop(records),
            Order::End => return,
        }
    }
}

/// What is read ahead of one lane.
pub(super) struct Ahead {
    queue: Arc<Queue>,
    /// Held while the queue is read.
    reading: Mutex<()>,
    is_over: AtomicBool,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    batches: VecDeque<Batch>,
    /// How many more the reader was asked for.
    wanted: usize,
}

/// What a lane finds when it looks for more.
pub(super) enum Found {
    Batch(Batch),
    /// The reader is about to look.
    Soon,
    /// The reader found the queue empty, or was never asked: the lane may look for itself.
    Nothing,
}

impl Ahead {
    pub(super) fn of(queue: &Arc<Queue>) -> Arc<Self> {
        Arc::new(Self {
            queue: Arc::clone(queue),
            reading: Mutex::default(),
            is_over: AtomicBool::new(false),
            shelf: Mutex::default(),
        })
    }

    /// Takes the next batch, and has another one read.
    pub(super) fn take(self: &Arc<Self>) -> Found {
        let mut shelf = lock(&self.shelf);
        match shelf.batches.pop_front() {
            Some(batch) => {
                drop(shelf);
                self.ask();
                Found::Batch(batch)
            }
            None if shelf.wanted > 0 => Found::Soon,
            None => Found::Nothing,
        }
    }

    /// Has batches read, as many as there is room for.
    pub(super) fn ask(self: &Arc<Self>) {
        let Some(reader) = &self.queue.context.reader else { return };
        let mut shelf = lock(&self.shelf);
        while shelf.batches.len() + shelf.wanted < AHEAD_MAX
            && reader.orders.try_send(Order::Read(Arc::clone(self))).is_ok()
        {
            shelf.wanted += 1;
        }
    }

    /// Whether the queue was found empty, and nothing was read that nobody took.
    pub(super) fn is_idle(&self) -> bool {
        let shelf = lock(&self.shelf);
        shelf.batches.is_empty() && shelf.wanted == 0
    }

    /// Reads a batch, on the reader's thread.
    fn fill(&self) {
        let _reading = lock(&self.reading);
        if self.is_over.load(Ordering::Relaxed) || lock(&self.shelf).wanted == 0 {
            return;
        }
        let batch = Batch::read_until(&self.queue, BATCH_MAX, &self.is_over);
        let mut shelf = lock(&self.shelf);
        let was_empty = shelf.batches.is_empty();
        // Where the queue is empty, nobody is to look there but the lane.
        shelf.wanted = if batch.is_some() { shelf.wanted - 1 } else { 0 };
        shelf.batches.extend(batch);
        drop(shelf);
        if was_empty {
            self.queue.tell();
        }
    }

    /// Nothing is read any more when this returns; behind the last record that was read and nobody took.
    ///
    /// Waits for no more than one record.
    pub(super) fn end(&self) -> Option<i64> {
        self.is_over.store(true, Ordering::Relaxed);
        let _reading = lock(&self.reading);
        let mut shelf = lock(&self.shelf);
        shelf.wanted = 0;
        std::mem::take(&mut shelf.batches).back().and_then(Batch::end)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
