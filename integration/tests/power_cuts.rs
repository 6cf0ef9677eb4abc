//! The power is cut at random moments of pulls, removals and pods; the disk keeps what was flushed, and any part
//! of the rest. The long form is the program `podhold-powercuts`.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, io::Write, path::Path};

use podhold_integration::{
    kills::Dice,
    power::{judge, stage::Stage, table},
    require,
};

/// How many cuts, of two lives.
const CUTS: usize = 8;

#[tokio::test]
async fn a_power_cut_leaves_whole_images_and_nothing_that_stays() {
    require!(root, program "docker-registry", program "mkfs.ext4", program "ip", plugin "bridge", plugin "portmap");
    let mut dice = Dice::new(None);
    println!("seed {}", dice.seed);
    let mut stage = Stage::start().await;
    let truth = judge::truth(&mut stage).await;
    let mut table = table::Table::default();
    for options in ["noatime,commit=1", "noatime,commit=1,data=writeback"] {
        let life = stage.live(options, &[], &mut dice).await;
        let events = life.recording.events.len();
        assert!(
            life.recording.flushes() > 20,
            "the disk was flushed {} times only",
            life.recording.flushes()
        );
        for number in 0..CUTS / 2 {
            // Half of the cuts come while an image is pulled or removed.
            let moment = match number % 2 {
                0 => life.within_images(&mut dice),
                _ => usize::try_from(dice.below(events as u64 + 1)).unwrap(),
            };
            let disk = life.recording.cut(moment, &mut dice);
            let verdict = judge::judge(&mut stage, &disk, options, (&life.steps, moment), &truth).await;
            let verb = table::verb_at(&life.steps, moment);
            table.add(verb, &format!("{options}, cut at {moment} of {events} in {verb}"), &verdict);
        }
    }
    stage.stop().await;
    println!("{table}");
    assert!(table.faults.is_empty(), "{}", table.faults.join("\n"));
}

/// What the whole file relies on: this disk loses what was not synced, and keeps what was.
#[tokio::test]
async fn the_disk_loses_what_was_not_synced_and_nothing_else() {
    require!(root, program "mkfs.ext4", program "docker-registry");
    let mut dice = Dice::new(None);
    println!("seed {}", dice.seed);
    let stage = Stage::start().await;
    let synced = |directory: &Path| {
        let mut file = fs::File::create(directory.join("synced.new")).unwrap();
        file.write_all(&[b's'; 30_000]).unwrap();
        file.sync_all().unwrap();
        fs::rename(directory.join("synced.new"), directory.join("synced")).unwrap();
        fs::File::open(directory).unwrap().sync_all().unwrap();
    };
    let hasty = |directory: &Path| {
        fs::write(directory.join("hasty.new"), [b'h'; 30_000]).unwrap();
        fs::rename(directory.join("hasty.new"), directory.join("hasty")).unwrap();
        // Somebody else's sync commits the journal: the name lasts.
        let other = fs::File::create(directory.join("other")).unwrap();
        other.sync_all().unwrap();
    };
    let recording = stage
        .record_work("noatime", |directory| {
            synced(directory);
            hasty(directory);
        })
        .await;
    let (mut lost, mut cuts) = (0, 0);
    let end = recording.events.len();
    for _ in 0..20 {
        let disk = recording.cut(end, &mut dice);
        cuts += 1;
        let (kept, hasty) = stage
            .look(&disk, |directory| {
                (fs::read(directory.join("synced")).ok(), fs::read(directory.join("hasty")).ok())
            })
            .await;
        assert!(kept.is_some_and(|kept| kept == [b's'; 30_000]), "what was synced is lost");
        lost += usize::from(hasty.is_none_or(|hasty| hasty != [b'h'; 30_000]));
    }
    println!("{lost} of {cuts} cuts lose the file that was not synced");
    assert!(lost > 0, "the disk loses nothing");
    stage.stop().await;
}
