//! Numbers of the daemon itself in Prometheus' text form, by plain HTTP: `GET /metrics`.
//!
//! Off unless an address is set. Holds no secrets and takes no orders; the metrics of pods and containers are asked
//! for by CRI (`grpc/metrics.rs`).

use std::{convert::Infallible, fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use podhold_image::{Activity, Usage};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::runtime::Runtime;

/// Connections at once.
const CONNECTIONS: usize = 16;
/// How long one may last.
const TIME: Duration = Duration::from_secs(10);

/// Serves the numbers until the daemon ends.
pub(crate) async fn serve(listener: TcpListener, runtime: Arc<Runtime>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors left; the kernel tells no end of it.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let runtime = Arc::clone(&runtime);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &runtime);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            let http = http.timer(TokioTimer::new()).header_read_timeout(TIME).keep_alive(false);
            let _ended = timeout(TIME, http.serve_connection(TokioIo::new(stream), service)).await;
            drop(place);
        });
    }
}

/// Binds the address.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| format!("metrics.address {address}: {error}; set another or leave it empty"))
}

fn answer(request: &Request<Incoming>, runtime: &Runtime) -> Response<String> {
    let found = request.uri().path() == "/metrics";
    let images = runtime.images();
    let body = if found { text(&images.activity(), images.usage()) } else { "look at /metrics\n".to_owned() };
    let mut response = Response::new(body);
    *response.status_mut() = if found { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let form = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, form);
    response
}

fn text(activity: &Activity, usage: Usage) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
        let _ = writeln!(text, "# HELP podhold_{name} {help}\n# TYPE podhold_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "podhold_{name}{labels} {value}");
        }
    };
    let one = |value: u64| [(String::new(), value)];
    family("pulls", "gauge", "Pulls of images under way.", &one(activity.pulls));
    let mut ended = vec![
        ("{outcome=\"pulled\"}".to_owned(), activity.pulled),
        ("{outcome=\"cancelled\"}".to_owned(), activity.cancelled),
    ];
    ended.extend(activity.failed.iter().map(|(kind, count)| (format!("{{outcome=\"{kind:?}\"}}"), *count)));
    family("pulls_total", "counter", "Pulls that have ended, by outcome; failures by their class.", &ended);
    for (name, help, value) in [
        ("pull_fetched_bytes_total", "Bytes of layers that came from registries.", activity.fetched_bytes),
        (
            "pull_resumed_bytes_total",
            "Bytes of layers that an earlier pull had kept.",
            activity.resumed_bytes,
        ),
        ("pull_retries_total", "Requests to registries made again after trouble.", activity.retries),
        ("pull_layers_total", "Layers unpacked.", activity.layers),
        ("pull_layers_refetched_total", "Layers pieced together wrong and fetched anew.", activity.refetched),
    ] {
        family(name, "counter", help, &one(value));
    }
    family("image_bytes", "gauge", "Bytes that layers of images take on disk.", &one(usage.bytes));
    family("image_inodes", "gauge", "Inodes that layers of images take on disk.", &one(usage.inodes));
    text
}
