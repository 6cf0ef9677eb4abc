//! Turns archive entries into files beneath a root, with owners, modes, times and attributes as they say.
//!
//! Policy, where the format leaves room: a name that leads through a link or a file, a name given twice
//! (directories excepted; OCI image-spec, layer.md forbids it), a link out of the root and a device that
//! overlayfs would take for a whiteout are refused. Directories keep mode 0700 until everything is in
//! place, so that nothing inherits from them and nobody else looks in.

use std::{
    ffi::OsStr,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags},
    io::Errno,
};
use tar::{Entry, EntryType};

use super::{
    Limits, Unpacked, Wanted,
    beneath::{self, Tree},
    borrow::{self, Link},
    content::Content,
    directories::Directories,
    entry::{self, Attributes, Name},
    refusal::{Refusal, damaged, step},
    sparse::{self, Sparse},
    stream::Archive,
};
use crate::{
    error::UnpackError,
    store::{BLOCK, tree::Contents},
};

/// Longest chain of hard links to hard links that all come before their targets.
const LATE: usize = 8;
/// Why a second entry is not taken.
pub(super) const TWO_ENTRIES: &str = "the layer has two entries of this name, which the image format forbids";

/// Unpacks all entries of `archive` into the empty directory `root`.
pub(super) fn extract(
    archive: &mut Archive,
    root: OwnedFd,
    limits: &Limits,
    wanted: &Wanted,
) -> Result<Unpacked, UnpackError> {
    let budget = archive.header_budget();
    let mut extractor = Extractor {
        tree: Tree::new(root),
        directories: Directories::default(),
        entries: 0,
        bytes: BLOCK,
        inodes: 1,
        umask: current_umask(),
        content: Content::new(limits.bytes, wanted.clone()),
        contents: Contents::default(),
        links: Vec::new(),
        links_bytes: 0,
    };
    let mut tar = tar::Archive::new(archive);
    let mut entries = tar.entries().map_err(damaged)?;
    loop {
        budget.headers();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(damaged)?;
        budget.content();
        extractor.entries += 1;
        let applied = match extractor.entries > limits.entries {
            true => Err(too_many(limits)),
            false => extractor.apply(&mut entry).and_then(|()| extractor.check_implicit(limits)),
        };
        applied.map_err(|refusal| refusal.at(&entry.path_bytes()))?;
    }
    budget.content();
    extractor.finish()
}

fn too_many(limits: &Limits) -> Refusal {
    Refusal::TooLarge(format!(
        "with it the layer has more than {} entries and directories on the way to them; raise the image limits \
         if that is right",
        limits.entries
    ))
}

/// The process's umask, which cannot be asked for without changing it except here (proc(5)).
fn current_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
}

struct Extractor {
    tree: Tree,
    directories: Directories,
    entries: u64,
    bytes: u64,
    inodes: u64,
    umask: u32,
    content: Content,
    contents: Contents,
    /// Hard links whose targets are not there yet, and the length of their names.
    links: Vec<Link>,
    links_bytes: u64,
}

