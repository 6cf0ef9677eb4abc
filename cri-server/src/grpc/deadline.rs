//! Deadlines of callers (gRPC over HTTP/2, "Timeout").
//!
//! tonic ends a call whose time is over with CANCELLED, which says that the caller gave it up; it was not so, and a
//! caller that is told before its own clock says so takes it for the reason.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
};

/// How much earlier than tonic a call is ended, whose clock counts in milliseconds.
const BEFORE: Duration = Duration::from_millis(2);

/// A service that ends calls with DEADLINE_EXCEEDED when their time is over.
#[derive(Debug, Clone)]
pub(super) struct InTime<S>(pub(super) S);

impl<S> Service<http::Request<Body>> for InTime<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let time = request.headers().get("grpc-timeout").and_then(|value| time(value.to_str().ok()?));
        let answer = self.0.call(request);
        let Some(time) = time else { return Box::pin(answer) };
        Box::pin(async move {
            match tokio::time::timeout(time.saturating_sub(BEFORE), answer).await {
                Ok(answered) => answered,
                Err(_) => {
                    let over = format!("the caller's time of {} s is over", time.as_secs_f32());
                    Ok(Status::deadline_exceeded(over).into_http())
                }
            }
        })
    }
}

/// At most eight digits and a unit.
fn time(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("00000250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("+1S", None),
            ("123456789S", None),
            ("1x", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(time(text), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_told_so_before_tonic_does() {
        let never = tonic::codegen::Service::call(
            &mut InTime(Slow),
            http::Request::builder().header("grpc-timeout", "20m").body(Body::empty()).unwrap(),
        );
        let answer = never.await.unwrap();
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), tonic::Code::DeadlineExceeded);
    }

    /// Answers never.
    struct Slow;

    impl Service<http::Request<Body>> for Slow {
        type Response = http::Response<Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }
}
