//! What systemd knows of pods. Asks `systemctl`, where systemd runs.

use std::{io, path::Path, process::Command};

/// The scopes of pods in slices whose name contains one of these words; without any, of all pods.
pub(super) fn of_pods(words: &[String]) -> io::Result<Vec<String>> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Ok(Vec::new());
    }
    let ask = ["show", "--property=Id,Slice,ActiveState", "podhold-*.scope"];
    let answer = match Command::new("systemctl").args(ask).output() {
        // A machine may have systemd's directory and not its tools: then it has no scopes of ours.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer?,
    };
    let text = String::from_utf8_lossy(&answer.stdout);
    Ok(text.split("\n\n").filter_map(|unit| describe(unit, words)).collect())
}

fn describe(unit: &str, words: &[String]) -> Option<String> {
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let (id, slice, state) = (value("Id")?, value("Slice")?, value("ActiveState")?);
    let stem = |word: &str| word.trim_end_matches(".slice").to_owned();
    let ours = words.is_empty() || words.iter().any(|word| slice.contains(&stem(word)));
    ours.then(|| format!("{id} in {slice} ({state})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_other_tests_are_not_ours() {
        let unit = "Id=podhold-a.scope\nSlice=podhold_it_1_2-x.slice\nActiveState=failed\n";
        let told = |word: &str| describe(unit, &[word.to_owned()]);
        assert_eq!(
            told("podhold_it_1_2.slice").unwrap(),
            "podhold-a.scope in podhold_it_1_2-x.slice (failed)"
        );
        assert_eq!(told("podhold_it_1_3.slice"), None);
        assert_eq!(describe("", &[]), None);
    }
}
