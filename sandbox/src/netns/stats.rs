//! Traffic counters, from `/proc/net/dev` (proc(5)).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Traffic of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// The interface, such as `eth0`.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets that were dropped instead of sent.
    pub tx_dropped: u64,
}

/// More interfaces than a pod has in earnest.
const LARGEST: u64 = 1 << 20;

pub(super) fn of_this_thread() -> io::Result<Vec<InterfaceStats>> {
    let mut text = String::new();
    File::open("/proc/thread-self/net/dev")?.take(LARGEST).read_to_string(&mut text)?;
    Ok(parse(&text))
}

/// Through `/proc/PID/net/dev`, if the process is in the namespace that is pinned at `pinned`.
pub(super) fn of_process(pid: u32, pinned: &Path) -> io::Result<Vec<InterfaceStats>> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/net/dev"))?.take(LARGEST).read_to_string(&mut text)?;
    // After the reading: a process that has taken the number since is in another namespace.
    let (own, wanted) = (std::fs::metadata(format!("/proc/{pid}/ns/net"))?, std::fs::metadata(pinned)?);
    if (own.dev(), own.ino()) != (wanted.dev(), wanted.ino()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<InterfaceStats> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<InterfaceStats> {
    let (name, numbers) = line.rsplit_once(':')?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = numbers[..]
    else {
        return None;
    };
    let name = name.trim().to_owned();
    Some(InterfaceStats {
        name,
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn headings_and_torn_lines_are_no_interfaces() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    3    4    0     0          0         0      500       6    7    8    0     0       0          0
  eth0:     1 2 3
";
        let stats = super::parse(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].name.as_str(), stats[0].rx_bytes, stats[0].tx_dropped), ("lo", 100, 8));
        assert_eq!((stats[0].rx_errors, stats[0].tx_bytes, stats[0].tx_errors), (3, 500, 7));
    }
}
