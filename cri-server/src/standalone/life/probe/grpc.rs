//! A call of `grpc.health.v1.Health/Check` that answers SERVING.

use std::net::IpAddr;

use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::Failed;
use crate::error::chain;

/// What serves (`ServingStatus.SERVING`).
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn check(address: IpAddr, port: u16, service: &str) -> Result<(), Failed> {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| chain(&error))?;
    let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| chain(&error))?;
    let question = Request::new(Question { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<Question, Answer>::default();
    let answer = client.unary(question, path, codec).await;
    match answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!("{service:?} does not serve: its status is {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::Ipv4Addr};

    use futures::future::{Ready, ready};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{
        Response, Status,
        body::Body,
        codegen::http,
        server::{Grpc as ServerGrpc, NamedService, UnaryService},
        transport::Server,
    };

    use super::*;

    /// Serves `up`; `down` does not serve; nothing else is known.
    #[derive(Clone)]
    struct Health;

    impl UnaryService<Question> for Health {
        type Response = Answer;
        type Future = Ready<Result<Response<Answer>, Status>>;

        fn call(&mut self, request: Request<Question>) -> Self::Future {
            ready(match request.into_inner().service.as_str() {
                "up" => Ok(Response::new(Answer { status: SERVING })),
                "down" => Ok(Response::new(Answer { status: 2 })),
                other => Err(Status::not_found(format!("no {other}"))),
            })
        }
    }

    #[derive(Clone)]
    struct Service;

    impl NamedService for Service {
        const NAME: &'static str = "grpc.health.v1.Health";
    }

    impl tower::Service<http::Request<Body>> for Service {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = futures::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            Box::pin(async move {
                let mut server = ServerGrpc::new(ProstCodec::<Answer, Question>::default());
                Ok(server.unary(Health, request).await)
            })
        }
    }

    #[tokio::test]
    async fn only_what_serves_is_well() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Server::builder().add_service(Service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let ask = |service: &'static str| check(Ipv4Addr::LOCALHOST.into(), port, service);
        assert_eq!(ask("up").await, Ok(()));
        assert!(ask("down").await.unwrap_err().contains("status is 2"));
        assert!(ask("other").await.unwrap_err().contains("no other"));
    }
}
