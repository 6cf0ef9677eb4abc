//! Credentials of pulls never reach the log, at whatever level, nor messages.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{bad_registry, daemon, rig};
use podhold_proto::cri::{AuthConfig, ImageSpec, PullImageRequest};
use tonic::Code;

/// What no log may show: as it is, and in base64 at each of the offsets it may have there.
const SECRET: &str = "hush-hush-hush-hush";
const IN_BASE64: [&str; 3] =
    ["aHVzaC1odXNoLWh1c2gtaHVza", "h1c2gtaHVzaC1odXNoLWh1c2", "odXNoLWh1c2gtaHVzaC1odXN"];

#[tokio::test]
async fn credentials_never_reach_the_log() {
    let mut rig = rig!();
    let config = daemon::configuration(&rig.places, &rig.cgroup);
    let config = config.replace("\"info,podhold=debug\"", "\"trace\"");
    assert!(config.contains("\"trace\""));
    std::fs::write(rig.places.config(), &config).unwrap();
    // A helper's secret and one of a file, for a caller that brings none.
    let file = rig.places.hosts().join("auth.json");
    let auths = serde_json::json!({"auths": {bad_registry::ADDRESS: {"username": "u", "password": SECRET}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let with_file = config.replace("[image]\n", &format!("[image]\ncredential_files = [{file:?}]\n"));
    std::fs::write(rig.places.config(), with_file).unwrap();
    rig.places.allow_plain_http(bad_registry::ADDRESS).unwrap();
    bad_registry::start(&rig.machine).await.unwrap();
    rig.restart().await;

    let text = || SECRET.to_owned();
    let forms = [
        AuthConfig { username: "u".into(), password: text(), ..Default::default() },
        AuthConfig { identity_token: text(), ..Default::default() },
        AuthConfig { registry_token: text(), ..Default::default() },
        AuthConfig { auth: "dTpodXNoLWh1c2gtaHVzaC1odXNo".into(), ..Default::default() },
        AuthConfig { auth: text(), ..Default::default() },
        AuthConfig {
            username: "u".into(),
            password: text(),
            server_address: "https://other.example".into(),
            ..Default::default()
        },
        AuthConfig::default(),
    ];
    for auth in forms {
        let name = format!("{}/unauthorized:1", bad_registry::ADDRESS);
        let request = PullImageRequest {
            image: Some(ImageSpec { image: name, ..Default::default() }),
            auth: Some(auth),
            ..Default::default()
        };
        let refusal = rig.cri().images.clone().pull_image(request).await.unwrap_err();
        assert!(matches!(refusal.code(), Code::Unauthenticated | Code::InvalidArgument), "{refusal}");
        assert!(!refusal.message().contains("hush"), "{refusal}");
    }
    let log = daemon::log(&rig.places);
    assert!(log.contains("TRACE") && log.contains("unauthorized"), "the log is as wordy as it should be");
    for secret in [SECRET].iter().chain(&IN_BASE64) {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
    std::fs::write(rig.places.config(), daemon::configuration(&rig.places, &rig.cgroup)).unwrap();
    rig.restart().await;
    rig.finish().await;
}
