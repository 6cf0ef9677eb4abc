//! What the node is configured to work with: networks, mirrors, the kubelet.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use podhold_sandbox::network::{Kind, bridge};
use tokio::{net::TcpStream, time::timeout};

use super::Finding;
use crate::{
    config::{Config, KindName},
    error::chain,
    runtime,
};

/// How long a plugin or a mirror may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where a kubelet's configuration is, as kubeadm and most others have it.
const KUBELET: [&str; 2] = ["/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env"];

/// The network that new pods would join.
pub(super) async fn network(config: &Config) -> Finding {
    let check = "pod network";
    let status = match runtime::networks(config) {
        Ok(networks) => networks.status_within(PATIENCE).await.map_err(|error| chain(&error)),
        Err(error) => Err(error.to_string()),
    };
    let dir = config.cni.conf_dir.display();
    match (status, config.network.kind()) {
        (Ok(()), Kind::Cni) => Finding::works(check, format!("CNI, configured in {dir}")),
        (Ok(()), Kind::Bridge) => Finding::works(check, "built-in"),
        (Ok(()), Kind::Auto) => {
            Finding::works(check, format!("CNI where {dir} has a configuration, else built-in"))
        }
        (Err(reason), Kind::Cni)
            if reason.contains("no valid CNI configuration") && !reason.contains("refused") =>
        {
            let usual = config.network.kind == KindName::Usual;
            let cost = "a daemon tells its kubelet that the network is not ready";
            let cost = if usual {
                format!("{cost}; podhold run uses the built-in network")
            } else {
                cost.to_owned()
            };
            let mend = "install a CNI add-on, or set network.kind = \"bridge\"";
            Finding::degraded(check, reason, &cost, mend)
        }
        (Err(reason), _) => Finding::broken(
            check,
            reason,
            "mend what it names, or set network.kind = \"bridge\" for the built-in network",
        ),
    }
}

/// The network that needs no plugin, tried out beside the host's.
pub(super) fn built_in(config: &Config) -> Finding {
    let check = "built-in network";
    let Err(error) = bridge::try_out() else {
        return Finding::works(check, "a bridge, links, addresses and rules can be made");
    };
    let (found, mend) = (chain(&error), "mend what it names, or configure CNI");
    match config.network.kind() {
        Kind::Bridge => Finding::broken(check, found, mend),
        _ => Finding::degraded(check, found, "podhold run gives no pod a network without CNI", mend),
    }
}

/// Whether somebody drops what is forwarded to pods.
pub(super) fn forwarding() -> Finding {
    let check = "forwarding";
    match bridge::in_the_way() {
        Ok(chains) if chains.is_empty() => Finding::works(check, "no chain of nftables drops it by default"),
        Ok(chains) => Finding::degraded(
            check,
            format!("dropped by default by {}", chains.join(", ")),
            "pods of the built-in network reach nothing outside, and host ports only work from here",
            "let the bridge through, with Docker: iptables -I DOCKER-USER -i BRIDGE -j ACCEPT, and the same with -o",
        ),
        Err(error) => Finding::degraded(
            check,
            format!("nftables cannot be asked: {error}"),
            "the built-in network cannot be used",
            "boot a kernel with nf_tables, or configure CNI",
        ),
    }
}

/// The kubelet of this host, if there is one, and whether it has this daemon for its runtime.
pub(super) fn kubelet(config: &Config) -> Finding {
    let check = "kubelet";
    let socket = config.socket();
    let daemon = match UnixStream::connect(&socket) {
        Ok(_) => format!("a daemon answers at {}", socket.display()),
        Err(_) => format!("no daemon at {}", socket.display()),
    };
    let text: String = KUBELET.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let endpoint = text.lines().find_map(|line| {
        let at = line.find("containerRuntimeEndpoint").or_else(|| line.find("container-runtime-endpoint"))?;
        let rest = line[at..].split_once([':', '='])?.1;
        Some(rest.trim().trim_matches(['"', '\'']).split_whitespace().next()?.to_owned())
    });
    match endpoint {
        None => Finding::works(check, format!("none is configured here; {daemon}")),
        Some(endpoint) if endpoint.ends_with(&*socket.to_string_lossy()) => {
            Finding::works(check, format!("uses {endpoint}; {daemon}"))
        }
        Some(endpoint) => Finding::degraded(
            check,
            format!("uses {endpoint}; {daemon}"),
            "this kubelet runs its pods elsewhere",
            format!("set containerRuntimeEndpoint: unix://{} in {}", socket.display(), KUBELET[0]),
        ),
    }
}

/// Every mirror that `hosts.toml` files name.
pub(super) async fn mirrors(dirs: &[PathBuf]) -> Vec<Finding> {
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let files: Vec<PathBuf> =
        files.map(|entry| entry.path().join("hosts.toml")).filter(|file| file.is_file()).collect();
    let found = futures::future::join_all(files.iter().map(|file| mirrors_of(file))).await;
    found.into_iter().flatten().collect()
}

async fn mirrors_of(file: &Path) -> Vec<Finding> {
    let check = "registry mirror";
    let text = fs::read_to_string(file).unwrap_or_default();
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let found = format!("{}: {error}", file.display());
            return vec![Finding::degraded(check, found, "pulls from this registry fail", "mend the file")];
        }
    };
    let hosts = table.get("host").and_then(toml::Value::as_table);
    let urls = hosts.into_iter().flat_map(toml::Table::keys);
    futures::future::join_all(urls.map(|url| mirror(file, url))).await
}

async fn mirror(file: &Path, url: &str) -> Finding {
    let check = "registry mirror";
    let found = |what: &str| format!("{url} of {}: {what}", file.display());
    // A name is looked up in the same time.
    let reason = match timeout(PATIENCE, TcpStream::connect(host_of(url))).await {
        Ok(Ok(_)) => return Finding::works(check, found("answers")),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    let cost = "each pull tries it first, then goes on to the next";
    Finding::degraded(check, found(&reason), cost, "start the mirror, or remove it from the file")
}

/// Host and port of a URL.
fn host_of(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or_default();
    // The colons of an IPv6 address are in brackets.
    match host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        true => host.to_owned(),
        false => format!("{host}:{}", if scheme == "http" { 80 } else { 443 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leads_to_a_host_and_its_port() {
        assert_eq!(host_of("http://127.0.0.1:5000"), "127.0.0.1:5000");
        assert_eq!(host_of("https://10.0.0.1/v2"), "10.0.0.1:443");
        assert_eq!(host_of("http://[::1]:5000/"), "[::1]:5000");
        assert_eq!(host_of("http://[::1]/"), "[::1]:80");
        assert_eq!(host_of("localhost:5000"), "localhost:5000");
        assert_eq!(host_of("mirror.example"), "mirror.example:443");
    }
}
