//! A configuration that cannot be used is refused before anything is done, with file, line and key.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use podhold_integration::{machine::Machine, programs, require};

/// What `podhold serve` says of this configuration, and its exit code.
async fn serve(machine: &Machine, text: &str) -> (i32, String) {
    let path = machine.directory().join("config.toml");
    fs::write(&path, text).unwrap();
    let program = programs::built("podhold").display().to_string();
    let limited = ["timeout", "10", &program, "serve", "--config", &path.display().to_string()];
    let output = machine.run(limited).await.unwrap();
    (output.code, output.stdout + &output.stderr)
}

#[tokio::test]
async fn mistakes_are_named_with_file_line_and_key() {
    require!(root);
    let machine = Machine::start().await.unwrap();
    let root = machine.directory().display().to_string();
    let places = format!("run_dir = \"{root}/run\"\nstate_dir = \"{root}/state\"\n");
    let cases = [
        ("colour = \"blue\"\n", "colour", "3"),
        ("[cni]\nplugin_dirs = []\n", "plugin_dirs", "4"),
        ("[cgroups]\ndriver = \"magic\"\n", "magic", "4"),
        ("[cgroups]\nparent = \"no/slash\"\n", "parent", ""),
        ("log_level = 7\n", "log_level", "3"),
        ("[cni\n", "cni", "3"),
    ];
    for (text, key, line) in cases {
        let (code, said) = serve(&machine, &(places.clone() + text)).await;
        assert!(code != 0 && code != 124, "{text:?}: exit code {code}: {said}");
        for word in ["config.toml", key, line] {
            assert!(
                said.contains(word) || (word == "config.toml" && line.is_empty()),
                "{text:?}: no {word:?} in {said:?}"
            );
        }
        assert!(!machine.directory().join("run").exists(), "{text:?}: something was begun");
    }
    let output = machine
        .run([&programs::built("podhold").display().to_string(), "serve", "--config", "/no/such.toml"])
        .await
        .unwrap();
    assert!(output.code != 0 && output.stderr.contains("/no/such.toml"), "{output:?}");
    machine.stop().await.unwrap();
}
