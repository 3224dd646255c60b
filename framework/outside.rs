//! Tokio's context for whoever asks from a thread that has none.
//!
//! Owns a runtime that is made when it is first needed and stays until the process ends, so that a deadline works
//! also after the service has stopped. Runs nothing of the service's; where there is a context already, it is used.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Polls `future` in a context of Tokio's, whoever drives it.
pub(crate) async fn in_context<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _entered = Handle::try_current().is_err().then(|| runtime().enter());
        future.as_mut().poll(context)
    })
    .await
}

/// Waits for `future` on this thread.
///
/// # Panics
/// On a thread that drives futures: all the others of it would stand still.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("redeliver-outside").enable_all();
        runtime.build().expect("a thread can be started, as for every service")
    })
}
