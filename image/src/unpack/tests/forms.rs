//! Forms that archives and streams come in: compressions, sparse files, long names, hard links that lead far.

use super::*;

/// A skippable frame, as zstd:chunked puts its table of contents into.
fn skippable(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    [&[0x5e, 0x2a, 0x4d, 0x18][..], &length, content].concat()
}

#[test]
fn streams_of_many_parts_are_one_archive() {
    let Some(dir) = root() else { return };
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let tar = Tar::new().file("data", &content).build();
    let (front, back) = tar.split_at(tar.len() / 3);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let toc = skippable(&[b'{'; 5000]);
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("gzip, three members", [gzip(&front[..700]), gzip(&front[700..]), gzip(back)].concat()),
        ("gzip, an empty member last, as estargz has", [gzip(&tar), gzip(b"")].concat()),
        ("zstd", zstd(&tar)),
        ("zstd, two frames", [zstd(front), zstd(back)].concat()),
        ("zstd, skippable first", [toc.clone(), zstd(&tar)].concat()),
        ("zstd, skippable between", [zstd(front), toc.clone(), zstd(back)].concat()),
        ("zstd:chunked", [zstd(front), zstd(back), toc.clone(), skippable(b"footer")].concat()),
    ];
    for (n, (name, blob)) in forms.into_iter().enumerate() {
        for step in [333, 1 << 20] {
            let root = dir.path().join(format!("{n}-{step}"));
            fs::create_dir(&root).unwrap();
            feed(&blob, step, &expected(&blob, &tar), &root).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(fs::read(root.join("data")).unwrap() == content, "{name}");
        }
    }
}

#[test]
fn sparse_files_of_every_form_keep_their_content_and_holes() {
    let Some(dir) = root() else { return };
    let plain = dir.path().join("sparse");
    let file = fs::File::create(&plain).unwrap();
    file.set_len(8 << 20).unwrap();
    for (at, bytes) in [(1 << 20, &b"middle"[..]), (5 << 20, &[7; 70_000][..]), ((8 << 20) - 3, b"end")] {
        std::os::unix::fs::FileExt::write_at(&file, bytes, at).unwrap();
    }
    for form in ["gnu", "0.0", "0.1", "1.0"] {
        let archive = dir.path().join(format!("{form}.tar"));
        let format = match form {
            "gnu" => vec!["--format=gnu".to_owned()],
            version => vec!["--format=posix".to_owned(), format!("--sparse-version={version}")],
        };
        let mut command = std::process::Command::new("tar");
        command.arg("--sparse").args(format).arg("-cf").arg(&archive).arg("-C").arg(dir.path());
        if !command.arg("sparse").status().is_ok_and(|status| status.success()) {
            println!("SKIPPED: GNU tar is not there");
            return;
        }
        let tar = fs::read(&archive).unwrap();
        assert!(tar.len() < 1 << 20, "{form}: GNU tar has found the holes");
        let root = dir.path().join(format!("root-{form}"));
        fs::create_dir(&root).unwrap();
        try_tar(&tar, &root).unwrap_or_else(|error| panic!("{form}: {error}"));
        let found = fs::metadata(root.join("sparse")).unwrap();
        assert!(fs::read(root.join("sparse")).unwrap() == fs::read(&plain).unwrap(), "{form}");
        assert!(found.blocks() * 512 < 2 << 20, "{form}: {} blocks", found.blocks());
        assert_eq!(names(&root), ["sparse"], "{form}: under its own name");
    }
}

#[test]
fn sparse_files_in_pax_form_stay_within_the_limit() {
    let Some(dir) = root() else { return };
    let sparse = |size: &'static str, map: &'static str| {
        let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        Tar::new().pax(&records).file("f", b"data").build()
    };
    try_tar(&sparse("1000000", "500000,4"), dir.path()).unwrap();
    assert_eq!(&fs::read(dir.path().join("f")).unwrap()[500_000..500_004], b"data");
    let other = tempfile::tempdir().unwrap();
    let error = try_tar(&sparse("100000000000", "0,4"), other.path()).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge(_)), "{error}");
    let error = try_tar(&sparse("100", "0,9"), other.path()).unwrap_err();
    assert!(error.to_string().contains("shorter than its map"), "{error}");
}

#[test]
fn long_names_come_in_gnu_and_pax_form() {
    let Some(dir) = root() else { return };
    let (name, target) = (format!("{}/{}", "n".repeat(200), "m".repeat(200)), "t".repeat(300));
    let mut gnu = Tar::new();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    gnu.0.append_link(&mut header, &name, &target).unwrap();
    let records = [("path", name.as_bytes()), ("linkpath", target.as_bytes())];
    let pax = Tar::new().pax(&records).link(EntryType::Symlink, "short", "short");
    for (form, tar) in [("gnu", gnu.build()), ("pax", pax.build())] {
        let root = dir.path().join(form);
        fs::create_dir(&root).unwrap();
        try_tar(&tar, &root).unwrap();
        assert_eq!(fs::read_link(root.join(&name)).unwrap(), Path::new(&target), "{form}");
    }
}

