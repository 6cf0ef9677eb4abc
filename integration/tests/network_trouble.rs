//! CNI plugins that fail or hang: the pod is refused, nothing stays behind, other pods go on.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use podhold_integration::{rig, rig::Rig};
use podhold_proto::cri::{ListPodSandboxRequest, StatusRequest};
use tonic::Code;

/// Puts a plugin of our own, a shell script, behind the bridge in the chain.
fn add_plugin(rig: &Rig, script: &str) {
    let program = rig.places.plugins().join("trouble");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = rig.places.cni().join("10-podhold.conflist");
    let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(serde_json::json!({"type": "trouble"}));
    // Ahead of the good one by its name; renamed into place, as an administrator would.
    let new = rig.places.cni().join("new");
    fs::write(&new, list.to_string()).unwrap();
    fs::rename(new, rig.places.cni().join("00-trouble.conflist")).unwrap();
}

fn remove_plugin(rig: &Rig) {
    fs::remove_file(rig.places.cni().join("00-trouble.conflist")).unwrap();
}

async fn pods(rig: &Rig) -> usize {
    let request = ListPodSandboxRequest::default();
    rig.cri().runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items.len()
}

#[tokio::test]
async fn a_plugin_that_fails_fails_the_pod_with_its_own_words() {
    let rig = rig!();
    add_plugin(
        &rig,
        r#"[ "$CNI_COMMAND" = ADD ] || exit 0
           echo '{"cniVersion":"1.0.0","code":100,"msg":"out of luck","details":"try tomorrow"}'; exit 1"#,
    );
    let refusal = rig.cri().run_pod(&rig.pod("unlucky")).await.unwrap_err();
    assert!(refusal.message().contains("out of luck") && refusal.message().contains("trouble"), "{refusal}");
    assert_eq!(pods(&rig).await, 0);
    remove_plugin(&rig);
    let pod = rig.cri().run_pod(&rig.pod("lucky")).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_ended_and_holds_nobody_up() {
    let rig = rig!();
    add_plugin(&rig, r#"[ "$CNI_COMMAND" = ADD ] || exit 0; sleep 1000 & wait"#);
    let config = rig.pod("hanging");
    let began = Instant::now();
    let (refusal, answered) = tokio::join!(rig.cri().run_pod(&config), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = Instant::now();
        pods(&rig).await;
        asked.elapsed()
    });
    let refusal = refusal.unwrap_err();
    assert!(
        matches!(refusal.code(), Code::DeadlineExceeded | Code::Unavailable | Code::Internal),
        "{refusal}"
    );
    assert!(refusal.message().contains("trouble"), "it names the plugin: {refusal}");
    // The configured time-out is 10 seconds.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert!(answered < Duration::from_millis(500), "a list took {answered:?}");
    remove_plugin(&rig);
    rig.finish().await;
}

#[tokio::test]
async fn what_a_plugin_says_is_not_trusted() {
    let rig = rig!();
    for script in [
        "echo this is no JSON",
        r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"no address"}]}'"#,
        "head -c 100000000 /dev/zero",
    ] {
        add_plugin(&rig, &format!("cat >/dev/null; [ \"$CNI_COMMAND\" = ADD ] || exit 0; {script}"));
        let refusal = rig.cri().run_pod(&rig.pod("odd")).await.expect_err(script);
        assert!(refusal.message().contains("trouble"), "it names the plugin: {refusal}");
        assert_eq!(pods(&rig).await, 0);
        remove_plugin(&rig);
    }
    rig.finish().await;
}

#[tokio::test]
async fn without_a_network_the_runtime_says_so() {
    let rig = rig!();
    let path = rig.places.cni().join("10-podhold.conflist");
    let list = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let mut runtime = rig.cri().runtime.clone();
    let mut ready = async || {
        let answer = runtime.status(StatusRequest::default()).await.unwrap().into_inner();
        let conditions = answer.status.unwrap().conditions;
        conditions.iter().find(|c| c.r#type == "NetworkReady").unwrap().clone()
    };
    let condition = ready().await;
    assert!(!condition.status && !condition.message.is_empty(), "{condition:?}");
    let refusal = rig.cri().run_pod(&rig.pod("without")).await.unwrap_err();
    assert!(refusal.message().contains(&rig.places.cni().display().to_string()), "{refusal}");
    fs::write(&path, list).unwrap();
    assert!(ready().await.status);
    let pod = rig.cri().run_pod(&rig.pod("with")).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
