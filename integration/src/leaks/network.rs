//! What `ip` and `nft` show of the network namespace. Reads only.

use std::{io, process::Command};

use serde_json::Value;

/// All links, and all addresses, except those of the links named.
pub(super) fn links(except: &[String]) -> io::Result<(Vec<String>, Vec<String>)> {
    let text = run("ip", &["-json", "-details", "address"])?;
    let list: Vec<Value> = serde_json::from_str(&text).map_err(io::Error::from)?;
    let (mut links, mut addresses) = (Vec::new(), Vec::new());
    for link in list {
        let name = link["ifname"].as_str().unwrap_or("?");
        if except.iter().any(|other| other == name) {
            continue;
        }
        links.push(format!("{name} {}", link["linkinfo"]["info_kind"].as_str().unwrap_or("")));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            addresses.push(format!(
                "{name} {}/{}",
                address["local"].as_str().unwrap_or("?"),
                address["prefixlen"]
            ));
        }
    }
    Ok((links, addresses))
}

/// Every line of the rule set with the table and chain it is in; counters are left out.
pub(super) fn rules() -> io::Result<Vec<String>> {
    Ok(flatten(&run("nft", &["list", "ruleset"])?))
}

fn flatten(ruleset: &str) -> Vec<String> {
    let (mut found, mut path) = (Vec::new(), Vec::<String>::new());
    for line in ruleset.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "}" {
            path.pop();
        } else if let Some(name) = line.strip_suffix('{') {
            path.push(name.trim().to_owned());
            found.push(path.join(" / "));
        } else {
            found.push(format!("{} / {}", path.join(" / "), without_counters(line)));
        }
    }
    found
}

fn without_counters(rule: &str) -> String {
    let mut words = rule.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word == "counter" {
            // "counter packets N bytes N"
            words.nth(3);
        }
    }
    kept.join(" ")
}

fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| io::Error::new(e.kind(), format!("start {program}: {e}")))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_told_apart_by_its_chain_and_not_by_its_counters() {
        let one =
            "table ip nat {\n\tchain A {\n\t\tip daddr 10.0.0.1 counter packets 1 bytes 60 jump B\n\t}\n}\n";
        let later = one.replace("packets 1 bytes 60", "packets 9 bytes 999");
        assert_eq!(flatten(one), flatten(&later));
        assert_eq!(
            flatten(one),
            [
                "table ip nat",
                "table ip nat / chain A",
                "table ip nat / chain A / ip daddr 10.0.0.1 counter jump B"
            ]
        );
    }
}
