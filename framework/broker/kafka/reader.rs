//! Batches of records, and the thread that reads them ahead.
//!
//! Owns the memory that records lie in, from librdkafka's queue until the last of a batch is gone. A record costs 2,600
//! instructions to fetch from the queue and to look at, and 500 to free. A lane that finds much to read has that done
//! beside the thread that handles: the reader fills the next batches while one is handled, and frees those that are
//! done with. To wake a thread costs more than to read ten records, so that it is woken once for several batches: when
//! none is left to take, and it frees what has come together by then. It reads nothing that no lane asked for, so that a
//! lane that rests knows that nothing is on its way; it notes no offset, and what is read ahead of a lane that ends is
//! read again.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use self_cell::self_cell;

use super::partition::Queue;

/// At most so many records are read at once.
pub(super) const BATCH_MAX: usize = 256;
/// A batch of at least so many bytes is long enough.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// So many batches are read ahead of a lane, when the last of them was taken. With more, or sooner, they would have left
/// the processor's memory by the time that they are handled.
const AHEAD_MAX: usize = 2;
/// So many that are done with wait for the thread to be awake.
const DONE_MAX: usize = 3;
/// Lanes that the thread has not heard yet; what finds no place is done by whoever would have it done.
const ORDERS_MAX: usize = 256;
/// A shorter batch is freed where it ends: to have it done by another thread would cost more.
const FREED_APART_MIN: usize = 64;

/// A record, looked at: what lies in librdkafka's memory has to come from one processor to another again.
pub(super) struct Record<'a> {
    message: BorrowedMessage<'a>,
    offset: i64,
    millis: Option<i64>,
    /// Asked for once: librdkafka allocates and clears a kilobyte to find out that there are none, each time.
    has_headers: bool,
}

impl<'a> Record<'a> {
    pub(super) fn of(message: BorrowedMessage<'a>) -> Self {
        let has_headers = message.headers().is_some();
        let millis = match message.timestamp() {
            Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => Some(millis),
            Timestamp::NotAvailable => None,
        };
        Self { offset: message.offset(), millis, has_headers, message }
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
    /// Where they are freed.
    ahead: Option<Arc<Ahead>>,
}

impl Batch {
    /// The one that `read` takes from the queue.
    pub(super) fn of_one<E>(
        queue: Arc<Queue>,
        read: impl for<'a> FnOnce(&'a Queue) -> Result<Record<'a>, E>,
    ) -> Result<Self, E> {
        let records = Lying::try_new(queue, |queue| Ok(vec![read(queue)?]))?;
        Ok(Self { records: Some(records), ahead: None })
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

    pub(super) fn offset(&self, index: usize) -> i64 {
        self.records()[index].offset
    }

    /// A record's timestamp in milliseconds since 1970.
    pub(super) fn millis(&self, index: usize) -> Option<i64> {
        self.records()[index].millis
    }

    pub(super) fn has_headers(&self, index: usize) -> bool {
        self.records()[index].has_headers
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let (Some(records), Some(ahead)) = (self.records.take(), &self.ahead) else { return };
        if records.borrow_dependent().len() >= FREED_APART_MIN {
            ahead.give_back(records);
        }
    }
}

/// What is in the queue, without waiting, up to `limit`; `None` if that is nothing.
fn read(queue: &Arc<Queue>, limit: usize, is_over: &AtomicBool) -> Option<Lying> {
    let records = Lying::try_new(Arc::clone(queue), |queue| {
        let records = read_until(queue, limit, is_over);
        if records.is_empty() { Err(()) } else { Ok(records) }
    });
    records.ok()
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
    /// Do what there is to do for this lane.
    Serve(Arc<Ahead>),
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

/// Serves one lane after another, a batch each, and sleeps when there is nothing to do for any.
fn obey(orders: &Receiver<Order>) {
    let mut lanes: VecDeque<Arc<Ahead>> = VecDeque::new();
    loop {
        let order = match lanes.is_empty() {
            true => orders.recv().map_err(TryRecvError::from),
            false => orders.try_recv(),
        };
        match order {
            Ok(Order::Serve(ahead)) => lanes.push_back(ahead),
            Ok(Order::End) | Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let served = lanes.pop_front().filter(|ahead| ahead.serve());
                lanes.extend(served);
            }
        }
    }
}

/// What is read ahead of one lane, and what it is done with.
pub(super) struct Ahead {
    queue: Arc<Queue>,
    /// Held while the queue is read.
    reading: Mutex<()>,
    is_over: AtomicBool,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    batches: VecDeque<Lying>,
    /// It is to be filled.
    is_wanted: bool,
    /// To be freed.
    done: Vec<Lying>,
    /// The reader knows that there is something to do.
    is_ordered: bool,
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

