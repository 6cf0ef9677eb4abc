//! How a session's end is told on the error stream (`metav1.Status` from version 4 on, words before).

use serde_json::{Value, json};

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Well.
    Success,
    /// The command ended with this code.
    Exit(i32),
    /// It could not be started, or was ended on this side.
    Failed(String),
}

impl Outcome {
    /// The octets for the error stream of a protocol version; none where silence means success.
    pub(super) fn message(&self, version: u8) -> Option<Vec<u8>> {
        if version >= 4 {
            return Some(self.status().to_string().into_bytes());
        }
        match self {
            Self::Success => None,
            Self::Exit(_) | Self::Failed(_) => Some(self.words().into_bytes()),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exit(code) => format!("command terminated with non-zero exit code: exit code {code}"),
            Self::Failed(why) => format!("Internal error occurred: {why}"),
        }
    }

    fn status(&self) -> Value {
        match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.words(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.words(),
                "reason": "InternalError",
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            }),
        }
    }
}
