//! Exec, Attach and PortForward: what is refused before a URL is given out.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{
    configs, rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use tonic::Code;

async fn exec(rig: &Rig, request: ExecRequest) -> Result<String, tonic::Status> {
    Ok(rig.cri().runtime.clone().exec(request).await?.into_inner().url)
}

async fn attach(rig: &Rig, request: AttachRequest) -> Result<String, tonic::Status> {
    Ok(rig.cri().runtime.clone().attach(request).await?.into_inner().url)
}

async fn forward(rig: &Rig, pod: &str, port: &[i32]) -> Result<String, tonic::Status> {
    let request = PortForwardRequest { pod_sandbox_id: pod.into(), port: port.to_vec() };
    Ok(rig.cri().runtime.clone().port_forward(request).await?.into_inner().url)
}

/// The code is this one, and the message names every one of the words.
fn refused(answer: Result<String, tonic::Status>, code: Code, words: &[&str]) {
    let status = answer.expect_err("refused");
    assert_eq!(status.code(), code, "{status}");
    for word in words {
        assert!(status.message().contains(word), "{word} is not in {status}");
    }
}

fn request(container: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.into(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_met_gets_no_url() {
    use Code::{FailedPrecondition, InvalidArgument, NotFound};
    let rig = rig!();
    let config = rig.pod("join");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("shell", BUSYBOX, &["1000"]);
    container.command = vec!["/bin/sleep".into()];
    let id = rig.run(&pod, &config, &container).await;
    container.metadata.as_mut().unwrap().name = "terminal".into();
    (container.tty, container.stdin) = (true, true);
    let terminal = rig.run(&pod, &config, &container).await;

    let good = request(&id);
    assert!(exec(&rig, good.clone()).await.unwrap().starts_with("http://127.0.0.1:"));
    refused(
        exec(&rig, ExecRequest { container_id: String::new(), ..good.clone() }).await,
        InvalidArgument,
        &["container_id"],
    );
    refused(exec(&rig, request("0123456789abcdef")).await, NotFound, &["0123456789abcdef"]);
    refused(exec(&rig, ExecRequest { cmd: vec![], ..good.clone() }).await, InvalidArgument, &["cmd"]);
    let long = vec!["x".repeat(3 << 20)];
    refused(exec(&rig, ExecRequest { cmd: long, ..good.clone() }).await, InvalidArgument, &["cmd"]);
    refused(
        exec(&rig, ExecRequest { stdout: false, ..good.clone() }).await,
        InvalidArgument,
        &["stdin", "stdout"],
    );
    let both = ExecRequest { tty: true, stderr: true, ..good.clone() };
    refused(exec(&rig, both).await, InvalidArgument, &["stderr", "tty"]);

    let good = AttachRequest { container_id: id.clone(), stdout: true, stderr: true, ..Default::default() };
    assert!(attach(&rig, good.clone()).await.unwrap().starts_with("http://127.0.0.1:"));
    refused(
        attach(&rig, AttachRequest { stdin: true, ..good.clone() }).await,
        InvalidArgument,
        &["stdin", &id],
    );
    let tty = AttachRequest { tty: true, stderr: false, ..good.clone() };
    refused(attach(&rig, tty.clone()).await, InvalidArgument, &["tty", "false"]);
    refused(
        attach(&rig, AttachRequest { container_id: terminal.clone(), ..good.clone() }).await,
        InvalidArgument,
        &["tty", "true"],
    );
    attach(&rig, AttachRequest { container_id: terminal, stdin: true, ..tty }).await.unwrap();
    refused(
        attach(&rig, AttachRequest { container_id: "nope".into(), ..good.clone() }).await,
        NotFound,
        &["nope"],
    );

    rig.cri().stop(&id, 0).await.unwrap();
    refused(exec(&rig, request(&id)).await, FailedPrecondition, &["exited"]);
    refused(attach(&rig, good).await, FailedPrecondition, &["exited"]);

    for ports in [&[][..], &[1], &[80, 65535]] {
        assert!(forward(&rig, &pod, ports).await.unwrap().starts_with("http://127.0.0.1:"));
    }
    for ports in [&[0][..], &[80, -1], &[65536], &[80; 300]] {
        refused(forward(&rig, &pod, ports).await, InvalidArgument, &["port"]);
    }
    refused(forward(&rig, "", &[80]).await, InvalidArgument, &["pod_sandbox_id"]);
    refused(forward(&rig, "nope", &[80]).await, NotFound, &["nope"]);
    rig.cri().stop_pod(&pod).await.unwrap();
    refused(forward(&rig, &pod, &[80]).await, FailedPrecondition, &[&pod]);
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.finish().await;
}
