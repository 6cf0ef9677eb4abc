//! The log test: no line is lost, doubled or torn, however often the daemon dies and the log is rotated.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use podhold_integration::{configs::log_file, daemon::Daemon, log, rig, rig::Rig};
use podhold_proto::cri::ReopenContainerLogRequest;

use crate::SOON;

const KILLS: usize = 50;
const ROTATIONS: usize = 20;
/// Lines a second.
const RATE: &str = "10000";

/// Rotates as the kubelet does; `file.N` is the older the smaller N is. A call that the daemon does not live
/// to answer is repeated.
async fn rotate(rig: &mut Rig, id: &str, file: &Path, number: usize, kill: bool) -> PathBuf {
    let rotated = file.with_extension(format!("{number:03}"));
    fs::rename(file, &rotated).unwrap();
    let request = ReopenContainerLogRequest { container_id: id.to_owned() };
    let mut runtime = rig.cri().runtime.clone();
    let again = request.clone();
    let call = tokio::spawn(async move { runtime.reopen_container_log(again).await });
    if kill {
        rig.daemon.kill(&rig.machine).await.unwrap();
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    }
    if call.await.unwrap().is_err() {
        assert!(kill, "a daemon that lives reopens");
        rig.cri().runtime.clone().reopen_container_log(request).await.unwrap();
    }
    rotated
}

#[tokio::test]
async fn no_line_is_lost_doubled_or_torn_over_50_kills_and_20_rotations() {
    let mut rig = rig!();
    let config = rig.pod("lines");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "ticks", &["tick", RATE]).await;
    let file = log_file(&config, "ticks");
    log::wait_for_start(std::slice::from_ref(&file), "0 ").await;
    let (mut files, mut kills, mut in_call) = (Vec::new(), 0, 0);
    // Two kills in five are in the middle of a rotation.
    for step in 0..KILLS {
        let turn = step * 2 % 5;
        if turn < 2 && files.len() < ROTATIONS {
            let during = turn == 0;
            files.push(rotate(&mut rig, &id, &file, files.len(), during).await);
            in_call += usize::from(during);
            if during {
                kills += 1;
                continue;
            }
        }
        rig.daemon.kill(&rig.machine).await.unwrap();
        tokio::time::sleep(Duration::from_millis(u64::try_from(step * 7 % 40).unwrap())).await;
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
        kills += 1;
    }
    rig.cri().stop(&id, 30).await.unwrap();
    assert_eq!(rig.cri().ended(&id, SOON).await.unwrap().exit_code, 0);
    files.push(file);
    assert_eq!((kills, files.len()), (KILLS, ROTATIONS + 1));

    let (mut next, mut last, mut end) = (0_u64, String::new(), None);
    for file in &files {
        for entry in log::entries(file).unwrap() {
            let place = || format!("{}: after line {next}: {entry:?}", file.display());
            assert!(entry.whole && entry.stream == "stdout" && end.is_none(), "{}", place());
            assert!(
                entry.time >= last && entry.time.len() == "2026-01-01T00:00:00.000000000Z".len(),
                "{}",
                place()
            );
            last.clone_from(&entry.time);
            if let Some(count) = entry.text.strip_prefix("end ") {
                end = Some(count.parse::<u64>().unwrap());
                continue;
            }
            let whole = format!("{next} {:x<1$}", "", usize::try_from(next % 97).unwrap());
            assert_eq!(entry.text, whole, "{}", place());
            next += 1;
        }
    }
    assert_eq!(end, Some(next));
    println!(
        "{next} lines, {kills} kills ({in_call} of them within a reopen), {ROTATIONS} rotations, {} files: \
         none missing, doubled or torn",
        files.len()
    );
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
