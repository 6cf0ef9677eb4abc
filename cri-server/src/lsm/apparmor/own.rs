//! Podhold's own profile: loaded once for each text, and again when somebody has taken it out.
//!
//! Invariant: a text that the kernel has under the name is not loaded again. The record says which text that is, by
//! the kernel's own digest of it, so it is believed only as long as nobody has loaded another one. The name is ours:
//! what is loaded under it and is not this text is replaced. A profile is never unloaded: containers outlive daemons.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use podhold_sandbox::record;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{digest, is_loaded, parser, tells_profiles};

/// The profile's name.
pub(crate) const NAME: &str = "podhold-default";
const RULES: &str = include_str!("profile");
/// What the rules are written for, where the parser has a description of it. Newer kernels mediate more, and would
/// deny what no rule speaks of.
const ABI: &str = "/etc/apparmor.d/abi/3.0";
/// How long the parser may take: half a second, and much longer on a machine that has just booted.
const PATIENCE: Duration = Duration::from_secs(30);
const NOT_THERE: &str = "apparmor_parser is not installed (on Debian the package apparmor has it)";

/// How the last attempt to load it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    text: String,
    /// The kernel's digest; none where it has none.
    digest: Option<String>,
    /// Why the text is not loaded.
    failure: Option<String>,
}

/// How things stand with the profile, for a person to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The kernel has this very text, from us.
    Loaded,
    /// The kernel has something of this name that we have not loaded.
    Foreign,
    /// It has nothing, and will be given it by this program.
    Waiting(PathBuf),
    /// It has nothing, and will not be given it.
    Missing {
        /// Why.
        reason: String,
        /// How to mend it.
        mend: &'static str,
    },
}

/// Loads the profile.
#[derive(Debug)]
pub(crate) struct OwnProfile {
    record: PathBuf,
    /// Held while somebody loads; how it ended, once it did.
    last: Mutex<Option<Result<(), String>>>,
}

impl OwnProfile {
    /// `run` is the volatile directory: its record ends with the boot, as what the kernel has loaded does.
    pub(crate) fn new(run: &Path) -> Self {
        Self { record: record_in(run), last: Mutex::default() }
    }

    /// Success when containers can be given the profile. What has failed is not tried again, unless somebody has
    /// loaded the profile meanwhile; the error has the mend.
    pub(crate) async fn ensure(&self) -> Result<(), String> {
        let mut last = self.last.lock().await;
        let here = aside(|| is_loaded(NAME)).await;
        match (&*last, here) {
            (Some(_), true) => return Ok(()),
            (Some(Err(reason)), false) => return Err(reason.clone()),
            // Never tried; or taken out since, as `aa-remove-unknown` does with all it finds no file of.
            (None, _) | (Some(Ok(())), false) => {}
        }
        let outcome = self.load(here).await;
        if let Err(reason) = &outcome {
            warn!(profile = NAME, reason, "AppArmor profile not loaded");
        }
        *last = Some(outcome.clone());
        // An older text confines better than none.
        outcome.or_else(|reason| if here { Ok(()) } else { Err(reason) })
    }

    async fn load(&self, here: bool) -> Result<(), String> {
        let record = self.record.clone();
        let (text, known) = aside(move || (text(Path::new(ABI).exists()), last_attempt(&record))).await;
        if here && known.is_some_and(|known| known.is_in_kernel(&text)) {
            return Ok(());
        }
        let begun = Instant::now();
        let ended = match aside(parser::find).await {
            None => Err(NOT_THERE.to_owned()),
            Some(program) => parser::load(&program, &text, PATIENCE).await,
        };
        let (record, failure) = (self.record.clone(), ended.clone().err());
        let written = aside(move || {
            let digest = if failure.is_none() { digest(NAME) } else { None };
            record::write(&record, &Attempt { text, digest, failure })
        });
        if let Err(error) = written.await {
            warn!(%error, "AppArmor profile will be loaded again by the next daemon");
        }
        if ended.is_ok() {
            info!(profile = NAME, ms = begun.elapsed().as_millis(), "AppArmor profile loaded");
        }
        ended
    }
}

impl Attempt {
    /// Whether it has loaded `text`, and nobody another one since.
    fn is_in_kernel(&self, text: &str) -> bool {
        self.failure.is_none() && self.text == text && self.digest.is_some() && self.digest == digest(NAME)
    }
}

/// How things stand where AppArmor is enabled. Changes nothing.
pub(crate) fn standing(run: &Path) -> Standing {
    let known = last_attempt(&record_in(run));
    if is_loaded(NAME) {
        let ours = known.is_some_and(|known| known.is_in_kernel(&known.text));
        return if ours { Standing::Loaded } else { Standing::Foreign };
    }
    let missing = |reason: &str, mend| Standing::Missing { reason: reason.to_owned(), mend };
    if !tells_profiles() {
        let mend = "mount -t securityfs securityfs /sys/kernel/security";
        return missing("the kernel does not say what is loaded", mend);
    }
    match (known.and_then(|known| known.failure), parser::find()) {
        (_, None) => missing(NOT_THERE, "install it and restart the daemon"),
        (Some(failure), _) => missing(&failure, "see that apparmor_parser works, then restart the daemon"),
        (None, Some(program)) => Standing::Waiting(program),
    }
}

fn record_in(run: &Path) -> PathBuf {
    run.join("apparmor.json")
}

/// A damaged record is as good as none: the profile is loaded again, and the record with it.
fn last_attempt(record: &Path) -> Option<Attempt> {
    record::read(record).ok()
}

fn text(described: bool) -> String {
    if described { format!("abi <abi/3.0>,\n{RULES}") } else { RULES.to_owned() }
}

/// Reads of the kernel wait while somebody loads a policy: on a thread that may.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("nothing here panics, nor is it ever aborted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_has_the_name_that_containers_are_given_and_needs_no_other_file() {
        for described in [false, true] {
            let text = text(described);
            let rules: Vec<&str> =
                text.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
            assert!(rules.iter().any(|line| line.starts_with(&format!("profile {NAME} "))), "{text}");
            assert!(rules.iter().all(|line| !line.contains("include")), "{text}");
            assert_eq!(rules[0].starts_with("abi "), described, "{text}");
        }
    }

    #[test]
    fn an_attempt_is_believed_only_where_the_kernel_confirms_it() {
        let attempt = |digest: Option<&str>, failure: Option<&str>| Attempt {
            text: "text".into(),
            digest: digest.map(str::to_owned),
            failure: failure.map(str::to_owned),
        };
        // No kernel has this digest for it.
        for attempt in [attempt(Some("00"), None), attempt(None, None), attempt(None, Some("why"))] {
            assert!(!attempt.is_in_kernel("text"), "{attempt:?}");
        }
    }
}
