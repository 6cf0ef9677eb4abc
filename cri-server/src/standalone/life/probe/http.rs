//! A page that is there: any answer from 200 to 399. Certificates are not verified, as a kubelet does not.

use std::net::IpAddr;

use reqwest::{Client, Url, redirect::Policy};

use super::{super::action::HttpGet, Failed};
use crate::error::chain;

/// Most redirects that are followed.
const REDIRECTS: usize = 10;
/// By which servers know a kubelet.
const USER_AGENT: &str = "kube-probe/1.36";

/// Asks for a page; its status decides.
pub(super) async fn ask(page: &HttpGet, address: IpAddr) -> Result<(), Failed> {
    let status = get(page, address).await?;
    // A redirect to another host is an answer.
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("{}: HTTP status {status}", page.path)) }
}

/// Asks for a page; answers the HTTP status.
pub(in crate::standalone::life) async fn get(page: &HttpGet, address: IpAddr) -> Result<u16, Failed> {
    let url = url(page, address)?;
    let client = client(page).map_err(|error| chain(&error))?;
    let mut request = client.get(url);
    for (name, value) in &page.headers {
        request = request.header(name, value);
    }
    let answer = request.send().await.map_err(|error| chain(&error.without_url()))?;
    Ok(answer.status().as_u16())
}

fn url(page: &HttpGet, address: IpAddr) -> Result<Url, Failed> {
    let host = page.host.clone().unwrap_or_else(|| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    });
    let scheme = if page.tls { "https" } else { "http" };
    let text = format!("{scheme}://{host}:{}{}", page.port, page.path);
    Url::parse(&text).map_err(|error| format!("{text:?} is no address of a page: {error}"))
}

fn client(page: &HttpGet) -> reqwest::Result<Client> {
    let redirect = Policy::custom(|attempt| {
        let first = attempt.previous().first().and_then(|url| url.host_str()).map(str::to_owned);
        if attempt.url().host_str().map(str::to_owned) != first {
            return attempt.stop();
        }
        if attempt.previous().len() > REDIRECTS {
            return attempt.error(format!("more than {REDIRECTS} redirects"));
        }
        attempt.follow()
    });
    let mut builder = Client::builder().no_proxy().redirect(redirect).http1_only().pool_max_idle_per_host(0);
    // A header of the manifest's takes the place of ours.
    if !page.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        builder = builder.user_agent(USER_AGENT);
    }
    if page.tls {
        // An error means that somebody was first.
        let _ours = rustls::crypto::ring::default_provider().install_default();
        builder = builder.tls_danger_accept_invalid_certs(true);
    } else {
        // No certificate authority of the host's need be read.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}
