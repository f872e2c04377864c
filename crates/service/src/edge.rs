//! Where HTTP becomes gRPC: bodies with a deadline unless they are streams, the caller's own
//! deadline, and errors that tonic words for itself.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use muster_domain::error::{Error, Kind};
use muster_listener::BodyError;
use prost::Message as _;
use tonic::{Status, body::Body};
use tower::Service;

use crate::response;

/// The outermost layer of the gRPC services.
#[derive(Debug, Clone)]
pub(crate) struct Edge<S> {
    inner: S,
    /// Paths of the rpcs to which clients send streams.
    streams: Arc<HashSet<String>>,
}

impl<S> Edge<S> {
    /// Around services whose contract this is.
    pub(crate) fn new(inner: S, descriptors: &[u8]) -> Self {
        Self {
            inner,
            streams: Arc::new(client_streams(descriptors)),
        }
    }
}

fn client_streams(descriptors: &[u8]) -> HashSet<String> {
    let set =
        prost_types::FileDescriptorSet::decode(descriptors).expect("the descriptor set is our own");
    let mut paths = HashSet::new();
    for file in &set.file {
        for service in &file.service {
            let streams = service.method.iter().filter(|m| m.client_streaming());
            paths.extend(
                streams.map(|method| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                }),
            );
        }
    }
    paths
}

impl<S> Service<Request<muster_listener::Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<muster_listener::Body>) -> Self::Future {
        let is_stream = self.streams.contains(request.uri().path());
        let request = request.map(|body| match is_stream {
            true => Body::new(body.without_deadline().map_err(broken)),
            false => Body::new(body.map_err(broken)),
        });
        let timeout = timeout(request.headers());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match timeout {
                None => answer.await?,
                Some(timeout) => match tokio::time::timeout(timeout, answer).await {
                    Ok(answer) => answer?,
                    Err(_) => {
                        let late = Status::deadline_exceeded("the deadline of the call is over");
                        return Ok(late.into_http());
                    }
                },
            };
            // tonic answers INTERNAL or OUT_OF_RANGE to a message it cannot read.
            let status = Status::from_header_map(answer.headers());
            Ok(match status.as_ref().and_then(response::malformed) {
                Some(error) => response::status(error).into_http(),
                None => answer,
            })
        })
    }
}

/// What the reader of a message is told of a body that did not come to its end.
fn broken(error: BodyError) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        BodyError::TooSlow => Box::new(response::status(Error::new(
            Kind::Aborted,
            "REQUEST_TOO_SLOW",
            "the message of the request did not arrive in time",
        ))),
        BodyError::Broken(error) => Box::new(error),
    }
}

/// How long the client waits; what cannot be read counts for nothing.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.len().checked_sub(1)?;
    let (number, unit) = text.split_at_checked(unit)?;
    if number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 60 * 60),
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
    fn deadlines_are_read_as_the_specification_says() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("90S"), Some(Duration::from_secs(90)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(359_999_996_400))
        );
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for nonsense in ["", "S", "123456789S", "-1S", "1.5S", "10", "1X"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn streams_are_those_of_the_contract() {
        let streams = client_streams(muster_proto::FILE_DESCRIPTOR_SET);
        assert!(streams.contains("/muster.ingest.v1.IngestService/IngestCohort"));
        assert!(streams.contains("/muster.users.v1.UserService/ImportUsers"));
        assert!(!streams.contains("/muster.segments.v1.SegmentService/ResolveSegment"));
    }
}
