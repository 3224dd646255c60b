//! What a panic said on a thread where nothing of ours can catch it.
//!
//! actix's `SyncArbiter` calls a blocking handler itself, so a panic there ends the thread and its
//! message would be lost. A hook in front of the process's own panic hook keeps it; threads that
//! nobody watches are not touched, and the other hook is always called.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::pipeline::panic_message;

/// The message of a thread's last panic.
#[derive(Clone, Default)]
pub(super) struct Note(Arc<Mutex<Option<String>>>);

thread_local! {
    static NOTE: RefCell<Option<Note>> = const { RefCell::new(None) };
}

impl Note {
    /// From now on keeps the message when the calling thread panics.
    pub(super) fn watch_this_thread(&self) {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                NOTE.with_borrow(|note| {
                    if let Some(note) = note {
                        note.write(panic_message(info.payload()));
                    }
                });
                next(info);
            }));
        });
        NOTE.with_borrow_mut(|note| *note = Some(self.clone()));
    }

    fn write(&self, message: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }

    /// The message, once.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
