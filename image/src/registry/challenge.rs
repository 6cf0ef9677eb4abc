//! What a registry asks for, and what its token service answers. No I/O.

use http_auth::ChallengeParser;

/// The token in a token service's answer.
pub(crate) fn read_token(body: &[u8]) -> Option<String> {
    // serde takes a list for a struct as well.
    let object = Some(body).filter(|body| body.trim_ascii_start().starts_with(b"{"))?;
    let token: Token = serde_json::from_slice(object).ok()?;
    token.access_token.or(token.token).filter(|token| !token.is_empty())
}

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// What a registry wants to be answered with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token of its token service.
    Bearer(Bearer),
    /// Name and password.
    Basic,
}

/// A bearer challenge (RFC 6750 and distribution, docs/spec/auth/token.md).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

impl Challenge {
    /// The one to answer, out of all `WWW-Authenticate` headers: a token if it can be had.
    pub(crate) fn choose(headers: &[String]) -> Option<Self> {
        let mut basic = false;
        let parsed = headers.iter().flat_map(|text| ChallengeParser::new(text).map_while(Result::ok));
        for challenge in parsed {
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
            };
            if let Some(realm) = param("realm") {
                let (service, scope) = (param("service"), param("scope"));
                return Some(Self::Bearer(Bearer { realm, service, scope }));
            }
        }
        // Basic is known by its name alone, whatever comes after it.
        let named =
            |text: &String| text.trim_start().get(..5).is_some_and(|s| s.eq_ignore_ascii_case("basic"));
        (basic || headers.iter().any(named)).then_some(Self::Basic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_to_answer_is_found_among_others() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Some(Challenge::Bearer(Bearer {
                realm: realm.to_owned(),
                service: owned(service),
                scope: owned(scope),
            }))
        };
        let scopes = "repository:a:pull,push repository:b:pull";
        let table: Vec<(Vec<&str>, Option<Challenge>)> = vec![
            (vec![], None),
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (vec!["BASIC realm=unquoted, charset=\"UTF-8\""], Some(Challenge::Basic)),
            (vec!["Basic realm=x y z"], Some(Challenge::Basic)),
            (vec!["Negotiate, Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["Digest realm=\"x\"", "Unknown"], None),
            (
                vec!["Basic realm=\"x\"", "Bearer realm=\"https://t/\",service=\"s\",scope=\"a:b:c\""],
                bearer("https://t/", Some("s"), Some("a:b:c")),
            ),
            (
                vec!["Basic realm=\"a, Bearer realm=b\", Bearer realm=\"https://t/?a=1,2\""],
                bearer("https://t/?a=1,2", None, None),
            ),
            (vec!["bearer REALM=\"https://t/\" , SERVICE=s"], bearer("https://t/", Some("s"), None)),
            (
                vec![
                    "Bearer realm=\"https://t/\",scope=\"repository:a:pull,push repository:b:pull\",error=\"x\"",
                ],
                bearer("https://t/", None, Some(scopes)),
            ),
            (vec!["Bearer realm=\"q\\\"q\""], bearer("q\"q", None, None)),
            (vec!["Bearer service=\"s\"", "Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["Bearer realm=\"\""], None),
            (vec!["Bearer realm=\"open"], None),
        ];
        for (headers, expected) in table {
            let owned: Vec<String> = headers.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(Challenge::choose(&owned), expected, "{headers:?}");
        }
    }
}
