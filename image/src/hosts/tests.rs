use std::time::Duration;

use super::*;

fn urls(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|h| format!("{}://{}{}", h.scheme, h.authority, h.path)).collect()
}

fn parse(text: &str, registry: &str) -> Vec<Host> {
    file::parse(text, registry, Path::new("/"), true).unwrap()
}

/// A directory of directories, with files in them.
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let path = dir.path().to_owned();
    (dir, vec![path])
}

#[test]
fn without_a_file_the_registry_itself_is_asked() {
    let dirs = ["/does/not/exist".into()];
    for (registry, url) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost", "https://localhost/v2"),
        ("[::1]", "https://[::1]/v2"),
        ("127.0.0.1:443", "https://127.0.0.1:443/v2"),
        ("127.0.0.1:80", "http://127.0.0.1:80/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
    ] {
        let hosts = hosts_for(&dirs, registry).unwrap();
        assert_eq!(urls(&hosts), [url]);
        assert_eq!(hosts[0].skip_verify, url.starts_with("https") && is_loopback(registry), "{registry}");
    }
}

#[test]
fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
        server = "https://registry-1.docker.io"
        [host."http://z.example:5000"]
          capabilities = ["pull", "resolve"]
        [host."https://a.example/proxy"]
          capabilities = ["pull"]
          skip_verify = true
          dial_timeout = "1.5s"
          [host."https://a.example/proxy".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."https://b.example/odd/path"]
          override_path = true
        [host."c.example/"]
          capabilities = []
        [host."https://d.example/a/../b/v2/"]
          capabilities = ["PULL", "push", "referrers", "dance"]
        [host."http://e.example"]
          override_path = true
    "#;
    let hosts = parse(text, "docker.io");
    assert_eq!(
        urls(&hosts),
        [
            "http://z.example:5000/v2",
            "https://a.example/proxy/v2",
            "https://b.example/odd/path",
            "https://c.example/v2",
            "https://d.example/b/v2",
            "http://e.example",
            "https://registry-1.docker.io/v2",
        ]
    );
    let able: Vec<(bool, bool)> = hosts.iter().map(|host| (host.resolve, host.pull)).collect();
    let all = (true, true);
    assert_eq!(able, [all, (false, true), all, all, (false, true), all, all]);
    let upstream: Vec<bool> = hosts.iter().map(|host| host.upstream).collect();
    assert_eq!(upstream, [false, false, false, false, false, false, true]);
    assert!(!hosts[0].skip_verify && hosts[1].skip_verify);
    assert_eq!(hosts[1].dial_timeout, Some(Duration::from_millis(1500)));
    let header = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    assert_eq!(hosts[1].headers, [header("x-one", "1"), header("x-two", "2"), header("x-two", "3")]);
}

#[test]
fn the_server_is_the_registry_with_the_settings_of_the_file() {
    let first = |text: &str, registry: &str| urls(&parse(text, registry))[0].clone();
    assert_eq!(first("server = \"https://docker.io\"", "docker.io"), "https://registry-1.docker.io/v2");
    assert_eq!(first("server = \"other.example:5000\"", "quay.io"), "https://other.example:5000/v2");
    assert_eq!(first("server = \"localhost:5000\"", "quay.io"), "https://localhost:5000/v2");
    let alone = parse("skip_verify = true\n[header]\nx-key = \"k\"\n", "quay.io");
    assert_eq!(urls(&alone), ["https://quay.io/v2"]);
    assert!(alone[0].skip_verify && alone[0].upstream && alone[0].headers.len() == 1);
    let twice = "server = \"http://r.example\"\n[host.\"http://r.example\"]\ncapabilities = [\"pull\"]";
    let hosts = parse(twice, "r.example");
    assert_eq!(urls(&hosts), ["http://r.example/v2"; 2], "the server resolves what the host may not");
    let whole = "server = \"http://r.example\"\n[host.\"http://r.example\"]\n";
    assert_eq!(parse(whole, "r.example").len(), 1);
}

