//! Why a host did not answer, in words for who pulls. No I/O.

use std::{error::Error, fmt::Write as _};

/// What the HTTP client calls trouble with a name.
const OF_A_NAME: &str = "dns error";

/// An error with what caused it, in one line.
pub(super) fn causes(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// What is told when the name of a host leads to no address; `None` for any other error. What the resolver asked and
/// how is left out: it says nothing to who has misspelt a name.
pub(super) fn unknown_name(error: &reqwest::Error) -> Option<String> {
    let host = error.url().and_then(|url| url.host_str()).unwrap_or("the host").to_owned();
    let (mut texts, mut source) = (Vec::new(), error.source());
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    let of_the_name = &texts[texts.iter().position(|text| text == OF_A_NAME)? + 1..];
    Some(format!("cannot find {host}{}: {}", or_its_proxy(), in_words(of_the_name)))
}

/// The client asks a proxy where the environment names one, and then it is the proxy whose name is looked up.
fn or_its_proxy() -> &'static str {
    let names = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    if names.iter().any(|name| std::env::var_os(name).is_some()) { " or its proxy" } else { "" }
}

/// What the resolver has met.
fn in_words(texts: &[String]) -> &'static str {
    let says = |word: &str| texts.iter().any(|text| text.to_ascii_lowercase().contains(word));
    if says("no record") || says("nxdomain") || says("non-existent domain") {
        "no such host; check the name, or the resolver in /etc/resolv.conf"
    } else if says("timed out") || says("timeout") {
        "no name server answers in time; check the resolver in /etc/resolv.conf"
    } else {
        "no name server gives an answer; check the resolver in /etc/resolv.conf"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolvers_trouble_is_told_in_words() {
        for (texts, want) in [
            (["no records found for Query { name: Name(\"x.\") }", "x"], "no such host; "),
            (["proto error: request timed out", "request timed out"], "no name server answers in time; "),
            (["proto error", "io error: Connection refused"], "no name server gives an answer; "),
        ] {
            let told = in_words(&texts.map(str::to_owned));
            assert!(told.starts_with(want) && told.ends_with("/etc/resolv.conf"), "{told}");
        }
    }
}
