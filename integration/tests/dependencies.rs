//! Keeps the rules of deny.toml without cargo-deny: licences, banned crates, sources.
//!
//! Does not know of advisories and of duplicates; cargo-deny does, where it is installed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::HashMap, path::Path, process::Command};

use serde::Deserialize;

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    clarify: Vec<Clarification>,
}

#[derive(Deserialize)]
struct Clarification {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    registries: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest_path: String,
}

/// Everything in these packages that a rule forbids.
fn violations(rules: &Rules, packages: &[Package], root: &Path) -> Vec<String> {
    let clarified: HashMap<&str, &str> =
        rules.licenses.clarify.iter().map(|c| (c.name.as_str(), c.expression.as_str())).collect();
    let mut found = Vec::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        let license = clarified.get(package.name.as_str()).copied().or(package.license.as_deref());
        if !license.is_some_and(|license| allowed(&rules.licenses.allow, license)) {
            found.push(format!("{name}: licence {license:?} is not allowed"));
        }
        if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == package.name) {
            found.push(format!("{name}: banned: {}", ban.reason));
        }
        let known = match &package.source {
            None => Path::new(&package.manifest_path).starts_with(root),
            Some(source) => {
                let registry = source.strip_prefix("registry+");
                registry.is_some_and(|registry| rules.sources.registries.iter().any(|r| r == registry))
            }
        };
        if !known {
            found.push(format!("{name}: unknown source {:?}", package.source));
        }
    }
    found
}

fn allowed(list: &[String], license: &str) -> bool {
    let expression = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX);
    expression.is_ok_and(|e| e.evaluate(|wanted| list.iter().any(|license| *license == wanted.to_string())))
}

fn rules(root: &Path) -> Rules {
    toml::from_str(&std::fs::read_to_string(root.join("deny.toml")).unwrap()).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn every_dependency_keeps_the_rules_of_deny_toml() {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metadata.packages.len() > 50, "cargo metadata lists the dependencies");
    let found = violations(&rules(root()), &metadata.packages, root());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_breach_of_each_rule_is_noticed() {
    let package = |name: &str, license: &str, source: &str| Package {
        name: name.into(),
        version: "1.0.0".into(),
        license: Some(license.into()),
        source: Some(source.into()),
        manifest_path: String::new(),
    };
    let crates_io = "registry+https://github.com/rust-lang/crates.io-index";
    let breaches = [
        (package("a", "MIT OR GPL-3.0-only", crates_io), false),
        (package("a", "GPL-3.0-only", crates_io), true),
        (package("a", "MIT AND GPL-3.0-only", crates_io), true),
        (package("openssl-sys", "MIT", crates_io), true),
        (package("a", "MIT", "git+https://example.org/a"), true),
        (package("a", "MIT", "registry+https://example.org/index"), true),
    ];
    for (package, breach) in breaches {
        let found = violations(&rules(root()), &[package], root());
        assert_eq!(!found.is_empty(), breach, "{found:?}");
    }
}
