//! A command in the container, by its exit code.

use std::time::Duration;

use super::{Failed, Target};
use crate::error::chain;

/// How much of what a command said is told.
const TOLD: usize = 200;

pub(super) async fn run(target: &Target, command: &[String], limit: Option<Duration>) -> Result<(), Failed> {
    let ran = target.runtime.exec_sync(target.container.as_str(), command.to_vec(), limit).await;
    let output = ran.map_err(|error| chain(&error))?;
    if output.code == 0 {
        return Ok(());
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let said = String::from_utf8_lossy(&said[..said.len().min(TOLD)]).trim().to_owned();
    let more = if said.is_empty() { said } else { format!(": {said}") };
    Err(format!("{} ended with exit code {}{more}", command[0], output.code))
}
