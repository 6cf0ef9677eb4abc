//! What is one's for the whole host: the boot record, images, the directories themselves.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use podhold_integration::{
    configs,
    daemon::Daemon,
    rig,
    rig::{BUSYBOX, Rig},
};

use super::{
    Life,
    damage::{Damage, Good, OF_RECORDS},
    damaged, meanwhile, reported,
};

#[tokio::test]
async fn a_damaged_boot_record_is_named_and_made_anew() {
    let mut rig = rig!();
    let life = Life::start(&rig, &rig.pod("boots")).await;
    for how in OF_RECORDS {
        // The id in it is that of a boot: another one is a reboot.
        if how == Damage::AnotherId {
            continue;
        }
        let file = rig.places.state().join("boot.json");
        let good = meanwhile(&mut rig, |_| Good::damage(&file, how)).await;
        reported(&rig, &file, how).await;
        life.is_well(&rig).await;
        // What is no file stays in its place.
        if how == Damage::Directory {
            good.put_back();
        } else {
            good.forget();
            rig.crash_and_restart().await;
            assert!(damaged(&rig).await.is_empty(), "{how:?}");
        }
    }
    rig.cri().end_pod(&life.pod).await.unwrap();
    rig.finish().await;
}

/// The records of a kind of the image store, and the image that is there.
fn records(rig: &Rig, directory: &str, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(rig.places.state().join("images").join(directory)).unwrap().flatten();
    if name.is_empty() {
        entries.map(|e| e.path()).collect()
    } else {
        entries.map(|e| e.path().join(name)).collect()
    }
}

#[tokio::test]
async fn damaged_records_of_images_harm_no_container_that_runs() {
    let mut rig = rig!();
    let config = rig.pod("images");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("shell", BUSYBOX, &["-c", "sleep 1000"]);
    container.command = vec!["/bin/sh".into()];
    let id = rig.run(&pod, &config, &container).await;
    let images = rig.cri().list_images().await.unwrap().len();
    for how in OF_RECORDS {
        let good: Vec<(PathBuf, Good)> = meanwhile(&mut rig, |rig| {
            let mut all = records(rig, "images", "");
            // These have no id in them.
            if how != Damage::AnotherId {
                all.extend(records(rig, "layers", "layer.json"));
                all.extend(records(rig, "snapshots", "snapshot.json"));
            }
            all.into_iter().map(|path| (path.clone(), Good::damage(&path, how))).collect()
        })
        .await;
        assert!(rig.cri().list_images().await.unwrap().is_empty(), "{how:?}");
        let all = damaged(&rig).await;
        for (path, _) in &good {
            let named = all.iter().any(|(damaged, _)| path.starts_with(damaged));
            assert!(named, "{how:?} of {} is not in {all:?}", path.display());
        }
        assert_eq!(rig.cri().exec_well(&id, &["/bin/sh", "-c", "ls /bin/ls"]).await.unwrap(), "/bin/ls\n");
        meanwhile(&mut rig, |_| good.into_iter().for_each(|(_, good)| good.put_back())).await;
        assert_eq!(rig.cri().list_images().await.unwrap().len(), images, "{how:?}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_directory_that_others_can_enter_is_refused_with_the_mend() {
    let mut rig = rig!();
    rig.daemon.kill(&rig.machine).await.unwrap();
    for directory in ["", "pods", "cni", "images", "images/layers"] {
        let path = rig.places.state().join(directory);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let refusal = Daemon::start(&rig.machine, &rig.places).await.unwrap_err().to_string();
        assert!(refusal.contains(path.to_str().unwrap().trim_end_matches('/')), "{refusal}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_whose_records_were_deleted_runs_on_is_named_and_can_be_removed() {
    let mut rig = rig!();
    let life = Life::start(&rig, &rig.pod("lost")).await;
    let state = life.state(&rig);
    let root = rig.places.state().join("images/snapshots").join(&life.container);
    assert!(root.exists());
    meanwhile(&mut rig, |_| fs::remove_dir_all(&state).unwrap()).await;
    let named = damaged(&rig).await.into_iter().any(|(path, _)| path == state);
    assert!(named, "{:?}", damaged(&rig).await);
    assert!(rig.cri().list_pods().await.unwrap().is_empty());
    // Who comes next does not take its root away either.
    meanwhile(&mut rig, |_| ()).await;
    assert!(root.exists());
    rig.cri().remove_pod(&life.pod).await.unwrap();
    assert!(damaged(&rig).await.is_empty());
    rig.finish().await;
}
