//! The logger is killed: another one takes its place. The container neither blocks nor dies of it.

use podhold_integration::{
    configs::{self, log_file},
    log, processes, rig,
    rig::BUSYBOX,
    streams::{Client, OUTPUT, STDIN, STDOUT, TERMINAL},
};
use podhold_proto::cri::*;

use crate::{Kind, Pod, SOON};

const KILLS: u64 = 5;

/// The next logger, once there is one.
async fn next(pod: &str, last: i32) -> i32 {
    let other = || processes::forks(pod).into_iter().find(|&pid| pid != last && is_logger(pid));
    processes::until("another logger", || other().is_some()).await;
    other().unwrap()
}

fn is_logger(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "podhold-logger\n")
}

#[tokio::test]
async fn containers_log_on_through_another_logger() {
    let mut rig = rig!();
    let pod = Pod::start(&rig, "logs", Kind::Ordinary, 1).await;
    let ticks = rig.run(&pod.id, &pod.config, &pod.container("ticks", &["tick", "5000"])).await;
    let mut shell = configs::container("shell", BUSYBOX, &["-c", "while read line; do echo got $line; done"]);
    shell.command = vec!["/bin/sh".into()];
    (shell.stdin, shell.tty) = (true, true);
    let shell = rig.run(&pod.id, &pod.config, &shell).await;
    let file = log_file(&pod.config, "ticks");
    log::wait_for_start(std::slice::from_ref(&file), "1000 ").await;
    let mut watching = Client::command(&rig.machine, &rig.cri().attach_url(&ticks, OUTPUT).await).await;
    watching.until(STDOUT, " ").await;
    let mut logger = processes::holders(&pod.id).logger;
    for round in 0..KILLS {
        // With nobody there it is the same.
        let away = round == 2;
        if away {
            rig.daemon.kill(&rig.machine).await.unwrap();
        }
        processes::murder(logger);
        logger = next(&pod.id, logger).await;
        if away {
            rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
        }
        let so_far = std::fs::metadata(&file).unwrap().len();
        processes::until("more lines", || std::fs::metadata(&file).unwrap().len() > so_far + 10_000).await;
    }
    while watching.next().await.is_ok() {}
    // A rotation, a new client, and a terminal: as ever.
    let renamed = file.with_extension("rotated");
    std::fs::rename(&file, &renamed).unwrap();
    let request = ReopenContainerLogRequest { container_id: ticks.clone() };
    rig.cri().runtime.clone().reopen_container_log(request).await.unwrap();
    assert!(file.exists());
    let mut client = Client::command(&rig.machine, &rig.cri().attach_url(&shell, TERMINAL).await).await;
    assert!(client.send(STDIN, b"word\n").await);
    client.until(STDOUT, "got word").await;
    log::wait_for_start(&[log_file(&pod.config, "shell")], "got word").await;
    drop(client);

    rig.cri().stop(&ticks, 30).await.unwrap();
    assert_eq!(rig.cri().ended(&ticks, SOON).await.unwrap().exit_code, 0, "not ended by a broken pipe");
    let (mut numbers, mut torn) = (Vec::new(), 0_u64);
    let text = [std::fs::read_to_string(&renamed).unwrap(), std::fs::read_to_string(&file).unwrap()].concat();
    let mut end = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [_, "stdout", "F", "end", count] => end = Some(count.parse::<u64>().unwrap()),
            [time, "stdout", "F", number, rest] if time.len() == 30 => match number.parse::<u64>() {
                Ok(number) if rest.len() as u64 == number % 97 => numbers.push(number),
                _ => torn += 1,
            },
            _ => torn += 1,
        }
    }
    let end = end.expect("the last line");
    assert!(numbers.is_sorted_by(|one, two| one < two), "none is doubled");
    let lost = end - numbers.len() as u64;
    // At each kill: a buffer of 64 KiB that was read and not written, and a line cut in two.
    assert!(torn <= 2 * KILLS && lost <= KILLS * 5000, "{torn} torn, {lost} lost of {end}");
    println!("{end} lines, {KILLS} loggers killed: {lost} lines lost, {torn} torn");
    rig.cri().end_pod(&pod.id).await.unwrap();
    rig.finish().await;
}
