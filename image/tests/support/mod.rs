//! What the tests of this crate share: images made on the spot, and a registry that can misbehave.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part of it"
)]

pub mod debian;
pub mod scripted;

use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use podhold_image::{Config, Digest, Images};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A store in a directory that goes when the value does.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub images: Images,
}

impl Site {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            dir: dir.path().join("images"),
            hosts_dirs: vec![dir.path().join("certs.d")],
            stall_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        adjust(&mut config);
        Self { images: Images::open(config).await.unwrap(), dir }
    }

    /// Names beneath the store of what is complete and what is half-made.
    pub fn count(&self, what: &str) -> usize {
        std::fs::read_dir(self.dir.path().join("images").join(what)).unwrap().count()
    }
}

/// Whether this process may mount and make devices; says so when not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: unpacking sets owners and snapshots are mounts: this needs root");
    }
    root
}

/// A tar archive in the making.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// An entry with everything at hand; the name is written as it is, however hostile.
    pub fn entry(
        mut self,
        kind: tar::EntryType,
        (name, link): (&str, &str),
        mode: u32,
        content: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, (name, ""), 0o644, content)
    }

    /// A GNU sparse file: a hole of `hole` bytes and three bytes after it.
    pub fn sparse(mut self, name: &str, hole: u64) -> Self {
        // GNU's binary form of a number, which reaches further than octal digits.
        let number = |value: u64| {
            let mut field = [0; 12];
            field[0] = 0x80;
            field[4..].copy_from_slice(&value.to_be_bytes());
            field
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_size(3);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.sparse[0].offset = number(hole);
        gnu.sparse[0].numbytes = number(3);
        gnu.realsize = number(hole + 3);
        header.set_cksum();
        self.0.append(&header, &b"end"[..]).unwrap();
        self
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, (name, ""), mode, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, (name, target), 0o777, b"")
    }

    pub fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

/// An image: its blobs and its manifest.
#[derive(Clone)]
pub struct TestImage {
    pub blobs: HashMap<String, Vec<u8>>,
    pub layers: Vec<String>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl TestImage {
    /// An image of gzip layers; `name` makes its configuration its own.
    pub fn new(name: &str, layers: &[Vec<u8>]) -> Self {
        let blobs: Vec<_> = layers.iter().map(|tar| (GZIP, Digest::of(tar), gzip(tar))).collect();
        Self::of_blobs(name, &blobs)
    }

    /// An image of layers given as media type, diff id and blob.
    pub fn of_blobs(name: &str, layers: &[(&str, Digest, Vec<u8>)]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id, _)| diff_id.to_string()).collect();
        let arch = oci_spec::image::Arch::default().to_string();
        let config = json!({
            "architecture": arch, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let mut blobs = HashMap::new();
        let mut descriptors = Vec::new();
        for (media_type, _, blob) in layers {
            let digest = Digest::of(blob).to_string();
            descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": blob.len()}));
            blobs.insert(digest, blob.clone());
        }
        let layers = descriptors.iter().map(|d| d["digest"].as_str().unwrap().to_owned()).collect();
        let config_digest = Digest::of(&config).to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
            "layers": descriptors,
        });
        blobs.insert(config_digest, config.clone());
        Self { blobs, layers, config, manifest: serde_json::to_vec(&manifest).unwrap() }
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub fn digest(&self) -> String {
        Digest::of(&self.manifest).to_string()
    }
}

