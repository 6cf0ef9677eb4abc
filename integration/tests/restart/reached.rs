//! What others have of a pod stays theirs (addresses, ports), and what hangs on a daemon ends with it
//! (streams).

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use podhold_integration::{
    configs::{self, log_file},
    log, processes, rig,
    rig::{BUSYBOX, Rig},
    streams::{Client, PIPES, STDIN, STDOUT},
};
use podhold_proto::cri::*;
use tokio::time::timeout;

use crate::SOON;

async fn fetch(rig: &Rig, address: SocketAddr) -> String {
    let get = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    rig.machine.in_network(get).await.unwrap().unwrap_or_else(|error| panic!("{address}: {error}"))
}

#[tokio::test]
async fn addresses_and_ports_stay_with_the_pod() {
    let mut rig = rig!();
    let mut config = rig.pod("ports");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 18080, ..Default::default() }];
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "server", &["serve", "80", "hello"]).await;
    log::wait_for(&log_file(&config, "server"), "listening on 80").await;
    let address: SocketAddr = "10.88.0.1:18080".parse().unwrap();
    let network = rig.cri().pod_status(&pod).await.unwrap().network.unwrap();
    assert!(!network.ip.is_empty() && network.additional_ips.len() == 1, "{network:?}");
    assert_eq!(fetch(&rig, address).await, "hello\n");
    rig.daemon.kill(&rig.machine).await.unwrap();
    assert_eq!(fetch(&rig, address).await, "hello\n", "while nobody is there");
    rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().network.unwrap(), network);
    assert_eq!(fetch(&rig, address).await, "hello\n");
    // Nobody else is given the address of one that the daemon has not started itself.
    let other = rig.pod("other");
    let second = rig.cri().run_pod(&other).await.unwrap();
    assert_ne!(rig.cri().pod_status(&second).await.unwrap().network.unwrap().ip, network.ip);
    rig.cri().end_pod(&second).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn sessions_end_with_the_daemon_and_leave_no_process() {
    let mut rig = rig!();
    let config = rig.pod("sessions");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut cat = configs::container("cat", BUSYBOX, &["-c", "exec cat"]);
    cat.command = vec!["/bin/sh".into()];
    cat.stdin = true;
    let id = rig.run(&pod, &config, &cat).await;
    let mut attached = Client::command(&rig.machine, &rig.cri().attach_url(&id, PIPES).await).await;
    assert!(attached.send(STDIN, b"one\n").await);
    attached.until(STDOUT, "one\n").await;
    let script = "echo ready; sleep 1000 & exec sleep 1000";
    let url = rig.cri().exec_url(&id, &["/bin/sh", "-c", script], PIPES).await;
    let mut exec = Client::command(&rig.machine, &url).await;
    exec.until(STDOUT, "ready").await;
    let (cri, within) = (rig.cri().clone(), id.clone());
    let sync = tokio::spawn(async move { cri.exec(&within, &["/bin/sleep", "1000"]).await });
    let cgroup = rig.pod_cgroup(&pod);
    let count = || processes::in_cgroup(&cgroup).len();
    processes::until("pause, cat, and three that sleep", || count() == 5).await;

    rig.crash_and_restart().await;
    sync.await.unwrap().unwrap_err();
    assert!(attached.next().await.is_err() && exec.next().await.is_err());
    processes::until("only pause and cat", || count() == 2).await;
    // The container has not noticed, and its stdin is free for the next client.
    let mut again = Client::command(&rig.machine, &rig.cri().attach_url(&id, PIPES).await).await;
    assert!(again.send(STDIN, b"two\n").await);
    again.until(STDOUT, "two\n").await;
    drop(again);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn stats_and_events_are_there_after_a_crash() {
    let mut rig = rig!();
    let config = rig.pod("told");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "eats", &["eat", "50"]).await;
    log::wait_for(&log_file(&config, "eats"), "ate 50 MiB").await;
    rig.crash_and_restart().await;
    let answer = rig.cri().runtime.clone().get_container_events(GetEventsRequest::default()).await;
    let mut events = answer.unwrap().into_inner();
    let request = ContainerStatsRequest { container_id: id.clone() };
    let answer = rig.cri().runtime.clone().container_stats(request).await.unwrap().into_inner();
    let memory = answer.stats.unwrap().memory.unwrap().working_set_bytes.unwrap().value;
    assert!(memory > 50 << 20, "{memory}");
    rig.cri().stop(&id, 0).await.unwrap();
    let event = timeout(SOON, events.message()).await.expect("an event").unwrap().unwrap();
    assert_eq!((event.container_id, event.container_event_type), (id, 2));
    assert_eq!(event.containers_statuses[0].exit_code, 137);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Renamed and not opened anew when the daemon dies: the container writes on into the renamed file, and
/// the next daemon opens the new one.
#[tokio::test]
async fn a_rotation_that_was_cut_short_is_finished_by_the_next_daemon() {
    let mut rig = rig!();
    let config = rig.pod("rotated");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "ticks", &["tick", "100"]).await;
    let file = log_file(&config, "ticks");
    let renamed = file.with_extension("rotated");
    log::wait_for_start(std::slice::from_ref(&file), "20 ").await;
    std::fs::rename(&file, &renamed).unwrap();
    rig.daemon.kill(&rig.machine).await.unwrap();
    let so_far = log::lines(&renamed, "stdout").unwrap().len();
    log::wait_for_start(std::slice::from_ref(&renamed), &format!("{} ", so_far + 20)).await;
    assert!(!file.exists());
    rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
    let reopen = ReopenContainerLogRequest { container_id: id.clone() };
    rig.cri().runtime.clone().reopen_container_log(reopen).await.unwrap();
    assert!(file.exists());
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.cri().stop(&id, 30).await.unwrap();
    let mut lines = log::lines(&renamed, "stdout").unwrap();
    lines.extend(log::lines(&file, "stdout").unwrap());
    for (number, line) in lines.iter().enumerate().take(lines.len() - 1) {
        assert!(line.starts_with(&format!("{number} ")), "{number}: {line:?}");
    }
    assert_eq!(*lines.last().unwrap(), format!("end {}", lines.len() - 1));
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
