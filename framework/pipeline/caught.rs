//! Panics of the user's code, which end here.
//!
//! Owns where an unwinding stops: around a call, around each poll of a future, and around its drop. What a panic means
//! is decided elsewhere. One that got past would end the actor that happens to poll, and cost its message nothing, so
//! that it would end the next one too.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Runs `f`; a panic becomes its message.
pub(crate) fn caught<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).map_err(|panic| panic_message(panic.as_ref()))
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| String::from("a panic without a message"))
}

/// A future of the user's that is gone once it is done. A panic of it, also of its drop when it is done, is its answer;
/// one of its drop before that (its time was up) is nobody's.
pub(crate) struct Caught<F>(Option<F>);

impl<F> Caught<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Some(future))
    }

    /// Polls it by `poll`; pending for ever once it is done.
    pub(crate) fn poll_by<O>(
        &mut self,
        poll: impl FnOnce(&mut F) -> Poll<O>,
    ) -> Poll<Result<O, String>> {
        let place = &mut self.0;
        let polled = caught(|| {
            let polled = place.as_mut().map_or(Poll::Pending, poll);
            if polled.is_ready() {
                *place = None;
            }
            polled
        });
        polled.map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
    }
}

impl<O> Future for Caught<Pin<Box<dyn Future<Output = O>>>> {
    type Output = Result<O, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_by(|future| future.as_mut().poll(cx))
    }
}

impl<O> Caught<Pin<Box<dyn Future<Output = O>>>> {
    /// Polls it once for somebody who catches the panics of many, and drops it when it is done. Where it panics, it is
    /// dropped by the unwinding, and a second panic of that goes no further.
    #[inline]
    pub(crate) fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<O> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

/// What is held in it is pinned in boxes.
impl<F> Unpin for Caught<F> {}

impl<F> Drop for Caught<F> {
    #[inline]
    fn drop(&mut self) {
        if let Some(future) = self.0.take() {
            let _ = caught(|| drop(future));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fragile;

    impl Drop for Fragile {
        fn drop(&mut self) {
            panic!("it broke");
        }
    }

    /// Panics when it is polled, and again when it is dropped over that.
    struct Both;

    impl Future for Both {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            panic!("out of luck")
        }
    }

    impl Drop for Both {
        fn drop(&mut self) {
            panic!("it broke");
        }
    }

    fn poll<O>(future: impl Future<Output = O> + 'static) -> Poll<Result<O, String>> {
        let future: Pin<Box<dyn Future<Output = O>>> = Box::pin(future);
        let mut future = Caught::new(future);
        let polled = Pin::new(&mut future).poll(&mut Context::from_waker(std::task::Waker::noop()));
        drop(future);
        polled
    }

    #[test]
    fn a_panic_goes_no_further_whenever_it_comes() {
        assert_eq!(poll(async { 7 }), Poll::Ready(Ok(7)));
        let panics = async { panic!("out of luck") };
        assert_eq!(poll::<()>(panics), Poll::Ready(Err(String::from("out of luck"))));
        let breaks = async {
            let _fragile = Fragile;
        };
        assert_eq!(poll(breaks), Poll::Ready(Err(String::from("it broke"))));
        let hangs = async {
            let _fragile = Fragile;
            std::future::pending::<()>().await;
        };
        assert_eq!(poll(hangs), Poll::Pending);
        let caught = caught(|| {
            let both: Pin<Box<dyn Future<Output = ()>>> = Box::pin(Both);
            let mut both = Caught::new(both);
            both.poll_through(&mut Context::from_waker(std::task::Waker::noop()))
        });
        assert_eq!(caught, Err(String::from("out of luck")));
        let fragile = Fragile;
        let kept = std::future::poll_fn(move |_| {
            let _here = &fragile;
            Poll::Ready(7)
        });
        assert_eq!(poll(kept), Poll::Ready(Err(String::from("it broke"))));
    }
}
