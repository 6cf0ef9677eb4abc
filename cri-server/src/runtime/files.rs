//! What a pod's containers share besides namespaces: host name, hosts and resolver files, /dev/shm.

use std::{fs, net::IpAddr, os::unix::fs::DirBuilderExt, path::Path};

use podhold_proto::cri;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    error::{Error, Result},
    spec::mounts::PodFiles,
    state::PodRecord,
};

/// Size of a pod's /dev/shm, in bytes; what peers give.
const SHM_SIZE: u64 = 64 << 20;
/// The resolver's configuration of the host.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the real servers; its stub cannot be reached from a pod's network.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What the pod's name service settings may not be.
pub(super) fn check(config: &cri::PodSandboxConfig) -> Result<()> {
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !config.hostname.is_empty() && (config.hostname.len() > 64 || !config.hostname.split('.').all(label)) {
        let reason =
            format!("{:?} is not a host name of at most 64 letters, digits, '-' and '.'", config.hostname);
        return Err(Error::invalid("hostname", reason));
    }
    let dns = config.dns_config.clone().unwrap_or_default();
    for server in &dns.servers {
        if server.split('%').next().and_then(|ip| ip.parse::<IpAddr>().ok()).is_none() {
            return Err(Error::invalid("dns_config.servers", format!("{server:?} is not an IP address")));
        }
    }
    for (field, words) in [("searches", &dns.searches), ("options", &dns.options)] {
        if let Some(bad) =
            words.iter().find(|w| w.is_empty() || w.contains(|c: char| c.is_whitespace() || c.is_control()))
        {
            return Err(Error::invalid(format!("dns_config.{field}"), format!("{bad:?} is not one word")));
        }
    }
    Ok(())
}

/// The host name of a pod with a UTS namespace of its own.
pub(super) fn hostname(config: &cri::PodSandboxConfig) -> String {
    if config.hostname.is_empty() { node_name() } else { config.hostname.clone() }
}

fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Writes the pod's files into `dir`.
pub(super) fn write(dir: &Path, record: &PodRecord) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(Error::doing(format!("making {}", dir.display())))?;
    let name = if record.host_network() { node_name() } else { hostname(&record.config) };
    for (file, text) in [
        ("hostname", format!("{name}\n")),
        ("hosts", hosts(record, &name)),
        ("resolv.conf", resolv_conf(record)),
    ] {
        let path = dir.join(file);
        fs::write(&path, text).map_err(Error::doing(format!("writing {}", path.display())))?;
        if let Some((uid, gid)) = record.user_root() {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid))
                .map_err(Error::doing(format!("giving {} to the pod's root", path.display())))?;
        }
    }
    Ok(())
}

/// Where the container mounts find them.
pub(super) fn of(layout: &podhold_sandbox::Layout, record: &PodRecord) -> PodFiles {
    let etc = layout.pod_etc(&record.id);
    let shm = if record.namespaces().ipc() == cri::NamespaceMode::Node {
        "/dev/shm".into()
    } else {
        layout.pod_shm(&record.id)
    };
    PodFiles {
        shm,
        hostname: Some(etc.join("hostname")),
        hosts: etc.join("hosts"),
        resolv_conf: etc.join("resolv.conf"),
    }
}

fn hosts(record: &PodRecord, name: &str) -> String {
    if record.host_network()
        && let Ok(text) = fs::read_to_string("/etc/hosts")
    {
        return text;
    }
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in &record.ips {
        text.push_str(&format!("{ip}\t{name}\n"));
    }
    text
}

fn resolv_conf(record: &PodRecord) -> String {
    let Some(dns) = &record.config.dns_config else {
        return host_resolv_conf(record.host_network());
    };
    let mut text = String::new();
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for (word, list) in [("search", &dns.searches), ("options", &dns.options)] {
        if !list.is_empty() {
            text.push_str(&format!("{word} {}\n", list.join(" ")));
        }
    }
    if text.is_empty() { host_resolv_conf(record.host_network()) } else { text }
}

/// The host's resolver configuration, as a pod can use it.
pub(crate) fn host_resolv_conf(host_network: bool) -> String {
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let stub = text.lines().any(|line| line.split_whitespace().eq(["nameserver", "127.0.0.53"]));
    if stub && !host_network { fs::read_to_string(RESOLVED).unwrap_or(text) } else { text }
}

/// Mounts the pod's /dev/shm; `owner` is root of a pod with users of its own.
pub(super) fn mount_shm(target: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(target);
    made.map_err(Error::doing(format!("making {}", target.display())))?;
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    let (uid, gid) = owner.unwrap_or_default();
    let options = format!("mode=1777,size={SHM_SIZE},uid={uid},gid={gid}");
    let options = std::ffi::CString::new(options).expect("no NUL in it");
    rustix::mount::mount("shm", target, "tmpfs", flags, Some(options.as_c_str()))
        .map_err(Error::doing(format!("mounting {}", target.display())))
}

/// Unmounts the pod's /dev/shm. Success when it is not mounted.
pub(super) fn unmount_shm(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::failed(format!("unmounting {}", target.display()), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_written_into_a_file_by_a_name() {
        let config = |hostname: &str, dns: cri::DnsConfig| cri::PodSandboxConfig {
            hostname: hostname.into(),
            dns_config: Some(dns),
            ..Default::default()
        };
        let dns = |server: &str, search: &str| cri::DnsConfig {
            servers: vec![server.into()],
            searches: vec![search.into()],
            options: vec!["ndots:5".into()],
        };
        assert!(check(&config("web-0.example", dns("10.0.0.1", "a.b"))).is_ok());
        assert!(check(&config("web\n1.2.3.4 evil", dns("10.0.0.1", "a"))).is_err());
        assert!(check(&config("web", dns("10.0.0.1\nnameserver 6.6.6.6", "a"))).is_err());
        assert!(check(&config("web", dns("fe80::1%eth0", "a b"))).is_err());
    }
}
