use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use super::*;

fn basic(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Basic { username: username.into(), password: password.into() })
}

fn write(path: &Path, mode: u32, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A finder over files and helpers given by their text.
fn finder(files: &[&str], helpers: &[(&str, &str)]) -> (tempfile::TempDir, Finder) {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = CredentialSources {
        files: Vec::new(),
        helper_dirs: vec![dir.path().into(), "/usr/bin".into(), "/bin".into()],
    };
    for (index, text) in files.iter().enumerate() {
        let path = dir.path().join(format!("{index}.json"));
        write(&path, 0o600, text);
        sources.files.push(path);
    }
    for (name, script) in helpers {
        let path = dir.path().join(format!("docker-credential-{name}"));
        write(&path, 0o700, &format!("#!/bin/sh\n{script}\n"));
    }
    let marks = Marks::open(dir.path());
    (dir, Finder::new(sources, marks))
}

#[test]
fn credentials_never_show_in_debug_output() {
    let all = [
        Credentials::Basic { username: "user-x".into(), password: "pass-x".into() },
        Credentials::IdentityToken("pass-x".into()),
        Credentials::RegistryToken("pass-x".into()),
    ];
    assert!(!format!("{all:?}").contains("-x"));
}

#[test]
fn every_form_is_read_and_the_most_specific_counts() {
    let all = Forms {
        username: "u",
        password: "p",
        auth: "YTpi",
        identity_token: "identity",
        registry_token: "registry",
    };
    let read = |forms: Forms<'_>| Credentials::from_forms(forms).unwrap();
    assert_eq!(read(all), Some(Credentials::RegistryToken("registry".into())));
    let all = Forms { registry_token: "", ..all };
    assert_eq!(read(all), Some(Credentials::IdentityToken("identity".into())));
    let all = Forms { identity_token: "", ..all };
    assert_eq!(read(all), basic("u", "p"));
    assert_eq!(read(Forms { username: "", ..all }), basic("a", "b"));
    assert_eq!(read(Forms::default()), None);
    for (auth, expected) in [
        ("YTpi", basic("a", "b")),
        ("YTpi\n", basic("a", "b")),
        ("YTo6Yg==", basic("a", ":b")),
        ("YTo6Yg", basic("a", ":b")),
        ("YTpiAAA=", basic("a", "b")),
        ("OmI=", basic("", "b")),
    ] {
        assert_eq!(read(Forms { auth, ..Forms::default() }), expected, "{auth}");
    }
    for auth in ["YQ==", "!", "/w==", "//86"] {
        assert!(Credentials::from_forms(Forms { auth, ..Forms::default() }).is_err(), "{auth}");
    }
}

#[test]
fn a_server_address_is_compared_as_a_whole() {
    for server in ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io", "index.docker.io"] {
        assert!(is_server_of(server, "docker.io"), "{server}");
    }
    for (server, registry) in [("https://quay.io:443", "quay.io:443"), ("http://Quay.io/v2/", "quay.io")] {
        assert!(is_server_of(server, registry), "{server}");
    }
    for server in ["quay.io.evil.test", "evil.test/quay.io", "quay.io:5000", "xquay.io", "*.io", ""] {
        assert!(!is_server_of(server, "quay.io"), "{server}");
    }
}

#[tokio::test]
async fn the_first_file_and_the_longest_key_count() {
    let files = [
        r#"{"auths": {"quay.io/team": {"auth": "dGVhbTp0"}, "quay.io": {"username": "all", "password": "a"},
            "gcr.io": {}, "null.io": null, "bad.io": {"auth": "hush-hush"}}}"#,
        r#"{"auths": {"quay.io": {"auth": "YTpi"}, "gcr.io": {"identitytoken": "refresh", "auth": "MDA6"}}}"#,
        "",
        "{}",
    ];
    let (_dir, finder) = finder(&files, &[]);
    let find = async |registry: &str, repository: &str| finder.find(registry, repository).await;
    assert_eq!(find("quay.io", "team/app").await.credentials, basic("team", "t"));
    assert_eq!(find("quay.io", "teams/app").await.credentials, basic("all", "a"));
    assert_eq!(find("gcr.io", "x").await.credentials, Some(Credentials::IdentityToken("refresh".into())));
    assert!(find("docker.io", "x").await.credentials.is_none());
    assert!(find("null.io", "x").await.troubles.is_empty());
    let bad = find("bad.io", "x").await;
    assert!(bad.credentials.is_none() && bad.troubles[0].contains("auths[\"bad.io\"].auth is not base64"));
    assert!(!bad.troubles[0].contains("hush"));
}

