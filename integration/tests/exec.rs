//! ExecSync: output, codes and time limits.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use podhold_integration::{
    configs, rig,
    rig::{BUSYBOX, Rig},
};
use tonic::Code;

async fn shell(rig: &Rig) -> (String, String) {
    let config = rig.pod("exec");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("shell", BUSYBOX, &["1000"]);
    container.command = vec!["/bin/sleep".into()];
    let id = rig.run(&pod, &config, &container).await;
    (pod, id)
}

#[tokio::test]
async fn output_and_exit_code_are_the_commands_own() {
    let rig = rig!();
    let (pod, id) = shell(&rig).await;
    let done = rig.cri().exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"]).await.unwrap();
    assert_eq!(
        (done.stdout.as_slice(), done.stderr.as_slice(), done.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 5)
    );
    let killed = rig.cri().exec(&id, &["sh", "-c", "kill -KILL $$"]).await.unwrap();
    assert_eq!(killed.exit_code, 137);
    let quiet = rig.cri().exec(&id, &["true"]).await.unwrap();
    assert_eq!((quiet.stdout.len(), quiet.stderr.len(), quiet.exit_code), (0, 0, 0));
    let environment = rig.cri().exec_well(&id, &["env"]).await.unwrap();
    assert!(environment.lines().any(|line| line == "PATH=/bin"), "{environment}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_command_over_its_time_is_killed_alone() {
    let rig = rig!();
    let (pod, id) = shell(&rig).await;
    let began = Instant::now();
    let late = rig.cri().exec_within(&id, &["sleep", "1000"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let left = rig.cri().exec_well(&id, &["ps", "-o", "args"]).await.unwrap();
    assert_eq!(left.lines().filter(|line| line.contains("sleep 1000")).count(), 1, "{left}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_background_child_that_keeps_the_pipe_does_not_hang_the_call() {
    let rig = rig!();
    let (pod, id) = shell(&rig).await;
    let began = Instant::now();
    let done = rig.cri().exec(&id, &["sh", "-c", "sleep 60 & echo started"]).await.unwrap();
    assert_eq!((done.stdout.as_slice(), done.exit_code), (&b"started\n"[..], 0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_the_reason() {
    let rig = rig!();
    let (pod, id) = shell(&rig).await;
    let missing = rig.cri().exec(&id, &["/no/such/program"]).await;
    match missing {
        // As a shell has it, or as an error: both tell.
        Ok(done) => assert!(matches!(done.exit_code, 126..=128), "{done:?}"),
        Err(status) => assert!(status.message().contains("/no/such/program"), "{status}"),
    }
    assert_eq!(rig.cri().exec(&id, &[]).await.unwrap_err().code(), Code::InvalidArgument);
    rig.cri().stop(&id, 0).await.unwrap();
    assert_eq!(rig.cri().exec(&id, &["true"]).await.unwrap_err().code(), Code::FailedPrecondition);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn commands_run_side_by_side() {
    let rig = rig!();
    let (pod, id) = shell(&rig).await;
    let began = Instant::now();
    let command = ["sh", "-c", "sleep 1; echo done"];
    let done = tokio::join!(
        rig.cri().exec_well(&id, &command),
        rig.cri().exec_well(&id, &command),
        rig.cri().exec_well(&id, &command),
        rig.cri().exec_well(&id, &command),
    );
    for each in [done.0, done.1, done.2, done.3] {
        assert_eq!(each.unwrap(), "done\n");
    }
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
