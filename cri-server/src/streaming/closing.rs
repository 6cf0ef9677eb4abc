//! Sessions that end in words when the server does: a client that only sees its connection end would take
//! that for the end of the command.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    error::{Error, Result},
    runtime::session::{AttachRequest, Duplex, ExecRequest, Process, Session, Sessions},
};

/// Sessions of a server that may be closed.
pub(super) struct Closing {
    pub(super) sessions: Arc<dyn Sessions>,
    pub(super) closed: watch::Receiver<()>,
}

impl Closing {
    fn bound(&self, session: Session) -> Session {
        let process = Box::new(Bound { process: session.process, closed: self.closed.clone() });
        Session { process, ..session }
    }
}

#[async_trait]
impl Sessions for Closing {
    async fn exec(&self, exec: ExecRequest) -> Result<Session> {
        self.sessions.exec(exec).await.map(|session| self.bound(session))
    }

    async fn attach(&self, attach: AttachRequest) -> Result<Session> {
        self.sessions.attach(attach).await.map(|session| self.bound(session))
    }

    async fn connect(&self, pod: &str, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        self.sessions.connect(pod, port).await
    }

    async fn stopped(&self, pod: &str) {
        self.sessions.stopped(pod).await;
    }
}

struct Bound {
    process: Box<dyn Process>,
    closed: watch::Receiver<()>,
}

#[async_trait]
impl Process for Bound {
    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.process.resize(columns, rows)
    }

    async fn wait(&mut self) -> Result<i32> {
        tokio::select! {
            ended = self.process.wait() => ended,
            // Told or dropped: both are the end.
            _ = self.closed.changed() => Err(Error::Precondition(
                "podhold is ending, and this session with it; the container runs on: connect again".to_owned(),
            )),
        }
    }
}