#[test]
fn hard_links_may_come_before_their_targets() {
    let Some(dir) = root() else { return };
    let link = EntryType::Link;
    let tar = Tar::new()
        .link(link, "d/first", "d/second")
        .link(link, "d/second", "late/file")
        .file("late/file", b"x")
        .build();
    let unpacked = try_tar(&tar, dir.path()).unwrap();
    let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    assert_eq!((inode("d/first"), inode("d/second")), (inode("late/file"), inode("late/file")));
    assert_eq!(unpacked.inodes, 4);
    // What comes twice comes twice, also when the first waits for its target.
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::new().link(link, "a", "late").file("a", b"1").file("late", b"2").build();
    let text = try_tar(&tar, dir.path()).unwrap_err().to_string();
    assert!(text.contains("\"a\"") && text.contains("two entries"), "{text}");
    // A chain that an archive could make long without end.
    let dir = tempfile::tempdir().unwrap();
    let chain = (0..2000).fold(Tar::new(), |tar, n| tar.link(link, &format!("l{n}"), &format!("l{}", n + 1)));
    let text = try_tar(&chain.file("l2000", b"").build(), dir.path()).unwrap_err().to_string();
    assert!(text.contains("no file of this layer"), "{text}");
}

#[test]
fn hard_links_reach_files_of_the_layers_below() {
    let Some(dir) = root() else { return };
    let owner = |h: &mut tar::Header| {
        h.set_uid(42);
        h.set_mode(0o4750);
    };
    let layer = |name: &str, tar: Tar, lowers: &[&str]| {
        let at = dir.path().join(name);
        fs::create_dir(&at).unwrap();
        let tar = tar.build();
        let mut unpacked = feed(&tar, 1000, &expected(&tar, &tar), &at)?;
        let lowers: Vec<_> = lowers.iter().map(|lower| open(&dir.path().join(lower))).collect();
        borrow(&open(&at), &lowers, &mut unpacked, 1 << 20).map(|()| unpacked)
    };
    let base = Tar::new()
        .dir("bin/", 0o711)
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY), ("mtime", b"12.25")])
        .entry(EntryType::Regular, ("bin/tool", ""), owner, b"tool")
        .sparse("bin/holes", 20 << 20, b"end")
        .file("bin/gone", b"")
        .file("shut/in", b"")
        .link(EntryType::Symlink, "soft", "bin/tool")
        .file("etc/passwd", b"");
    layer("base", base, &[]).unwrap();
    let link = EntryType::Link;
    layer("middle", Tar::new().file("bin/.wh.gone", b"").file("shut/.wh..wh..opq", b""), &["base"]).unwrap();
    let upper = Tar::new().link(link, "usr/one", "bin/tool").link(link, "usr/two", "/bin/tool").link(
        link,
        "usr/holes",
        "bin/holes",
    );
    let unpacked = layer("upper", upper, &["middle", "base"]).unwrap();
    let at = |name: &str| fs::symlink_metadata(dir.path().join("upper").join(name)).unwrap();
    let (tool, one) = (at("bin/tool"), at("usr/one"));
    assert_eq!((tool.ino(), at("usr/two").ino(), tool.nlink()), (one.ino(), one.ino(), 3));
    assert_eq!(
        (tool.uid(), tool.mode() & 0o7777, tool.mtime(), tool.mtime_nsec()),
        (42, 0o4750, 12, 250_000_000)
    );
    let path = dir.path().join("upper/usr/one");
    assert_eq!(fs::read(&path).unwrap(), b"tool");
    assert_eq!(xattr(&path, "security.capability").unwrap(), CAPABILITY);
    assert_eq!((at("usr/holes").len(), at("usr/holes").blocks() < 100), ((20 << 20) + 3, true));
    assert_eq!(unpacked.implicit, [b"usr".to_vec(), b"bin".to_vec()]);
    assert_eq!(unpacked.inodes, 5, "root, two directories, two files");
    for (n, target) in
        ["bin/gone", "shut/in", "soft", "soft/x", "bin", "never", "etc/passwd/x"].iter().enumerate()
    {
        let error = layer(&format!("bad{n}"), Tar::new().link(link, "l", target), &["middle", "base"]);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("\"l\"") && text.contains(target) && text.contains("no file of"), "{text}");
    }
    // A short archive does not copy without end.
    layer("large", Tar::new().file("large", &vec![1; 2 << 20]), &[]).unwrap();
    let error = layer("greedy", Tar::new().link(link, "l", "large"), &["large"]);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("\"l\"") && text.contains("copy more of the layers below"), "{text}");
}
