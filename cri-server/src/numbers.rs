//! Numbers of the daemon itself in Prometheus' text form, by plain HTTP: `GET /metrics`.
//!
//! Off unless an address is set. Holds no secrets and takes no orders; the metrics of pods and containers are asked
//! for by CRI (`grpc/metrics.rs`).
//!
//! Invariant: connections are few and short, and whoever asks gets in: for a new one the oldest that has not asked
//! yet is closed.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use podhold_image::{Activity, Usage};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use crate::runtime::Runtime;

/// Connections at once.
const CONNECTIONS: usize = 16;
/// How long one may last.
const TIME: Duration = Duration::from_secs(10);

/// Serves the numbers until the daemon ends.
pub(crate) async fn serve(listener: TcpListener, runtime: Arc<Runtime>) {
    answer_all(listener, Arc::new(move |request: &Request<Incoming>| answer(request, &runtime))).await;
}

/// What a request is answered with.
type Answer = dyn Fn(&Request<Incoming>) -> Response<String> + Send + Sync;

async fn answer_all(listener: TcpListener, answer: Arc<Answer>) {
    let mut open: VecDeque<Connection> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors left; the kernel tells no end of it.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= CONNECTIONS {
            let silent = open.iter().position(|connection| !connection.has_asked.load(Ordering::Relaxed));
            if let Some(oldest) = open.remove(silent.unwrap_or(0)) {
                oldest.task.abort();
            }
        }
        open.push_back(Connection::serve(stream, Arc::clone(&answer)));
    }
}

struct Connection {
    task: AbortHandle,
    /// Whether its request has come.
    has_asked: Arc<AtomicBool>,
}

impl Connection {
    fn serve(stream: TcpStream, answer: Arc<Answer>) -> Self {
        let has_asked = Arc::new(AtomicBool::new(false));
        let asks = Arc::clone(&has_asked);
        let serving = tokio::spawn(async move {
            let service = service_fn(|request| {
                asks.store(true, Ordering::Relaxed);
                let answer = answer(&request);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            let http = http.timer(TokioTimer::new()).header_read_timeout(TIME).keep_alive(false);
            let _ended = timeout(TIME, http.serve_connection(TokioIo::new(stream), service)).await;
        });
        Self { task: serving.abort_handle(), has_asked }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn silent_connections_keep_no_scraper_out() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(answer_all(
            listener,
            Arc::new(|_: &Request<Incoming>| Response::new("numbers".to_owned())),
        ));
        // If each kept its place for as long as it may, the scraper's turn would come after a minute.
        let mut silent = Vec::new();
        for _ in 0..6 * CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let scrape = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let text = timeout(5 * TIME / 2, scrape).await.expect("the scraper is answered");
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("numbers"), "{text}");
    }
}
