//! A registry whose answers a test writes: by path, with a policy that is asked first; over TLS if wished.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
        server::WebPkiClientVerifier,
    },
};

use super::{MANIFEST, Request, TestImage};

/// Status, headers and body of an answer.
pub type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);
/// Answers a request, or leaves it to the content.
pub type Policy = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// Media type and body, by path.
type Served = HashMap<String, (&'static str, Vec<u8>)>;

/// A server on loopback.
#[derive(Clone)]
pub struct Scripted {
    pub address: String,
    content: Arc<Mutex<Served>>,
    policy: Arc<Policy>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    pub async fn start(policy: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::with_tls(None, policy).await
    }

    pub async fn with_tls(
        tls: Option<Arc<ServerConfig>>,
        policy: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server =
            Self { address, content: Arc::default(), policy: Arc::new(policy), requests: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.serve(stream).await,
                        Some(config) => match TlsAcceptor::from(config).accept(stream).await {
                            Ok(stream) => server.serve(stream).await,
                            Err(error) => Err(error),
                        },
                    }
                });
            }
        });
        server
    }

    /// Serves an image beneath `/PREFIX/REPOSITORY`, such as `/v2/app`.
    pub fn push(&self, place: &str, tag: &str, image: &TestImage) {
        let mut content = self.content.lock().unwrap();
        for (digest, blob) in &image.blobs {
            content.insert(format!("{place}/blobs/{digest}"), ("application/octet-stream", blob.clone()));
        }
        for name in [tag, &image.digest()] {
            content.insert(format!("{place}/manifests/{name}"), (MANIFEST, image.manifest.clone()));
        }
    }

    pub fn put(&self, path: &str, media_type: &'static str, body: &[u8]) {
        self.content.lock().unwrap().insert(path.to_owned(), (media_type, body.to_vec()));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.path.contains(part)).count()
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let Some(request) = read(&mut stream).await? else { return Ok(()) };
        self.requests.lock().unwrap().push(request.clone());
        let path = request.path.split('?').next().unwrap();
        let stored = || {
            let (media_type, body) = self.content.lock().unwrap().get(path)?.clone();
            Some((200, vec![("content-type", media_type.to_owned())], body))
        };
        let answer = (self.policy)(&request).or_else(stored);
        let (status, headers, body) = answer.unwrap_or((404, Vec::new(), b"{}".to_vec()));
        let mut head = format!("HTTP/1.1 {status} Test\r\nconnection: close\r\n");
        head += &format!("content-length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Request>> {
    let mut text = Vec::new();
    let mut more = async |text: &mut Vec<u8>| -> std::io::Result<usize> {
        let mut buffer = [0; 4096];
        let got = stream.read(&mut buffer).await?;
        text.extend_from_slice(&buffer[..got]);
        Ok(got)
    };
    let end = loop {
        if let Some(end) = text.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        if more(&mut text).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&text[..end]).into_owned();
    let mut first = head.lines().next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: HashMap<String, String> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while text.len() < end + 4 + length {
        if more(&mut text).await? == 0 {
            break;
        }
    }
    let body = String::from_utf8_lossy(&text[end + 4..]).into_owned();
    Ok(Some(Request { method, path, headers, body }))
}

/// A certificate authority, and what it has signed for 127.0.0.1; all in PEM.
pub struct Authority {
    pub ca: String,
    pub client: String,
    pub client_key: String,
    server: (CertificateDer<'static>, Vec<u8>),
    ca_der: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let sign = |purpose: ExtendedKeyUsagePurpose| {
            let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = sign(ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = sign(ExtendedKeyUsagePurpose::ClientAuth);
        Self {
            ca: ca.pem(),
            client: client.pem(),
            client_key: client_key.serialize_pem(),
            server: (server.der().clone(), server_key.serialize_der()),
            ca_der: ca.der().clone(),
        }
    }

    /// A server's side; `clients`: only those this authority has signed are let in.
    pub fn server(&self, clients: bool) -> Option<Arc<ServerConfig>> {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.ca_der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            ServerConfig::builder().with_client_cert_verifier(verifier)
        } else {
            ServerConfig::builder().with_no_client_auth()
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.server.1.clone()));
        Some(Arc::new(builder.with_single_cert(vec![self.server.0.clone()], key).unwrap()))
    }
}
