use std::{fs, path::PathBuf};

use podhold_cgroups::Driver;

use super::{image::credential_files, *};

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "log_level = \"info\"\n[cgroups]\ndrivr = \"systemd\"\n").unwrap();
    let message = Config::load(Some(&file)).unwrap_err().to_string();
    assert!(message.contains("config.toml") && message.contains("line 3"), "{message}");
    assert!(message.contains("drivr") && message.contains("driver"), "{message}");
}

#[test]
fn drop_ins_win_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "log_level = \"warn\"\n[image]\nparallel_layers = 2\n").unwrap();
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    fs::write(dir.path().join("conf.d/20.toml"), "[image]\nparallel_layers = 9\n").unwrap();
    fs::write(dir.path().join("conf.d/10.toml"), "log_level = \"debug\"\n[image]\nparallel_layers = 5\n")
        .unwrap();
    let config = Config::load(Some(&file)).unwrap();
    assert_eq!((config.log_level.as_str(), config.image.parallel_layers), ("debug", 9));
}

#[test]
fn the_default_configuration_is_its_own_file() {
    let default = Config::default().checked().unwrap();
    assert_eq!(toml::from_str::<Config>(&default.to_toml()).unwrap(), default);
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    for text in [
        "run_dir = \"run\"",
        "run_dir = \"/var/lib/podhold\"",
        "[cgroups]\nparent = \"podhold\"",
        "[image]\nparallel_layers = 0",
        "[image]\npreload_dir = \"archives\"",
        "[cni]\ntimeout_seconds = 0",
        "[network]\nbridge = \"a/b\"",
        "[network]\nbridge = \"sixteen-letters-\"",
        "[network]\nipv4_pool = \"10.0.0.0\"",
        "[network]\nipv4_pool = \"10.0.0.0/30\"",
        "[network]\nipv4_pool = \"127.0.0.0/16\"",
        "[network]\nipv4_pool = \"fd00::/64\"",
        "[network]\nipv6_pool = \"fe80::/64\"",
        "[network]\nmtu = 100",
        "log_level = \"loud\"",
        "socket = \"podhold.sock\"",
        "[cgroups]\nparent = \"a--b.slice\"",
        "[cgroups]\ndriver = \"systemd\"\nparent = \"/podhold\"",
        "[cgroups]\ndriver = \"cgroupfs\"\nparent = \"podhold.slice\"",
        "[shim]\nbinary = \"podhold-shim\"",
        "[streaming]\naddress = \"0.0.0.0\"",
        "[metrics]\naddress = \"localhost\"",
        "[image]\nhosts_dirs = [\"certs.d\"]",
        "[image]\ncredential_files = [\"config.json\"]",
    ] {
        let config: Config = toml::from_str(text).unwrap();
        assert!(config.checked().is_err(), "{text}");
    }
}

#[test]
fn hosts_directories_are_one_or_more() {
    let dirs = |text: &str| toml::from_str::<Config>(text).map(|config| config.image.hosts_dirs);
    let one = vec![PathBuf::from("/a")];
    assert_eq!(dirs("[image]\nhosts_dir = \"/a\"").unwrap(), one);
    assert_eq!(dirs("[image]\nhosts_dirs = [\"/a\"]").unwrap(), one);
    assert_eq!(dirs("[image]\nhosts_dirs = \"/a\"").unwrap(), one);
    let message = dirs("[image]\nhosts_dirs = 1").unwrap_err().to_string();
    assert!(message.contains("a path or a list of paths"), "{message}");
}

#[test]
fn dockers_directory_is_where_its_variable_says() {
    assert!(credential_files(None).contains(&"/root/.docker/config.json".into()));
    assert!(credential_files(Some("rel".into())).contains(&"/root/.docker/config.json".into()));
    let moved = credential_files(Some("/x".into()));
    assert_eq!(moved.last(), Some(&PathBuf::from("/x/config.json")));
}

#[test]
fn a_parent_of_cgroups_has_the_form_of_its_driver() {
    let parse = |text: &str| toml::from_str::<Config>(text).unwrap().checked().unwrap();
    let usual = Config::default();
    assert_eq!(usual.wanted_driver(), None);
    assert_eq!(usual.cgroup_parent(Driver::Cgroupfs).unwrap().as_str(), "/podhold");
    assert_eq!(usual.cgroup_parent(Driver::Systemd).unwrap().as_str(), "/podhold.slice");
    let slice = parse("[cgroups]\nparent = \"a-b.slice\"");
    assert_eq!(slice.wanted_driver(), Some(Driver::Systemd));
    assert_eq!(slice.cgroup_parent(Driver::Systemd).unwrap().as_str(), "/a.slice/a-b.slice");
    assert_eq!(parse("[cgroups]\nparent = \"/pods\"").wanted_driver(), Some(Driver::Cgroupfs));
}