impl Extractor {
    fn apply<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Refusal> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let holes = sparse::read(entry)?;
        let raw = match holes.as_ref().and_then(|sparse| sparse.name.clone()) {
            Some(name) => name,
            None => entry.path_bytes().into_owned(),
        };
        match entry::name(&raw)? {
            Name::Bookkeeping => Ok(()),
            Name::Root => {
                if kind != EntryType::Directory {
                    return Err("it stands for the image's root and is no directory".into());
                }
                self.directories.insert(Vec::new(), Attributes::read(entry)?)
            }
            Name::Opaque { dir } => {
                let dir = self.tree.directory(&dir).map_err(step("enter its directory"))?;
                beneath::make_opaque(dir, b".").map_err(step("mark its directory opaque"))
            }
            Name::Whiteout { dir, name } => {
                let dir = self.tree.directory(&dir).map_err(step("enter its directory"))?;
                let made = beneath::make_whiteout(dir, &name).map_err(step("make the whiteout"))?;
                self.inodes += u64::from(made);
                Ok(())
            }
            Name::Plain { dir, name } => {
                // Before 1988's POSIX a directory was a file whose name ends in a slash.
                let directory =
                    kind == EntryType::Directory || (kind == EntryType::Regular && raw.ends_with(b"/"));
                if directory {
                    return self.directory(entry, &dir, &name);
                }
                match (kind, holes) {
                    (EntryType::Regular, Some(holes)) => self.file(entry, (&dir, &name), Some(holes)),
                    _ => self.make(entry, kind, &dir, &name),
                }
            }
        }
    }

    /// Bounds the directories that entries bring with them although the archive does not list them.
    fn check_implicit(&mut self, limits: &Limits) -> Result<(), Refusal> {
        if self.entries + self.tree.implicit.len() as u64 > limits.entries {
            return Err(too_many(limits));
        }
        self.directories.make_room(self.tree.implicit_bytes + self.links_bytes)
    }

    fn directory<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        dir: &[u8],
        name: &[u8],
    ) -> Result<(), Refusal> {
        let attributes = Attributes::read(entry)?;
        let parent = self.tree.directory(dir).map_err(step("enter its directory"))?;
        match beneath::make_directory(parent, name) {
            Ok(made) => {
                self.inodes += u64::from(made);
                self.bytes += if made { BLOCK } else { 0 };
            }
            Err(Errno::NOTDIR) => return Err("the layer already has a file or link of this name".into()),
            Err(errno) => return Err(Refusal::Kernel("make the directory", errno)),
        }
        let mut path = dir.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.directories.insert(path, attributes)
    }

    /// Everything but directories.
    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        dir: &[u8],
        name: &[u8],
    ) -> Result<(), Refusal> {
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, (dir, name), None)
            }
            EntryType::Link => self.hard_link(entry, dir, name),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                    return Err("its link target is empty, too long or holds a NUL".into());
                }
                let make = |parent: BorrowedFd<'_>, name: &OsStr| {
                    rustix::fs::symlinkat(OsStr::from_bytes(&target), parent, name)
                };
                self.special(entry, (dir, name), &make, false)
            }
            EntryType::Fifo => {
                let make = |parent: BorrowedFd<'_>, name: &OsStr| {
                    rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR, 0)
                };
                self.special(entry, (dir, name), &make, true)
            }
            EntryType::Char | EntryType::Block => {
                let number = |value: std::io::Result<Option<u32>>| value.ok().flatten();
                let (major, minor) =
                    (number(entry.header().device_major()), number(entry.header().device_minor()));
                let (Some(major), Some(minor)) = (major, minor) else {
                    return Err("its device number cannot be read".into());
                };
                let device = rustix::fs::makedev(major, minor);
                if kind == EntryType::Char && device == 0 {
                    return Err("the character device 0:0 is overlayfs's own mark for a removed file".into());
                }
                let file_type =
                    if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                let make = |parent: BorrowedFd<'_>, name: &OsStr| {
                    rustix::fs::mknodat(parent, name, file_type, Mode::RUSR, device)
                };
                self.special(entry, (dir, name), &make, true)
            }
            other => Err(format!("entries of type {:?} are not known", char::from(other.as_byte())).into()),
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        (dir, name): (&[u8], &[u8]),
        holes: Option<Sparse>,
    ) -> Result<(), Refusal> {
        let attributes = Attributes::read(entry)?;
        self.content.admit(holes.as_ref().map_or(entry.size(), |holes| holes.size))?;
        let parent = self.tree.directory(dir).map_err(step("enter its directory"))?;
        let plain_mode = attributes.mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let os_name = OsStr::from_bytes(name);
        let fd = create(parent, name, || rustix::fs::openat(parent, os_name, flags, plain_mode))?;
        let mut file = std::fs::File::from(fd);
        let written = match holes {
            None => {
                let (written, hash) = self.content.copy(entry, &mut file)?;
                if entry.size() > 0 {
                    self.contents.note(rustix::fs::fstat(&file).map_err(step("look at it"))?.st_ino, hash);
                }
                written
            }
            Some(mut holes) => self.content.copy_parts(entry, (&mut holes, &mut file))?,
        };
        if attributes.uid != 0 || attributes.gid != 0 {
            let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
            rustix::fs::fchown(&file, owner.0, owner.1).map_err(step("set its owner"))?;
        }
        if attributes.mode.as_raw_mode() & (self.umask | 0o7000) != 0 {
            rustix::fs::fchmod(&file, attributes.mode).map_err(step("set its mode"))?;
        }
        for (name, value) in &attributes.xattrs {
            rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty())
                .map_err(step("set its extended attributes"))?;
        }
        rustix::fs::futimens(&file, &attributes.times).map_err(step("set its times"))?;
        self.bytes += written.next_multiple_of(BLOCK);
        self.inodes += 1;
        Ok(())
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        dir: &[u8],
        name: &[u8],
    ) -> Result<(), Refusal> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let path = entry::clean(&target).map_err(|reason| {
            let shown = String::from_utf8_lossy(&target[..target.len().min(300)]);
            format!("target of its hard link, {shown:?}: {reason}")
        })?;
        let (target_dir, target_name) = borrow::split(&path);
        let missing = || borrow::no_target(&path);
        if target_name.is_empty() {
            return Err(missing().into());
        }
        let from = match self.tree.look_into(target_dir) {
            Ok(from) => from,
            // It may come later, or be in a layer below.
            Err(Errno::NOENT) => return self.link_later((dir, name), path),
            Err(_) => return Err(missing().into()),
        };
        let found = match beneath::lookup(from.as_fd(), target_name) {
            Ok(found) => found,
            Err(Errno::NOENT) => return self.link_later((dir, name), path),
            Err(_) => return Err(missing().into()),
        };
        if beneath::is_directory(&found) || beneath::is_whiteout(&found) {
            return Err(missing().into());
        }
        let parent = self.tree.directory(dir).map_err(step("enter its directory"))?;
        let (target_name, os_name) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
        create(parent, name, || rustix::fs::linkat(&from, target_name, parent, os_name, AtFlags::empty()))
    }

    fn link_later(&mut self, (dir, name): (&[u8], &[u8]), target: Vec<u8>) -> Result<(), Refusal> {
        // What is in the way is found now, while the entry is at hand.
        self.tree.directory(dir).map_err(step("enter its directory"))?;
        let name = match dir {
            b"" => name.to_vec(),
            dir => [dir, b"/", name].concat(),
        };
        let link = Link { name, target };
        self.links_bytes += link.weight();
        self.links.push(link);
        Ok(())
    }

    /// Makes the hard links whose targets came after them; answers the others.
    fn link_what_came_later(&mut self) -> Result<Vec<Link>, UnpackError> {
        let mut links = std::mem::take(&mut self.links);
        // A link may lead to one that was late itself; not for ever, since an archive could make that take long.
        for _ in 0..LATE {
            let before = links.len();
            let mut left = Vec::new();
            for link in links {
                let (dir, name) = borrow::split(&link.target);
                let there = self.tree.look_into(dir).and_then(|dir| beneath::lookup(dir.as_fd(), name));
                match there {
                    Ok(found) if !beneath::is_directory(&found) && !beneath::is_whiteout(&found) => {
                        borrow::link_in(&mut self.tree, &link).map_err(|refusal| refusal.at(&link.name))?;
                    }
                    _ => left.push(link),
                }
            }
            links = left;
            if links.is_empty() || links.len() == before {
                break;
            }
        }
        Ok(links)
    }

    /// Makes what cannot be opened: links, pipes, devices.
    fn special<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        (dir, name): (&[u8], &[u8]),
        make: &dyn Fn(BorrowedFd<'_>, &OsStr) -> Result<(), Errno>,
        has_mode: bool,
    ) -> Result<(), Refusal> {
        let attributes = Attributes::read(entry)?;
        let parent = self.tree.directory(dir).map_err(step("enter its directory"))?;
        let os_name = OsStr::from_bytes(name);
        create(parent, name, || make(parent, os_name))?;
        if attributes.uid != 0 || attributes.gid != 0 {
            let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
            rustix::fs::chownat(parent, os_name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(step("set its owner"))?;
        }
        if has_mode {
            // chmodat follows links, but what has this name was made just now, in a directory nobody
            // else can enter.
            rustix::fs::chmodat(parent, os_name, attributes.mode, AtFlags::empty())
                .map_err(step("set its mode"))?;
        }
        for (key, value) in attributes.xattrs.iter().filter(|(key, _)| !key.starts_with("user.")) {
            let path = beneath::proc_path(parent, name);
            rustix::fs::lsetxattr(&path, key.as_str(), value, XattrFlags::empty())
                .map_err(step("set its extended attributes"))?;
        }
        rustix::fs::utimensat(parent, os_name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set its times"))?;
        self.inodes += 1;
        Ok(())
    }

    /// Sets what directories are to look like, now that nothing more is put into them.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        let links = self.link_what_came_later()?;
        let made = self.tree.implicit.len() as u64;
        let mut implicit = std::mem::take(&mut self.tree.implicit);
        implicit.retain(|name| !self.directories.contains(name));
        for name in &implicit {
            let set = || rustix::fs::fchmod(self.tree.open(name)?, Mode::from_raw_mode(0o755));
            set().map_err(|errno| Refusal::Kernel("set the directory's mode", errno).at(name))?;
        }
        self.directories.finish(&self.tree)?;
        let root_entry = self.directories.contains(b"");
        if !root_entry {
            let set = || rustix::fs::fchmod(self.tree.open(b"")?, Mode::from_raw_mode(0o755));
            set().map_err(|errno| Refusal::Kernel("set the mode", errno).at(b"/"))?;
        }
        let (bytes, inodes) = (self.bytes + made * BLOCK, self.inodes + made);
        Ok(Unpacked { bytes, inodes, root_entry, implicit, links, contents: self.contents.sorted() })
    }
}

/// Runs `make`, which fails when `name` exists; once more when only a whiteout was in the way.
fn create<T>(parent: BorrowedFd<'_>, name: &[u8], make: impl Fn() -> Result<T, Errno>) -> Result<T, Refusal> {
    match make() {
        Err(Errno::EXIST)
            if beneath::clear_whiteout(parent, name).map_err(step("look at what has its name"))? =>
        {
            make().map_err(step("create it"))
        }
        Err(Errno::EXIST) => Err(TWO_ENTRIES.into()),
        other => other.map_err(step("create it")),
    }
}
