//! Looks at this host as a pod would find it: what works, what it costs where it does not, and the mend.
//!
//! Each check is one function that looks and answers one [`Finding`]; none changes anything, so a doctor may
//! be called beside a running daemon. What is nobody's is removed by `Runtime::sweep`, and what is left of
//! networks by [`remove_networks`]; pods whose `podhold run` was killed by `standalone::end_forgotten`.

mod forgotten;
mod host;
mod left_over;
mod node;

use std::fmt::Display;

use serde::Serialize;

pub use self::left_over::remove_networks;
use crate::config::Config;

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should.
    Works,
    /// Pods run, and something is missing to them or lies about.
    Degraded,
    /// No pod runs here until it is mended.
    Broken,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How well it works.
    pub verdict: Verdict,
    /// What there is.
    pub found: String,
    /// What is missing to pods because of it; empty where nothing is.
    pub cost: String,
    /// How to mend it; empty where nothing is to be mended.
    pub mend: String,
}

impl Finding {
    fn works(check: &'static str, found: impl Display) -> Self {
        Self {
            check,
            verdict: Verdict::Works,
            found: found.to_string(),
            cost: String::new(),
            mend: String::new(),
        }
    }

    fn degraded(check: &'static str, found: impl Display, cost: &str, mend: impl Display) -> Self {
        let finding = Self::works(check, found);
        Self { verdict: Verdict::Degraded, cost: cost.to_owned(), mend: mend.to_string(), ..finding }
    }

    fn broken(check: &'static str, found: impl Display, mend: impl Display) -> Self {
        let cost = "no pod can run here";
        Self { verdict: Verdict::Broken, ..Self::degraded(check, found, cost, mend) }
    }
}

/// Looks at everything. What may hang, such as a mirror, is given a few seconds.
/// `beside` are the directories of `podhold run`, where they are to be looked at too.
pub async fn examine(config: &Config, beside: Option<&Config>) -> Vec<Finding> {
    let on_a_thread = {
        let (config, beside) = (config.clone(), beside.cloned());
        tokio::task::spawn_blocking(move || {
            let mut findings = host::all(&config);
            findings.push(node::kubelet(&config));
            findings.push(node::built_in(&config));
            findings.push(node::forwarding());
            findings.extend(left_over::all(&config, beside.as_ref()));
            findings.extend(forgotten::all(&config, beside.as_ref()));
            findings
        })
    };
    let (host, network, mirrors) =
        tokio::join!(on_a_thread, node::network(config), node::mirrors(&config.image.hosts_dirs));
    let mut findings = host.unwrap_or_else(|error| vec![Finding::broken("doctor", error, "report this")]);
    findings.push(network);
    findings.extend(mirrors);
    findings
}

/// Whether pods can run here.
pub fn is_fit(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Broken)
}
