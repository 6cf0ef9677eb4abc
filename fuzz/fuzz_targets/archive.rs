//! Archives of images: `podhold_image`'s way from bytes to what would be imported. Needs root for its store.
#![no_main]

use std::{collections::BTreeMap, path::Path, sync::OnceLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use podhold_image::{Digest, Reference, fuzzing::Archives};
use serde_json::{Value, json};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// Files of an archive, some under the names that mean something.
    Files(Vec<(Name, &'a [u8])>),
    /// A layout whose documents name each other rightly, but for what is changed.
    Layout(Layout<'a>),
}

#[derive(Debug, Arbitrary)]
enum Name {
    Index,
    Docker,
    Config,
    Layer,
    /// As a blob, under its digest.
    Blob,
    Odd(String),
}

#[derive(Debug, Arbitrary)]
struct Layout<'a> {
    layer: &'a [u8],
    name: Option<String>,
    os: Option<String>,
    size_lies: bool,
    without: Option<u8>,
    nested: bool,
    docker_too: bool,
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let field = &mut header.as_old_mut().name;
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name.as_bytes()[..length]);
        header.set_cksum();
        archive.append(&header, &content[..]).expect("memory takes it");
    }
    archive.into_inner().expect("memory takes it")
}

fn blob(content: &[u8]) -> (String, Vec<u8>) {
    (format!("blobs/{}", Digest::of(content).to_string().replacen(':', "/", 1)), content.to_vec())
}

fn layout(input: &Layout<'_>) -> Vec<u8> {
    let digest = |content: &[u8]| Digest::of(content).to_string();
    let os = input.os.as_deref().unwrap_or("linux");
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({"os": os, "architecture": arch,
        "rootfs": {"type": "layers", "diff_ids": [digest(input.layer)]}})
    .to_string();
    let entry = |kind: &str, content: &[u8]| {
        let size = content.len() + usize::from(input.size_lies);
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(content), "size": size})
    };
    let layer = entry("layer.v1.tar", input.layer);
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": entry("config.v1+json", config.as_bytes()), "layers": [layer]})
    .to_string();
    let mut top = entry("manifest.v1+json", manifest.as_bytes());
    let mut files = vec![blob(input.layer), blob(config.as_bytes()), blob(manifest.as_bytes())];
    if input.nested {
        top["platform"] = json!({"os": "linux", "architecture": arch});
        let inner = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
        files.push(blob(inner.as_bytes()));
        top = entry("index.v1+json", inner.as_bytes());
    }
    if let Some(name) = &input.name {
        top["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index: Value = json!({"schemaVersion": 2, "manifests": [top]});
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    if input.docker_too {
        let names: Vec<_> = input.name.iter().collect();
        let entry = json!([{"Config": files[1].0, "RepoTags": names, "Layers": [files[0].0]}]);
        files.push(("manifest.json".to_owned(), entry.to_string().into_bytes()));
    }
    if let Some(without) = input.without {
        files.remove(usize::from(without) % files.len());
    }
    tar(&files)
}

fn archive(input: &Input<'_>) -> Vec<u8> {
    match input {
        Input::Bytes(bytes) => bytes.to_vec(),
        Input::Layout(input) => layout(input),
        Input::Files(files) => {
            let file = |(name, content): &(Name, &[u8])| match name {
                Name::Index => ("index.json".to_owned(), content.to_vec()),
                Name::Docker => ("manifest.json".to_owned(), content.to_vec()),
                Name::Config => ("config.json".to_owned(), content.to_vec()),
                Name::Layer => ("layer.tar".to_owned(), content.to_vec()),
                Name::Blob => blob(content),
                Name::Odd(name) => (name.clone(), content.to_vec()),
            };
            tar(&files.iter().take(32).map(file).collect::<Vec<_>>())
        }
    }
}

/// The store, and what is beside it.
static PLACE: OnceLock<(tempfile::TempDir, Archives)> = OnceLock::new();

/// What is in the directories of a store, by their names.
fn state(place: &Path) -> BTreeMap<String, usize> {
    let list = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
    ["", "images", "images/ingest", "images/blobs", "images/layers", "images/images"]
        .map(|name| (name.to_owned(), list(&place.join(name))))
        .into()
}

fuzz_target!(|input: Input<'_>| {
    let (directory, archives) = PLACE.get_or_init(|| {
        let place = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let directory = tempfile::tempdir_in(place).expect("a directory can be made");
        let archives = Archives::open(&directory.path().join("images"));
        (directory, archives)
    });
    let before = state(directory.path());
    let images = archives.look(archive(&input));
    assert_eq!(state(directory.path()), before, "something of the archive is left");
    let plain = |layout: &Layout<'_>| {
        !layout.size_lies && layout.without.is_none() && layout.os.is_none() && layout.name.is_none()
    };
    if matches!(&input, Input::Layout(layout) if plain(layout)) {
        assert!(images.as_ref().is_some_and(|images| images.len() == 1), "an honest layout is refused");
    }
    for (id, names) in images.into_iter().flatten() {
        assert!(Digest::parse(&id).is_ok(), "{id}");
        for name in names {
            assert!(Reference::parse(&name).is_ok_and(|again| again.to_string() == name), "{name}");
        }
    }
});