#[test]
fn only_the_registry_itself_sees_the_callers_credentials() {
    let seen = |text: &str, registry: &str, own: bool| -> Vec<bool> {
        let hosts = file::parse(text, registry, Path::new("/"), own).unwrap();
        hosts.iter().map(|host| host.upstream).collect()
    };
    let mirror = "[host.\"https://mirror.example\"]\n[host.\"https://quay.io\"]\ncapabilities = [\"pull\"]\n";
    assert_eq!(seen(mirror, "quay.io", true), [false, true, true]);
    let elsewhere = "server = \"https://mirror.example\"";
    assert_eq!(seen(elsewhere, "quay.io", true), [true], "the administrator says where this registry is");
    assert_eq!(seen(elsewhere, "quay.io", false), [false], "_default is no registry's own");
    assert_eq!(seen("", "quay.io", false), [true]);
}

#[test]
fn the_first_directory_that_is_there_decides_alone() {
    let mirror = |host: &str| format!("[host.\"http://{host}\"]");
    let (_dir, dirs) = tree(&[
        ("_default/hosts.toml", &mirror("default")),
        ("quay.io/hosts.toml", &mirror("quay-mirror")),
        ("reg.example_5000_/hosts.toml", &mirror("ported")),
        ("reg.example:5000/hosts.toml", &mirror("not-this")),
        ("colon.example:5000/hosts.toml", &mirror("colon")),
        ("empty.example/hosts.toml", " \n"),
        ("none.example/note.txt", ""),
    ]);
    let (_other, others) = tree(&[
        ("quay.io/hosts.toml", &mirror("second")),
        ("_default/hosts.toml", &mirror("second-default")),
        ("gcr.io/hosts.toml", &mirror("gcr-mirror")),
    ]);
    let first = |dirs: &[PathBuf], registry: &str| hosts_for(dirs, registry).unwrap()[0].authority.clone();
    assert_eq!(first(&dirs, "docker.io"), "default");
    assert_eq!(first(&dirs, "quay.io"), "quay-mirror");
    assert_eq!(first(&dirs, "reg.example:5000"), "ported");
    assert_eq!(first(&dirs, "colon.example:5000"), "colon");
    assert_eq!(first(&dirs, "empty.example"), "empty.example");
    assert_eq!(first(&dirs, "none.example"), "none.example");
    let both = [&others[..], &dirs[..]].concat();
    assert_eq!(first(&both, "quay.io"), "second");
    assert_eq!(first(&both, "docker.io"), "second-default");
    assert_eq!(first(&["/no/such".into(), dirs[0].clone()], "quay.io"), "quay-mirror");
}

