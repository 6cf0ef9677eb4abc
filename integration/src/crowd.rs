//! A crowd of small images that share layers, from a registry of our own: for how the daemon does with
//! thousands of them.
//!
//! Image `N` has three layers: one that all have, one that each [`KIN`] neighbours have, one of its own. Its
//! configuration is as long as those of everyday images are.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use crate::{
    images::{Blob, Compression, ImageBuilder, LayerBuilder},
    machine::{Machine, MachineError},
};

/// How many images share a layer that others have not.
pub const KIN: usize = 20;
/// Where the registry listens, in the machine.
const ADDRESS: &str = "127.0.0.1:5002";

/// The reference of image `number`.
pub fn reference(number: usize) -> String {
    format!("{ADDRESS}/crowd:{number}")
}

/// The registry as it stands in references.
pub const REGISTRY: &str = ADDRESS;

/// How many layers `count` images have between them.
pub fn layers(count: usize) -> usize {
    1 + count.div_ceil(KIN) + count
}

/// Serves `count` images in the machine's network, until the program ends.
pub async fn serve(machine: &Machine, count: usize) -> Result<(), MachineError> {
    let answers = Arc::new(answers(count));
    let begin = move || -> io::Result<()> {
        let listener = TcpListener::bind(ADDRESS)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answers = Arc::clone(&answers);
                std::thread::spawn(move || drop(answer(&stream, &answers)));
            }
        });
        Ok(())
    };
    let started = machine.in_network(begin).await?;
    started.map_err(|source| MachineError::Io { what: format!("listen on {ADDRESS}"), source })
}

/// Blobs by the end of their paths.
type Answers = HashMap<String, Blob>;

fn answers(count: usize) -> Answers {
    let layer = |name: String| {
        let path = format!("/etc/{name}");
        LayerBuilder::new().directory("/etc", 0o755).file(&path, 0o644, name).finish(Compression::None)
    };
    let base = layer("base".to_owned());
    let mut answers = Answers::new();
    for number in 0..count {
        let variables: Vec<String> = (0..20)
            .map(|n| format!("VARIABLE_{n}=what image {number} says of itself, in so many words"))
            .collect();
        let labels: HashMap<String, String> = (0..20)
            .map(|n| (format!("org.example.label-{n}"), format!("label {n} of image {number}")))
            .collect();
        let image = ImageBuilder::new()
            .layer(base.clone())
            .layer(layer(format!("kin-{}", number / KIN)))
            .layer(layer(format!("own-{number}")))
            .config("Env", variables)
            .config("Labels", serde_json::json!(labels))
            .config("Cmd", vec!["/none"])
            .finish();
        answers.insert(format!("manifests/{number}"), image.top.clone());
        answers.insert(format!("manifests/{}", image.top.digest()), image.top);
        answers.extend(image.blobs.into_iter().map(|blob| (format!("blobs/{}", blob.digest()), blob)));
    }
    answers
}

/// Answers the requests of one connection.
fn answer(mut stream: &TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(first) = lines.next() {
        let first = first?;
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        for header in lines.by_ref() {
            if header?.is_empty() {
                break;
            }
        }
        let found = path.strip_prefix("/v2/crowd/").and_then(|rest| answers.get(rest));
        let (status, media_type, body) = match found {
            Some(blob) => (200, blob.media_type, blob.bytes.as_slice()),
            None => (404, "text/plain", &b"no such thing"[..]),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Answer\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
        );
        let body = if method == "HEAD" { &b""[..] } else { body };
        stream.write_all(&[head.as_bytes(), body].concat())?;
    }
    Ok(())
}
