//! Which version of the protocol is spoken with a shim. Shims outlive daemons: most were started by an
//! earlier build.

use std::collections::HashSet;

use podhold_proto::shim::{Hello, HelloReply, reply::Result as Outcome, request::Call};

use super::connection::Connection;
use crate::{PodId, launch::LaunchError, wire::VERSION};

/// The oldest version this build speaks.
const OLDEST: u32 = if VERSION > 3 { VERSION - 2 } else { 1 };
/// What builds between versions 1 and 2 call what came with version 2.
const ATTACH: &str = "attach";
const USER_NAMESPACES: &str = "user-namespaces";

/// What a shim can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    number: u32,
    /// Beyond the first build of its version.
    features: HashSet<String>,
}

impl Version {
    fn new(reply: &HelloReply) -> Self {
        Self { number: reply.version, features: reply.features.iter().cloned().collect() }
    }

    pub(super) fn can_attach(&self) -> bool {
        self.number >= 2 || self.features.contains(ATTACH)
    }

    pub(super) fn can_make_namespaces(&self) -> bool {
        self.number >= 2 || self.features.contains(USER_NAMESPACES)
    }
}

/// Says Hello on a new connection. A shim of version 1 refuses every version but its own, without saying
/// which that is; later ones answer with theirs.
pub(super) async fn greet(
    pod: &PodId,
    connection: &Connection,
) -> Result<(HelloReply, Version), LaunchError> {
    let reply = match hello(pod, connection, VERSION).await {
        Err(LaunchError::Protocol { .. }) => hello(pod, connection, 1).await?,
        other => other?,
    };
    if !(OLDEST..=VERSION).contains(&reply.version) {
        return Err(foreign(pod, reply.version));
    }
    let version = Version::new(&reply);
    Ok((reply, version))
}

async fn hello(pod: &PodId, connection: &Connection, version: u32) -> Result<HelloReply, LaunchError> {
    let call = Call::Hello(Hello { version, features: Vec::new() });
    match connection.request(call, Vec::new()).await?.0 {
        Outcome::Hello(reply) => Ok(reply),
        other => {
            let reason = format!("an answer to another question: {other:?}");
            Err(LaunchError::Protocol { pod: pod.clone(), reason })
        }
    }
}

/// A shim of a version that is not spoken here.
pub(super) fn foreign(pod: &PodId, version: u32) -> LaunchError {
    LaunchError::Foreign { pod: pod.clone(), version, oldest: OLDEST, newest: VERSION }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use podhold_proto::shim::{Answer, Failure, FailureKind, Reply, Request, answer::Body};

    use super::*;
    use crate::wire::{Inbox, Outbox, Received};

    /// Answers every Hello as `shim` does, until the other end is closed; gives the versions it heard.
    fn shim(socket: UnixStream, answer: impl Fn(u32) -> Outcome) -> Vec<u32> {
        let (mut inbox, mut outbox, mut heard) = (Inbox::default(), Outbox::default(), Vec::new());
        loop {
            let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            if inbox.receive(&socket).unwrap() == Received::End {
                return heard;
            }
            while let Some(request) = inbox.next::<Request>().unwrap() {
                let Some(Call::Hello(hello)) = request.call else { panic!("{request:?}") };
                heard.push(hello.version);
                let reply = Reply { id: request.id, result: Some(answer(hello.version)) };
                outbox.push(&Answer { fds: 0, body: Some(Body::Reply(reply)) }, Vec::new()).unwrap();
                outbox.send(&socket).unwrap();
            }
        }
    }

    async fn greeted(
        answer: impl Fn(u32) -> Outcome + Send + 'static,
    ) -> (Result<Version, LaunchError>, Vec<u32>) {
        let (near, far) = UnixStream::pair().unwrap();
        let shim = tokio::task::spawn_blocking(|| shim(far, answer));
        let pod = PodId::parse("pod").unwrap();
        let (connection, _events) = Connection::open(pod.clone(), near).unwrap();
        let greeted = greet(&pod, &connection).await.map(|(_, version)| version);
        drop(connection);
        (greeted, shim.await.unwrap())
    }

    fn reply(version: u32, features: &[&str]) -> Outcome {
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        Outcome::Hello(HelloReply { version, features, ..HelloReply::default() })
    }

    fn refusal(version: u32) -> Outcome {
        let kind = FailureKind::Protocol.into();
        Outcome::Failure(Failure { kind, message: "no".to_owned(), errno: 0, version })
    }

    /// As the first release answers.
    fn first(heard: u32, features: &[&str]) -> Outcome {
        if heard == 1 { reply(1, features) } else { refusal(0) }
    }

    #[tokio::test]
    async fn a_shim_of_the_first_version_is_spoken_to_in_it() {
        let (version, heard) = greeted(|heard| first(heard, &[])).await;
        let version = version.unwrap();
        assert_eq!(heard, [VERSION, 1]);
        assert!(!version.can_attach() && !version.can_make_namespaces());
        let (version, _) = greeted(|heard| first(heard, &["attach"])).await;
        assert!(version.unwrap().can_attach());
    }

    #[tokio::test]
    async fn a_shim_of_this_version_needs_no_features() {
        let (version, heard) = greeted(|_| reply(2, &[])).await;
        let version = version.unwrap();
        assert!(version.can_attach() && version.can_make_namespaces());
        assert_eq!(heard, [VERSION]);
    }

    #[tokio::test]
    async fn a_newer_shim_is_refused_in_words_and_not_taken_for_dead() {
        let (refused, heard) = greeted(|_| refusal(VERSION + 1)).await;
        let error = refused.unwrap_err();
        assert!(matches!(error, LaunchError::Foreign { version, .. } if version == VERSION + 1), "{error:?}");
        let words = error.to_string();
        assert!(words.contains(&format!("version {}", VERSION + 1)) && words.contains("runs on"), "{words}");
        assert_eq!(heard, [VERSION], "no older version is tried");
        let (refused, _) = greeted(|_| reply(VERSION + 1, &[])).await;
        assert!(matches!(refused, Err(LaunchError::Foreign { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn a_shim_that_refuses_every_version_is_not_taken_for_dead_either() {
        let (refused, _) = greeted(|_| refusal(0)).await;
        assert!(matches!(refused, Err(LaunchError::Protocol { .. })), "{refused:?}");
    }
}
