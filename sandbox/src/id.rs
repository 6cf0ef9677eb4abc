//! Typed names of pods and containers. Owns no state and does no I/O.
//!
//! Invariant: an id consists of 1 to 64 characters out of `[a-z0-9]`, so it can be used as a file name,
//! a cgroup name and a part of a socket path without further checks.

use std::fmt;

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: an id has 1 to 64 characters, lower case letters and digits only")]
pub struct InvalidId(pub String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes an id from outside; refuses what could not have been made by Podhold.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let fits = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                if fits { Ok(Self(text.to_owned())) } else { Err(InvalidId(text.to_owned())) }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// Names one pod sandbox (CRI `pod_sandbox_id`).
    PodId
}
id! {
    /// Names one container (CRI `container_id`).
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_safe_as_a_file_name_is_an_id() {
        assert!(PodId::parse("0123abc").is_ok());
        for bad in ["", ".", "..", "a/b", "A", "a b", "a\n", &"a".repeat(65)] {
            assert_eq!(PodId::parse(bad), Err(InvalidId(bad.to_owned())), "{bad:?}");
        }
    }
}
