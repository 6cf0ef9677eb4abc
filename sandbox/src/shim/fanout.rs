//! Output on its way to attached clients. Part of the logger process.
//!
//! A client has as much room as its sockets' buffers; one that leaves one full is cut off, so that nobody
//! ever waits for a client. The clients of a container share a budget, newly shared out whenever one comes
//! or goes. Nothing is kept here.

use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, send, sockopt};

/// What is kept for all clients of a container that are slower than it, in bytes of kernel memory. Taken as
/// far as it is filled.
const BUDGET: usize = 64 << 20;
/// What is kept at least of one stream for one client.
const LEAST: usize = 1 << 20;

/// The clients of one container.
#[derive(Debug, Default)]
pub(super) struct Clients(Vec<Client>);

#[derive(Debug)]
struct Client {
    number: u64,
    /// Where stdout and stderr go, as far as they are asked for and not ended.
    outputs: [Option<OwnedFd>; 2],
}

impl Clients {
    /// Adds a client; one without a single stream is not kept.
    pub(super) fn join(&mut self, number: u64, outputs: [Option<OwnedFd>; 2]) {
        if outputs.iter().any(Option::is_some) {
            self.0.push(Client { number, outputs });
            self.share();
        }
    }

    /// Forgets a client that is gone.
    pub(super) fn leave(&mut self, number: u64) {
        let before = self.0.len();
        self.0.retain(|client| client.number != number);
        self.share_after(before);
    }

    /// Gives output of stream `kind` to all clients. Those whose buffer has no room for it are cut off and
    /// added to `slow`.
    pub(super) fn give(&mut self, kind: usize, bytes: &[u8], slow: &mut Vec<u64>) {
        let before = self.0.len();
        self.0.retain(|client| {
            let Some(socket) = &client.outputs[kind] else { return true };
            match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) if sent == bytes.len() => true,
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {
                    slow.push(client.number);
                    false
                }
                // Gone: the shim sees that by itself.
                Err(_) => false,
            }
        });
        self.share_after(before);
    }

    /// Stream `kind` has ended.
    pub(super) fn end(&mut self, kind: usize) {
        for client in &mut self.0 {
            client.outputs[kind] = None;
        }
        self.0.retain(|client| client.outputs.iter().any(Option::is_some));
        self.share();
    }

    fn share_after(&self, before: usize) {
        if self.0.len() < before {
            self.share();
        }
    }

    /// Gives every socket the same part of the budget.
    fn share(&self) {
        let count = self.sockets().count();
        let part = (BUDGET / count.max(1)).max(LEAST);
        for (_, socket) in self.sockets() {
            // Half of it: the kernel doubles what it is told, for its own structures.
            if sockopt::set_socket_send_buffer_size_force(socket, part / 2).is_err() {
                // Without CAP_NET_ADMIN: as much as the host allows everyone. Should that fail too, there is
                // what a socket has from the start.
                let _ = sockopt::set_socket_send_buffer_size(socket, part / 2);
            }
        }
    }

    /// Every client's sockets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (u64, &OwnedFd)> {
        self.0.iter().flat_map(|client| client.outputs.iter().flatten().map(|fd| (client.number, fd)))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn one_client_has_the_whole_budget_and_many_share_it() {
        let mut clients = Clients::default();
        let mut far = Vec::new();
        let mut join = |clients: &mut Clients, number| {
            let (near, end) = UnixStream::pair().unwrap();
            clients.join(number, [Some(end.into()), None]);
            far.push(near);
        };
        let room = |clients: &Clients| -> Vec<usize> {
            let size = |(_, socket): (u64, &OwnedFd)| sockopt::socket_send_buffer_size(socket).unwrap();
            clients.sockets().map(size).collect()
        };
        join(&mut clients, 0);
        if room(&clients) != [BUDGET] {
            println!("SKIPPED: needs CAP_NET_ADMIN");
            return;
        }
        for number in 1..64 {
            join(&mut clients, number);
        }
        assert_eq!(room(&clients), [LEAST; 64]);
        (2..64).for_each(|number| clients.leave(number));
        assert_eq!(room(&clients), [BUDGET / 2; 2]);
        // As does one that is cut off.
        let (mut slow, block) = (Vec::new(), [b'x'; 64 << 10]);
        while slow.is_empty() {
            clients.give(0, &block, &mut slow);
            far[0].read_exact(&mut [0; 64 << 10]).unwrap();
        }
        assert_eq!((slow, room(&clients)), (vec![1], vec![BUDGET]));
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_and_the_others_get_everything() {
        let (mut lazy, lazy_end) = UnixStream::pair().unwrap();
        let (mut eager, eager_end) = UnixStream::pair().unwrap();
        let mut clients = Clients::default();
        clients.join(1, [Some(lazy_end.into()), None]);
        clients.join(2, [Some(eager_end.into()), None]);
        let mut slow = Vec::new();
        let mut given = 0;
        while slow.is_empty() {
            clients.give(0, &[b'x'; 4096], &mut slow);
            clients.give(1, b"stderr, which nobody asked for", &mut slow);
            eager.read_exact(&mut [0; 4096]).unwrap();
            given += 4096;
        }
        assert_eq!(slow, [1]);
        let mut got = Vec::new();
        lazy.read_to_end(&mut got).unwrap();
        assert!(!got.is_empty() && got.len() <= given, "what was kept is there, then end of file");
        clients.end(0);
        assert_eq!(eager.read(&mut [0; 10]).unwrap(), 0);
        assert_eq!(clients.sockets().count(), 0);
    }
}