#[test]
fn certificates_are_taken_from_dockers_layout_too() {
    let made = rcgen::generate_simple_self_signed(["r.example".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let (_dir, dirs) = tree(&[
        ("r.example/ca.crt", &certificate),
        ("r.example/client.cert", &certificate),
        ("r.example/client.key", &key),
        ("one.example/both.cert", &format!("{certificate}{key}")),
        ("bad.example/ca.crt", "no certificate"),
        ("keyless.example/client.cert", &certificate),
    ]);
    let hosts = hosts_for(&dirs, "r.example").unwrap();
    assert_eq!((hosts.len(), hosts[0].ca.len(), hosts[0].client.is_some()), (1, 1, true));
    assert!(hosts_for(&dirs, "one.example").unwrap()[0].client.is_some());
    for (registry, part) in
        [("bad.example", "ca.crt holds no certificate"), ("keyless.example", "client.cert")]
    {
        let message = hosts_for(&dirs, registry).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn every_form_of_client_and_ca_is_read() {
    let made = rcgen::generate_simple_self_signed(["r.example".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let (dir, _) = tree(&[
        ("r/c.pem", &certificate),
        ("r/k.pem", &key),
        ("r/both.pem", &format!("{certificate}\n{key}")),
    ]);
    let base = dir.path().join("r");
    for client in [
        "\"both.pem\"",
        "[\"both.pem\"]",
        "[[\"c.pem\", \"k.pem\"]]",
        "[[\"both.pem\", \"\"]]",
        "[[\"c.pem\", \"k.pem\"], \"both.pem\"]",
        &format!("[[{:?}, {:?}]]", base.join("c.pem"), base.join("k.pem")),
    ] {
        let hosts = file::parse(&format!("client = {client}"), "r", &base, true).unwrap();
        assert!(hosts[0].client.is_some(), "{client}");
    }
    for (ca, count) in [("\"c.pem\"", 1), ("[\"c.pem\", \"both.pem\"]", 2)] {
        assert_eq!(file::parse(&format!("ca = {ca}"), "r", &base, true).unwrap()[0].ca.len(), count);
    }
    for (text, part) in [
        ("client = []", "the list is empty"),
        ("client = [[\"c.pem\"]]", "'client' must be a path"),
        ("client = 1", "'client' must be a path"),
        ("client = \"c.pem\"", "no private key"),
        ("client = [[\"k.pem\", \"k.pem\"]]", "no certificate in"),
        ("client = \"none.pem\"", "none.pem cannot be read"),
        ("ca = \"k.pem\"", "k.pem holds no certificate"),
        ("ca = \"/\"", "not a regular file"),
        ("ca = 1", "'ca' must be a path"),
    ] {
        let reason = file::parse(text, "r", &base, true).unwrap_err();
        assert!(reason.contains(part), "{text}: {reason}");
    }
}

#[test]
fn wrong_files_are_refused_by_file_and_key() {
    let (dir, dirs) = tree(&[("quay.io/hosts.toml", "")]);
    let file = dir.path().join("quay.io/hosts.toml");
    for (text, expected) in [
        ("server = 1", "'server' must be a string"),
        ("server = \"ftp://x\"", "'server': it must be an http or https URL"),
        ("server = \"https://\"", "'server': it is not a URL"),
        ("a = 1\n= x", "line 2: it is not TOML"),
        ("host = 1", "'host' must be a table"),
        ("[host]\nx = 1", "host \"x\" must be a table"),
        ("[host.\"ftp://x\"]", "must be an http or https URL"),
        ("[host.\"https://x?y\"]", "query"),
        ("[host.\"https://x\"]\nskip_verify = 1", "'skip_verify' must be true or false"),
        ("[host.\"https://x\"]\noverride_path = 1", "'override_path' must be true or false"),
        ("[host.\"https://x\"]\ncapabilities = \"pull\"", "'capabilities' must be a list"),
        ("[host.\"https://x\"]\ndial_timeout = 1", "'dial_timeout' must be a string"),
        ("[host.\"https://x\"]\ndial_timeout = \"soon\"", "'dial_timeout' \"soon\" is no span"),
        ("[host.\"https://x\"]\nca = \"missing.pem\"", "missing.pem cannot be read"),
        ("[host.\"https://u:p@x\"]", "holds credentials"),
        ("[header]\nx = 1", "header \"x\" must be a string"),
        ("[header]\n\"x y\" = \"1\"", "header \"x y\" cannot be sent"),
        ("[header]\nx = \"a\\nb\"", "header \"x\" cannot be sent"),
    ] {
        std::fs::write(&file, text).unwrap();
        let message = hosts_for(&dirs, "quay.io").unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("hosts.toml"), "{text}: {message}");
    }
    std::fs::write(&file, b"\xff").unwrap();
    assert!(hosts_for(&dirs, "quay.io").unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn secrets_of_a_file_do_not_show() {
    let text = "[header]\nauthorization = \"Basic hush\"";
    assert!(!format!("{:?}", parse(text, "quay.io")).contains("hush"));
    let broken = "[header]\nauthorization = \"Basic hush";
    let reason = file::parse(broken, "quay.io", Path::new("/"), true).unwrap_err();
    assert!(!reason.contains("hush") && reason.contains("line 2"), "{reason}");
}

#[test]
fn a_fifo_in_a_files_place_is_refused_at_once() {
    let (dir, dirs) = tree(&[("quay.io/note", "")]);
    let fifo = dir.path().join("quay.io/hosts.toml");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let message = hosts_for(&dirs, "quay.io").unwrap_err().to_string();
    assert!(message.contains("not a regular file"), "{message}");
}
