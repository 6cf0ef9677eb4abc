//! A registry that misbehaves, each repository in its own way.
//!
//! | repository | what it does |
//! |---|---|
//! | `unauthorized` | asks for credentials, and takes none |
//! | `missing` | knows no manifest |
//! | `broken` | answers 500 |
//! | `garbage` | a manifest that is no JSON |
//! | `swapped` | layer bytes that do not have the layer's digest |
//! | `truncated` | a gzip layer that ends early, under the digest of what there is |
//! | `escaping` | a layer with a file whose path leads out of the root |
//! | `diffid` | a layer whose content is not that of the configuration's diff id |
//! | `silent` | takes every request and never answers |
//! | `trickling` | a layer of which a few bytes come now and then |
//! | `halting` | a layer of which [`HALTS_AT`] bytes come, and no more, when it is asked for first |

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use crate::{
    images::{Blob, Compression, Image, ImageBuilder, Layer, LayerBuilder, blob},
    machine::{Machine, MachineError},
};

/// Its address in the machine it is started in.
pub const ADDRESS: &str = "127.0.0.1:5001";

/// Where the layer of `halting` halts.
pub const HALTS_AT: usize = 5 << 20;

/// What has been asked for: paths of layers, and the first byte that was wanted.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<Mutex<Vec<(String, usize)>>>);

impl Asked {
    /// Notes a request; true when it is the first for its path.
    fn note(&self, path: &str, from: usize) -> bool {
        let mut asked = self.0.lock().expect("no panics under this lock");
        let first = asked.iter().all(|(other, _)| other != path);
        asked.push((path.to_owned(), from));
        first
    }

    /// The first bytes wanted of the layers of `repository`, in order.
    ///
    /// # Panics
    /// When a thread of the registry has panicked.
    pub fn of(&self, repository: &str) -> Vec<usize> {
        let part = format!("/v2/{repository}/blobs/");
        let asked = self.0.lock().expect("no panics under this lock");
        asked.iter().filter(|(path, _)| path.starts_with(&part)).map(|(_, from)| *from).collect()
    }
}

/// What is sent for one path.
#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    media_type: String,
    body: Vec<u8>,
}

type Answers = BTreeMap<String, Answer>;

/// Starts it in the machine's network. It ends with the test program.
pub async fn start(machine: &Machine) -> Result<Asked, MachineError> {
    let answers = Arc::new(answers());
    let asked = Asked::default();
    let all = asked.clone();
    let begin = move || -> io::Result<()> {
        let listener = TcpListener::bind(ADDRESS)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&answers), all.clone());
                // A client that leaves early is not our trouble.
                std::thread::spawn(move || drop(serve(&stream, &answers, &asked)));
            }
        });
        Ok(())
    };
    let started = machine.in_network(begin).await?;
    started.map_err(|source| MachineError::Io { what: format!("listen on {ADDRESS}"), source })?;
    Ok(asked)
}

/// Answers the requests of one connection.
fn serve(mut stream: &TcpStream, answers: &Answers, asked: &Asked) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(first) = lines.next() {
        let first = first?;
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut from = 0;
        for header in lines.by_ref() {
            let header = header?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(range) = header.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap_or(0);
            }
        }
        let first = asked.note(path, from);
        if path.starts_with("/v2/silent/") {
            // Until the client has had enough.
            return io::copy(&mut stream, &mut io::sink()).map(drop);
        }
        let answer = find(answers, path);
        if path.starts_with("/v2/halting/blobs/") && answer.body.len() > HALTS_AT {
            return halt(stream, &answer.body, (from, first));
        }
        write!(
            stream,
            "HTTP/1.1 {} Answer\r\nContent-Type: {}\r\nContent-Length: {}\r\n{}\r\n",
            answer.status,
            answer.media_type,
            answer.body.len(),
            if answer.status == 401 { "WWW-Authenticate: Basic realm=\"bad\"\r\n" } else { "" },
        )?;
        if path.starts_with("/v2/trickling/blobs/") && answer.body.len() > 50_000 {
            return trickle(stream, &answer.body);
        }
        if method != "HEAD" {
            stream.write_all(&answer.body)?;
        }
        stream.flush()?;
    }
    Ok(())
}