/// How a request goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status and body.
    Answer(u16, &'static [u8]),
    /// The right headers, this many bytes of the body, and the connection closes.
    CutAfter(usize),
    /// This body instead of the right one, with its own length.
    Body(Vec<u8>),
    /// The beginning of this body, as if it were the right one, and the connection closes.
    OtherCutAfter(Vec<u8>, usize),
    /// This status, with a wish for rest.
    Rest(u16, String),
    /// The whole, whatever range is asked for.
    Whole,
    /// The rest that is asked for, under another range.
    WrongRange(&'static str),
    /// The right headers, this many bytes of the body, and then nothing.
    StallAfter(usize),
    /// Headers, and then nothing.
    Silence,
    /// One byte now and then.
    Trickle,
    /// Somewhere else.
    Redirect(String),
}

#[derive(Default)]
struct Shelf {
    content: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, VecDeque<Fault>>,
    requests: Vec<Request>,
    guard: Option<Guard>,
}

/// Who is let in.
#[derive(Clone)]
enum Guard {
    Basic(String),
    Bearer { realm: String },
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

/// A registry on loopback.
#[derive(Clone)]
pub struct TestRegistry {
    pub address: String,
    shelf: Arc<Mutex<Shelf>>,
}

impl TestRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Self { address, shelf: Arc::default() };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = serving.clone();
                tokio::spawn(async move {
                    let _ = registry.serve(stream).await;
                });
            }
        });
        registry
    }

    /// The full name of an image here.
    pub fn name(&self, rest: &str) -> podhold_image::Reference {
        podhold_image::Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }

    pub fn put(&self, path: &str, media_type: &str, body: &[u8]) {
        let mut shelf = self.shelf.lock().unwrap();
        shelf.content.insert(path.to_owned(), (media_type.to_owned(), body.to_vec()));
    }

    pub fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        for (digest, blob) in &image.blobs {
            self.put(&format!("/v2/{repository}/blobs/{digest}"), "application/octet-stream", blob);
        }
        self.put(&format!("/v2/{repository}/manifests/{tag}"), MANIFEST, &image.manifest);
        self.put(&format!("/v2/{repository}/manifests/{}", image.digest()), MANIFEST, &image.manifest);
    }

    /// The next requests for `path` go wrong, one fault each.
    pub fn fail(&self, path: &str, faults: &[Fault]) {
        self.shelf.lock().unwrap().faults.insert(path.to_owned(), faults.iter().cloned().collect());
    }

    pub fn require_basic(&self, username: &str, password: &str) {
        let request =
            reqwest::Client::new().get("http://x/").basic_auth(username, Some(password)).build().unwrap();
        let value = request.headers()["authorization"].to_str().unwrap().to_owned();
        self.shelf.lock().unwrap().guard = Some(Guard::Basic(value));
    }

    /// Tokens from `http://ADDRESS/token`: `token-for-AUTHORIZATION` without its blanks.
    pub fn require_bearer(&self) {
        let realm = format!("http://{}/token", self.address);
        self.shelf.lock().unwrap().guard = Some(Guard::Bearer { realm });
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shelf.lock().unwrap().requests.clone()
    }

    pub fn count(&self, path_part: &str) -> usize {
        self.requests().iter().filter(|request| request.path.contains(path_part)).count()
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(&mut stream).await? else { return Ok(()) };
        let path = request.path.split('?').next().unwrap().to_owned();
        let (fault, content, guard) = {
            let mut shelf = self.shelf.lock().unwrap();
            shelf.requests.push(request.clone());
            let fault = shelf.faults.get_mut(&path).and_then(VecDeque::pop_front);
            (fault, shelf.content.get(&path).cloned(), shelf.guard.clone())
        };
        let authorization = request.headers.get("authorization").cloned().unwrap_or_default();
        if path == "/token" {
            let token = match request.body.split('&').find_map(|pair| pair.strip_prefix("refresh_token=")) {
                Some(refresh) => format!("token-for-{refresh}"),
                None => format!("token-for-{}", authorization.replace(' ', "")),
            };
            let body = json!({ "token": token }).to_string();
            return answer(&mut stream, 200, &[], body.as_bytes()).await;
        }
        match &guard {
            Some(Guard::Basic(value)) if *value != authorization => {
                let challenge = [("www-authenticate", "Basic realm=\"test\"".to_owned())];
                return answer(&mut stream, 401, &challenge, b"{}").await;
            }
            Some(Guard::Bearer { realm }) if !authorization.starts_with("Bearer token-for-") => {
                let challenge = [("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"test\""))];
                return answer(&mut stream, 401, &challenge, b"{}").await;
            }
            _ => {}
        }
        if path == "/v2/" {
            return answer(&mut stream, 200, &[], b"{}").await;
        }
        let Some((media_type, body)) = content else {
            if let Some(Fault::Answer(status, body)) = fault {
                return answer(&mut stream, status, &[], body).await;
            }
            let error = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"nothing of this name"}]}"#;
            return answer(&mut stream, 404, &[], error).await;
        };
        self.deliver(&mut stream, &request, fault, (&media_type, &body)).await
    }

    async fn deliver(
        &self,
        stream: &mut TcpStream,
        request: &Request,
        fault: Option<Fault>,
        (media_type, body): (&str, &[u8]),
    ) -> std::io::Result<()> {
        let range =
            request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let start: usize = range.map_or(0, |start| start.parse().unwrap());
        let mut headers = vec![("content-type", media_type.to_owned())];
        let status = if start > 0 { 206 } else { 200 };
        if start > 0 {
            headers.push(("content-range", format!("bytes {start}-{}/{}", body.len() - 1, body.len())));
        }
        let (all, body) = (body, &body[start..]);
        match fault {
            Some(Fault::Whole) => answer(stream, 200, &headers[..1], all).await,
            Some(Fault::WrongRange(range)) => {
                headers.retain(|(name, _)| *name != "content-range");
                headers.push(("content-range", range.to_owned()));
                answer(stream, 206, &headers, body).await
            }
            Some(Fault::Rest(status, rest)) => answer(stream, status, &[("retry-after", rest)], b"").await,
            Some(Fault::OtherCutAfter(other, bytes)) => {
                head(stream, status, &headers, body.len()).await?;
                stream.write_all(&other[..bytes]).await?;
                stream.shutdown().await
            }
            Some(Fault::StallAfter(bytes)) => {
                head(stream, status, &headers, body.len()).await?;
                stream.write_all(&body[..bytes.min(body.len())]).await?;
                std::future::pending().await
            }
            None => answer(stream, status, &headers, body).await,
            Some(Fault::Answer(status, body)) => {
                answer(stream, status, &[("retry-after", "0".into())], body).await
            }
            Some(Fault::Body(other)) => answer(stream, status, &headers, &other).await,
            Some(Fault::Redirect(to)) => answer(stream, 307, &[("location", to)], b"").await,
            Some(Fault::CutAfter(bytes)) => {
                head(stream, status, &headers, body.len()).await?;
                stream.write_all(&body[..bytes.min(body.len())]).await?;
                stream.shutdown().await
            }
            Some(Fault::Silence) => {
                head(stream, status, &headers, body.len()).await?;
                std::future::pending().await
            }
            Some(Fault::Trickle) => {
                head(stream, status, &headers, body.len()).await?;
                for byte in body {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !text.windows(4).any(|end| end == b"\r\n\r\n") {
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            return Ok(None);
        }
        text.extend_from_slice(&buffer[..got]);
    }
    let split = text.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&text[..split]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) =
        (first.next().unwrap_or_default().to_owned(), first.next().unwrap_or_default().to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = text[split + 4..].to_vec();
    while body.len() < length {
        let got = stream.read(&mut buffer).await?;
        body.extend_from_slice(&buffer[..got]);
    }
    Ok(Some(Request { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() }))
}

async fn head(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, String)],
    length: usize,
) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Test\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await
}

async fn answer(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> std::io::Result<()> {
    head(stream, status, headers, body.len()).await?;
    stream.write_all(body).await?;
    stream.shutdown().await
}
