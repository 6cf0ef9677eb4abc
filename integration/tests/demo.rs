//! The README's demo does what it says and leaves nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use podhold_integration::{leaks::Snapshot, machine::Machine, programs, require};

async fn snapshot(machine: &Machine) -> Snapshot {
    let program = programs::built("podhold-machine").display().to_string();
    let arguments = [&program, "snapshot", "--cgroup", "podhold-demo", "--files", "/var/lib/cni/networks"];
    serde_json::from_str(&machine.run_well(arguments).await.unwrap()).unwrap()
}

#[tokio::test]
async fn the_demo_shows_its_pod_and_leaves_nothing() {
    require!(root, program "docker-registry", program "ip", program "nft", plugin "bridge");
    let machine = Machine::start().await.unwrap();
    machine.run_well(["mkdir", "-p", "/var/lib/cni/networks"]).await.unwrap();
    let before = snapshot(&machine).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/run.sh").display().to_string();
    let directory = programs::built("podhold").parent().unwrap().display().to_string();
    let output = machine.run(["timeout", "120", &script, &directory]).await.unwrap();
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 0, "{said}");
    for line in [
        "preparing",
        "found: hello from the pod",
        "listening on 8080",
        "the server says hello from the pod",
        "the pod has ended with exit code 0",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    for name in ["prepare", "verify", "server", "client"] {
        assert!(said.contains(name), "{name} has no lines of its own in {said}");
    }
    assert_eq!(before.compare(&snapshot(&machine).await), []);
    machine.stop().await.unwrap();
}
