//! A pull that was cut short, with the daemon or by its client, is gone on with and not begun anew.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use podhold_integration::{
    bad_registry::{self, Asked, HALTS_AT},
    rig,
    rig::Rig,
};
use podhold_proto::cri::StatusRequest;
use tokio::time::{Instant, interval, timeout};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(60);

/// Where the daemon tells numbers, in its machine.
const METRICS: &str = "127.0.0.1:9393";

fn image() -> String {
    format!("{}/halting:1", bad_registry::ADDRESS)
}

async fn registry(rig: &Rig) -> Asked {
    rig.places.allow_plain_http(bad_registry::ADDRESS).unwrap();
    bad_registry::start(&rig.machine).await.unwrap()
}

/// Files with what has arrived of unfinished layers, and their lengths.
fn kept(rig: &Rig) -> Vec<(PathBuf, u64)> {
    let files = fs::read_dir(rig.places.state().join("images/partial")).unwrap();
    let found = files.map(|file| file.unwrap()).filter_map(|f| Some((f.path(), f.metadata().ok()?.len())));
    found.collect()
}

/// Pulls until all that the registry gives is on disk: nothing tells a client when that is. Then `cut` ends it.
async fn pull_until_it_halts(rig: &Rig) {
    let (cri, image) = (rig.cri(), image());
    let arrived = async {
        let mut ticks = interval(Duration::from_millis(20));
        let deadline = Instant::now() + SOON;
        while kept(rig).iter().all(|(_, length)| *length < HALTS_AT as u64) {
            assert!(Instant::now() < deadline, "{:?}", kept(rig));
            ticks.tick().await;
        }
    };
    tokio::select! {
        pulled = cri.pull(&image) => panic!("the registry has halted: {pulled:?}"),
        () = arrived => {}
    }
}

/// Pulls to the end, and checks that only the rest was asked for.
async fn goes_on(rig: &Rig, asked: &Asked) {
    let pulled = timeout(SOON, rig.cri().pull(&image())).await;
    pulled.expect("no answer").unwrap();
    // The configuration is a blob too.
    let parts: Vec<usize> = asked.of("halting").into_iter().filter(|from| *from > 0).collect();
    assert_eq!(parts, [HALTS_AT], "{:?}", asked.of("halting"));
    assert_eq!(kept(rig), []);
}

/// What the daemon says of itself at `/metrics`.
async fn numbers(rig: &Rig) -> String {
    let ask = || {
        let mut stream = TcpStream::connect(METRICS).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    rig.machine.in_network(ask).await.unwrap()
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_a_layer_asks_for_the_rest_only() {
    let mut rig = rig!();
    let text = fs::read_to_string(rig.places.config()).unwrap();
    fs::write(rig.places.config(), format!("{text}\n[metrics]\naddress = \"{METRICS}\"\n")).unwrap();
    let asked = registry(&rig).await;
    pull_until_it_halts(&rig).await;
    rig.crash_and_restart().await;
    goes_on(&rig, &asked).await;
    let numbers = numbers(&rig).await;
    let resumed = format!("podhold_pull_resumed_bytes_total {HALTS_AT}\n");
    for line in [&resumed, "podhold_pulls 0\n", "podhold_pulls_total{outcome=\"pulled\"} 1\n"] {
        assert!(numbers.contains(line), "{line:?} is not in {numbers}");
    }
    let request = StatusRequest { verbose: true };
    let status = rig.cri().runtime.clone().status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    assert_eq!(info["pulls"]["resumed_bytes"], HALTS_AT);
    rig.finish().await;
}

#[tokio::test]
async fn a_client_that_comes_back_gets_the_rest_only() {
    let rig = rig!();
    let asked = registry(&rig).await;
    pull_until_it_halts(&rig).await;
    goes_on(&rig, &asked).await;
    rig.finish().await;
}

#[tokio::test]
async fn what_was_kept_and_has_changed_meanwhile_is_fetched_anew() {
    let rig = rig!();
    let asked = registry(&rig).await;
    pull_until_it_halts(&rig).await;
    let (path, length) = kept(&rig).remove(0);
    fs::write(&path, vec![0; usize::try_from(length).unwrap()]).unwrap();
    let pulled = timeout(SOON, rig.cri().pull(&image())).await;
    pulled.expect("no answer").unwrap();
    let layer = asked.of("halting").into_iter().skip_while(|from| *from == 0);
    assert_eq!(layer.collect::<Vec<_>>(), [HALTS_AT, 0], "the rest, and then the whole");
    assert_eq!(kept(&rig), []);
    rig.finish().await;
}