#[tokio::test]
async fn hostile_files_are_told_and_passed_over_without_their_content() {
    let good = r#"{"auths": {"quay.io": {"auth": "YTpi"}}}"#;
    let huge = format!("{{\"auths\": {{\"x\": {{\"auth\": \"{}\"}}}}}}", "a".repeat(2 << 20));
    for (text, mode, part) in [
        ("hush", 0o600, "it is not JSON: look at line 1"),
        (r#"{"auths": "hush"}"#, 0o600, "no credentials file"),
        ("[]", 0o600, "no credentials file"),
        (r#"{"auths": {"quay.io": {"auth": {"hush": 1}}}}"#, 0o600, "no credentials file"),
        (huge.as_str(), 0o600, "larger than 1 MiB"),
        (good, 0o620, "others than root can write it"),
        (good, 0o602, "others than root can write it"),
        (r#"{"credHelpers": {"quay.io": "../../bin/sh"}}"#, 0o600, "may hold letters"),
        (r#"{"credsStore": "missing"}"#, 0o600, "there is no program docker-credential-missing"),
    ] {
        let (dir, finder) = finder(&[text, good], &[]);
        write(&dir.path().join("0.json"), mode, text);
        let found = finder.find("quay.io", "x").await;
        assert_eq!(found.credentials, basic("a", "b"), "{part}");
        let told = &found.troubles[0];
        assert!(told.contains(part) && told.contains("0.json") && !told.contains("hush"), "{told}");
    }
    let (dir, finder) = finder(&["", good], &[]);
    let fifo = dir.path().join("0.json");
    std::fs::remove_file(&fifo).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let found = finder.find("quay.io", "x").await;
    assert!(found.troubles[0].contains("not a regular file") && found.credentials.is_some());
}

#[tokio::test]
async fn helpers_are_asked_with_the_server_and_a_bare_environment() {
    let files = [
        r#"{"credHelpers": {"one.io": "one", "docker.io": "one", "*.wild.io": "one", "t.io": "token",
        "none.io": "none"}, "credsStore": "store", "auths": {"https://kept.io": {}, "none.io": {"auth": "YTpi"}}}"#,
    ];
    let answer = |name: &str| {
        let env = "$(env | cut -d= -f1 | grep -v '^_$\\|^PWD$\\|^SHLVL$\\|^OLDPWD$' | sort | tr '\\n' ' ')";
        format!(
            r#"test "$1" = get; read -r s; printf '{{"ServerURL":"x","Username":"{name} %s","Secret":"%s"}}' "$s" "{env}""#
        )
    };
    let token = r#"echo '{"Username":"<token>","Secret":"refresh"}'"#;
    let none = "echo 'credentials not found in native keychain'; exit 1";
    let helpers =
        [("one", answer("one")), ("store", answer("store")), ("token", token.into()), ("none", none.into())];
    let helpers: Vec<(&str, &str)> = helpers.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let (_dir, finder) = finder(&files, &helpers);
    for (registry, username) in [
        ("one.io", "one one.io"),
        ("docker.io", "one https://index.docker.io/v1/"),
        ("a.wild.io", "one a.wild.io"),
        ("kept.io", "store https://kept.io"),
        ("other.io", "store other.io"),
    ] {
        let found = finder.find(registry, "x").await;
        assert_eq!(found.credentials, basic(username, "HOME PATH PODHOLD_HELPER "), "{:?}", found.troubles);
    }
    assert_eq!(
        finder.find("t.io", "x").await.credentials,
        Some(Credentials::IdentityToken("refresh".into()))
    );
    assert_eq!(finder.find("none.io", "x").await.credentials, basic("a", "b"), "the file itself, then");
}

#[tokio::test]
async fn helpers_that_misbehave_are_named_and_their_output_is_not() {
    let helpers = [
        ("fails", "echo hush; echo hush >&2; exit 3"),
        ("garbage", "echo hush"),
        ("endless", "exec cat /dev/zero"),
        ("list", "echo '[\"hush\"]'"),
    ];
    let (dir, _) = finder(&[], &helpers);
    let dirs = [dir.path().to_owned(), "/bin".into()];
    for (name, part) in [
        ("fails", "fails; run `echo"),
        ("garbage", "Username"),
        ("endless", "more than 64 KiB"),
        ("list", "Username"),
    ] {
        let told = helper::get(&marks(&dir), &dirs, name, "quay.io").await.unwrap_err();
        assert!(told.contains(part) && told.contains(name) && !told.contains("hush"), "{told}");
    }
}

#[tokio::test]
async fn a_helper_that_hangs_is_killed_with_its_children() {
    let (dir, _) = finder(&[], &[("hangs", "sleep 1000 & echo $! > \"${0%/*}/pid\"; wait")]);
    let dirs = [dir.path().to_owned(), "/usr/bin".into(), "/bin".into()];
    let begun = Instant::now();
    let told = helper::get_within(&marks(&dir), &dirs, "hangs", "quay.io", Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(told.contains("does not answer within 1 s"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    ended(&dir).await;
}

fn marks(dir: &tempfile::TempDir) -> Arc<Marks> {
    Arc::new(Marks::open(dir.path()))
}

/// Waits for the end of the process whose id a helper wrote down.
async fn ended(dir: &tempfile::TempDir) {
    let pid: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    // Killed, it is there until somebody has reaped it.
    for _ in 0..500 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the helper's child is still there");
}

/// The directory in which a process that is to be killed asks a helper.
const DIES: &str = "PODHOLD_TEST_DIES_ASKING";

#[tokio::test]
async fn a_helper_whose_daemon_was_killed_is_ended_by_the_next() {
    if let Some(dir) = std::env::var_os(DIES) {
        let dirs = [dir.clone().into(), "/usr/bin".into(), "/bin".into()];
        let marks = Arc::new(Marks::open(Path::new(&dir)));
        let _never = helper::get_within(&marks, &dirs, "hangs", "quay.io", Duration::from_secs(600)).await;
        return;
    }
    let hangs = "sleep 1000 & echo $! > \"${0%/*}/new\"; mv \"${0%/*}/new\" \"${0%/*}/pid\"; wait";
    let (dir, _) = finder(&[], &[("hangs", hangs)]);
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["credentials::tests::a_helper_whose_daemon_was_killed_is_ended_by_the_next", "--exact"]);
    let mut daemon = again.env(DIES, dir.path()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !dir.path().join("pid").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the helper is not asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("helpers")).unwrap().count(), 1, "its mark is left");
    drop(marks(&dir));
    ended(&dir).await;
    while std::fs::read_dir(dir.path().join("helpers")).unwrap().count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "its mark stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Counts warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_complained_of_once_for_each_cause() {
    let (dir, finder) = finder(&["no JSON", "{}"], &[]);
    let readable = dir.path().join("1.json");
    write(&readable, 0o644, "{}");
    let warnings = Warnings::default();
    let _heard = tracing::subscriber::set_default(warnings.clone());
    let told = || warnings.0.load(std::sync::atomic::Ordering::Relaxed);
    for (registry, repository) in
        [("a.example", "x"), ("a.example", "x"), ("a.example", "y"), ("b.example", "x")]
    {
        let found = finder.find(registry, repository).await;
        assert_eq!(found.troubles.len(), 1, "it is in the error of a pull all the same: {found:?}");
    }
    assert_eq!(told(), 2, "one for each file");
    write(&dir.path().join("0.json"), 0o622, "{}");
    for _ in 0..2 {
        finder.find("a.example", "x").await;
    }
    assert_eq!(told(), 3, "another cause is told");
}
