//! Container logs, in the CRI format, whole and in order.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, time::Duration};

use podhold_integration::{
    configs::{self, log_file},
    log, rig,
    rig::BUSYBOX,
};
use podhold_proto::cri::ReopenContainerLogRequest;
use tonic::Code;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn both_streams_are_kept_apart_and_complete() {
    let rig = rig!();
    let config = rig.pod("streams");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let words = ["print", "one", "two", "+", "print-error", "wrong", "+", "lines", "3000", "100"];
    let id = rig.probe(&pod, &config, "talker", &words).await;
    rig.cri().ended(&id, SOON).await.unwrap();
    let path = log_file(&config, "talker");
    let out = log::lines(&path, "stdout").unwrap();
    assert_eq!(out[..2], ["one", "two"]);
    assert_eq!(out.len(), 3002);
    for (number, line) in out[2..].iter().enumerate() {
        assert!(line.starts_with(&format!("{number} ")) && line.len() == 100, "{line}");
    }
    assert_eq!(log::lines(&path, "stderr").unwrap(), ["wrong"]);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_long_line_and_an_unfinished_one_are_kept_whole() {
    let rig = rig!();
    let config = rig.pod("long");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("talker", BUSYBOX, &[]);
    container.command =
        vec!["/bin/sh".into(), "-c".into(), "head -c 50000 /dev/zero | tr '\\0' x; echo; printf end".into()];
    let id = rig.run(&pod, &config, &container).await;
    rig.cri().ended(&id, SOON).await.unwrap();
    let entries = log::entries(&log_file(&config, "talker")).unwrap();
    assert!(entries.iter().any(|entry| !entry.whole), "the long line is in pieces");
    let text: String = entries.iter().map(|entry| entry.text.as_str()).collect();
    assert_eq!(text.len(), 50_000 + "end".len());
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn no_line_is_lost_or_torn_when_the_log_is_rotated() {
    let rig = rig!();
    let config = rig.pod("rotation");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("talker", BUSYBOX, &[]);
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; sleep 1000";
    container.command = vec!["/bin/sh".into(), "-c".into(), script.into()];
    let id = rig.run(&pod, &config, &container).await;
    let path = log_file(&config, "talker");
    log::wait_for(&path, "line 0").await;
    let mut files = Vec::new();
    for number in 0..20 {
        let renamed = path.with_extension(format!("{number}"));
        fs::rename(&path, &renamed).unwrap();
        files.push(renamed);
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        rig.cri().runtime.clone().reopen_container_log(request).await.unwrap();
        assert!(path.exists(), "there is no new log file");
    }
    files.push(path.clone());
    log::wait_for_start(&files, "line 19999").await;
    let all: Vec<String> = files.iter().flat_map(|file| log::lines(file, "stdout").unwrap()).collect();
    let expected: Vec<String> = (0..20_000).map(|number| format!("line {number}")).collect();
    assert!(all == expected, "{} lines of {}", all.len(), expected.len());
    rig.cri().stop(&id, 0).await.unwrap();
    let request = ReopenContainerLogRequest { container_id: id };
    let refused = rig.cri().runtime.clone().reopen_container_log(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
