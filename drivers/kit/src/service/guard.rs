//! A call of the runtime's, which may panic: that must neither hang a caller nor the driver.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use tonic::Status;

/// Carries a call out; a panic in it, which says on the driver's log what it is, is INTERNAL.
pub(super) async fn guarded<T>(what: &str, call: impl Future<Output = T>) -> Result<T, Status> {
    let mut call = pin!(call);
    poll_fn(|cx| {
        // What a panic leaves behind is not looked at: the call is not polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(answer)) => Poll::Ready(Ok(answer)),
            Err(_) => {
                tracing::error!("the driver failed to {what}: this is a bug in it");
                let text = format!("the driver failed to {what}: this is a bug in it");
                Poll::Ready(Err(Status::internal(text)))
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let answer = guarded("count", async {
            yield_now().await;
            1
        });
        assert_eq!(answer.await.unwrap(), 1);
        let status = guarded("count", async {
            yield_now().await;
            panic!("by the test");
        });
        let status: Result<(), Status> = status.await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().contains("failed to count"), "{status}");
    }
}