    fn batch(self: &Arc<Self>, records: Lying) -> Batch {
        Batch { records: Some(records), ahead: Some(Arc::clone(self)) }
    }

    /// Takes the next batch, and has more read when that was the last.
    pub(super) fn take(self: &Arc<Self>) -> Found {
        let mut shelf = lock(&self.shelf);
        match shelf.batches.pop_front() {
            Some(records) => {
                if shelf.batches.is_empty() {
                    self.want(&mut shelf);
                }
                Found::Batch(self.batch(records))
            }
            None if shelf.is_wanted => Found::Soon,
            None => Found::Nothing,
        }
    }

    /// What is in the queue, up to `limit`, read by the lane itself where it [`Found::Nothing`]; if that is all it
    /// wanted, there is more, and the reader goes on.
    pub(super) fn read(self: &Arc<Self>, limit: usize) -> Option<Batch> {
        let batch = self.batch(read(&self.queue, limit, &self.is_over)?);
        if batch.len() == limit {
            self.want(&mut lock(&self.shelf));
        }
        Some(batch)
    }

    /// Has batches read, as many as there is room for.
    fn want(self: &Arc<Self>, shelf: &mut Shelf) {
        shelf.is_wanted = self.order(shelf);
    }

    /// Whether the reader knows that there is something to do, or could be told.
    fn order(self: &Arc<Self>, shelf: &mut Shelf) -> bool {
        if !shelf.is_ordered
            && let Some(reader) = &self.queue.context.reader
        {
            shelf.is_ordered = reader.orders.try_send(Order::Serve(Arc::clone(self))).is_ok();
        }
        shelf.is_ordered
    }

    /// Has records freed by the reader, when it is awake anyway or they are many, or where nothing more is read that
    /// would wake it. By whoever is here if it has ended, or has too much to do.
    fn give_back(self: &Arc<Self>, records: Lying) {
        let mut shelf = lock(&self.shelf);
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        shelf.done.push(records);
        let waits = !shelf.batches.is_empty() && shelf.done.len() < DONE_MAX;
        if !waits && !self.order(&mut shelf) {
            let done = std::mem::take(&mut shelf.done);
            drop(shelf);
            drop(done);
        }
    }

    /// Whether the queue was found empty, and nothing was read that nobody took.
    pub(super) fn is_idle(&self) -> bool {
        let shelf = lock(&self.shelf);
        shelf.batches.is_empty() && !shelf.is_wanted
    }

    /// Frees what is done with and reads one batch, on the reader's thread; whether there is more to do.
    fn serve(&self) -> bool {
        let done = std::mem::take(&mut lock(&self.shelf).done);
        drop(done);
        let _reading = lock(&self.reading);
        let reads = lock(&self.shelf).is_wanted;
        let read = reads.then(|| read(&self.queue, BATCH_MAX, &self.is_over)).flatten();
        let mut shelf = lock(&self.shelf);
        let tells = reads && shelf.batches.is_empty();
        if reads {
            // Where the queue is empty, nobody is to look there but the lane.
            shelf.is_wanted = read.is_some() && shelf.batches.len() + 1 < AHEAD_MAX;
            shelf.batches.extend(read);
        }
        shelf.is_ordered = shelf.is_wanted || !shelf.done.is_empty();
        let has_more = shelf.is_ordered;
        drop(shelf);
        if tells {
            self.queue.tell();
        }
        has_more
    }

    /// Nothing is read any more when this returns; behind the last record that was read and nobody took.
    ///
    /// Waits for no more than one record.
    pub(super) fn end(&self) -> Option<i64> {
        self.is_over.store(true, Ordering::Relaxed);
        let _reading = lock(&self.reading);
        let mut shelf = lock(&self.shelf);
        shelf.is_wanted = false;
        let (batches, done) = (std::mem::take(&mut shelf.batches), std::mem::take(&mut shelf.done));
        drop(shelf);
        drop(done);
        let last = batches.back()?.borrow_dependent().last()?;
        Some(last.offset + 1)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