/// Sends the beginning and then nothing until the client has had enough; later all from a position on.
fn halt(mut stream: &TcpStream, body: &[u8], (from, first): (usize, bool)) -> io::Result<()> {
    let (length, last) = (body.len(), body.len() - 1);
    let rest = body.get(from..).unwrap_or_default();
    if from > 0 {
        write!(stream, "HTTP/1.1 206 Answer\r\nContent-Range: bytes {from}-{last}/{length}\r\n")?;
        write!(stream, "Connection: close\r\nContent-Length: {}\r\n\r\n", rest.len())?;
        return stream.write_all(rest);
    }
    write!(stream, "HTTP/1.1 200 Answer\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")?;
    if !first {
        return stream.write_all(body);
    }
    // So slowly that it is worth keeping: after 4 MiB it must look as if the whole takes more than two seconds.
    stream.set_read_timeout(Some(std::time::Duration::from_millis(150)))?;
    for piece in body[..HALTS_AT].chunks(HALTS_AT / 20) {
        stream.write_all(piece)?;
        match stream.read(&mut [0]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            other => return other.map(drop),
        }
    }
    stream.set_read_timeout(None)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Sends 16 bytes, and again after a while, until the client has had enough.
fn trickle(mut stream: &TcpStream, body: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(std::time::Duration::from_millis(200)))?;
    for piece in body.chunks(16) {
        stream.write_all(piece)?;
        // The client says nothing more: what comes is its end.
        match stream.read(&mut [0]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}

fn find(answers: &Answers, path: &str) -> Answer {
    if path == "/v2/" {
        return plain(200, "{}");
    }
    match answers.get(path) {
        Some(answer) => answer.clone(),
        None if path.starts_with("/v2/unauthorized/") => {
            plain(401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
        }
        None if path.starts_with("/v2/broken/") => plain(500, "something is broken"),
        None if path.starts_with("/v2/garbage/") => plain(200, "this is no manifest"),
        None => plain(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
    }
}

fn plain(status: u16, body: &str) -> Answer {
    let media_type = if status == 200 { blob::media::MANIFEST } else { "application/json" };
    Answer { status, media_type: media_type.to_owned(), body: body.as_bytes().to_vec() }
}

fn answers() -> Answers {
    let mut answers = Answers::new();
    let honest = LayerBuilder::new().file("/file", 0o644, vec![b'x'; 100_000]).finish(Compression::Gzip);
    add(&mut answers, "swapped", &ImageBuilder::new().layer(honest.clone()).finish());
    let blob = format!("/v2/swapped/blobs/{}", honest.blob.digest());
    let swapped = answers.get_mut(&blob).expect("the layer was added above");
    let middle = swapped.body.len() / 2;
    swapped.body[middle] ^= 0xff;

    // Noise, which stays as large as it is when it is compressed.
    let next = |seed: &u64| Some(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    let noise = |length| -> Vec<u8> {
        std::iter::successors(Some(1u64), next).map(|seed| seed.to_be_bytes()[0]).take(length).collect()
    };
    let large =
        LayerBuilder::new().file("/noise", 0o644, noise(HALTS_AT + (2 << 20))).finish(Compression::Gzip);
    add(&mut answers, "halting", &ImageBuilder::new().layer(large).finish());
    let noise = noise(200_000);
    let slow = LayerBuilder::new().file("/noise", 0o644, noise).finish(Compression::Gzip);
    add(&mut answers, "trickling", &ImageBuilder::new().layer(slow).finish());

    let mut truncated = honest.clone();
    truncated.blob.bytes.truncate(truncated.blob.bytes.len() / 2);
    add(&mut answers, "truncated", &ImageBuilder::new().layer(truncated).finish());

    let other = Layer { diff_id: blob::digest(b"something else"), blob: honest.blob };
    add(&mut answers, "diffid", &ImageBuilder::new().layer(other).finish());
    add(&mut answers, "escaping", &ImageBuilder::new().layer(escaping()).finish());
    answers
}

/// A layer with the file `../../../../escaped`; written by hand, since tar libraries refuse it.
fn escaping() -> Layer {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().expect("made as GNU").name[..22].copy_from_slice(b"../../../../../escaped");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(512 * 3, 0);
    let diff_id = blob::digest(&bytes);
    Layer { blob: Blob { media_type: blob::media::LAYER, bytes }, diff_id }
}

fn add(answers: &mut Answers, repository: &str, image: &Image) {
    let answer = |blob: &Blob| Answer {
        status: 200,
        media_type: blob.media_type.to_owned(),
        body: blob.bytes.clone(),
    };
    for blob in &image.blobs {
        answers.insert(format!("/v2/{repository}/blobs/{}", blob.digest()), answer(blob));
    }
    answers.insert(format!("/v2/{repository}/manifests/1"), answer(&image.top));
    answers.insert(format!("/v2/{repository}/manifests/{}", image.top.digest()), answer(&image.top));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digest that was promised and bytes that are sent, of the layer of this repository.
    fn layer(repository: &str) -> (String, Vec<u8>) {
        let answers = answers();
        let manifest = &answers[&format!("/v2/{repository}/manifests/1")].body;
        let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let digest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
        let body = answers[&format!("/v2/{repository}/blobs/{digest}")].body.clone();
        (digest, body)
    }

    #[test]
    fn each_repository_is_bad_in_its_own_way_only() {
        let (digest, body) = layer("swapped");
        assert_ne!(blob::digest(&body), digest);
        for repository in ["truncated", "diffid", "escaping"] {
            let (digest, body) = layer(repository);
            assert_eq!(blob::digest(&body), digest, "{repository}");
        }
        let (_, body) = layer("truncated");
        assert!(flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut Vec::new()).is_err());
        let (_, body) = layer("escaping");
        let mut archive = tar::Archive::new(body.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("../../../../../escaped"));
    }
}
