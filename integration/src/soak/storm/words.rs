//! What clients of a storm ask for, and what they are told, in the words of the ledger.

/// A pod's name and attempt: what makes it the same pod to a kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot {
    /// Its name.
    pub name: String,
    /// Its attempt.
    pub attempt: u32,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// RunPodSandbox, with the other of two configurations if it says so.
    RunPod(Slot, bool),
    /// StopPodSandbox.
    StopPod(String),
    /// RemovePodSandbox.
    RemovePod(String),
    /// PodSandboxStatus.
    PodStatus(String),
    /// CreateContainer in a pod, by the container's name, with the other of two configurations if it says so.
    Create(String, &'static str, bool),
    /// StartContainer.
    Start(String),
    /// StopContainer with a grace in seconds.
    Stop(String, i64),
    /// RemoveContainer.
    Remove(String),
    /// ContainerStatus.
    Status(String),
    /// ExecSync of a command whose exit code is 7.
    Exec(String),
    /// UpdateContainerResources.
    Update(String),
    /// ReopenContainerLog.
    Reopen(String),
    /// ContainerStats.
    Stats(String),
    /// ListPodSandbox.
    ListPods,
    /// ListContainers.
    ListContainers,
    /// ListPodSandboxStats.
    ListStats,
    /// PullImage of an image that is there.
    Pull,
}

impl What {
    /// The verb, for a table.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::RunPod(..) => "RunPodSandbox",
            Self::StopPod(_) => "StopPodSandbox",
            Self::RemovePod(_) => "RemovePodSandbox",
            Self::PodStatus(_) => "PodSandboxStatus",
            Self::Create(..) => "CreateContainer",
            Self::Start(_) => "StartContainer",
            Self::Stop(..) => "StopContainer",
            Self::Remove(_) => "RemoveContainer",
            Self::Status(_) => "ContainerStatus",
            Self::Exec(_) => "ExecSync",
            Self::Update(_) => "UpdateContainerResources",
            Self::Reopen(_) => "ReopenContainerLog",
            Self::Stats(_) => "ContainerStats",
            Self::ListPods => "ListPodSandbox",
            Self::ListContainers => "ListContainers",
            Self::ListStats => "ListPodSandboxStats",
            Self::Pull => "PullImage",
        }
    }
}

/// A pod as an answer shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodSeen {
    /// Its id.
    pub id: String,
    /// Its name.
    pub slot: Slot,
    /// Whether it is Ready.
    pub ready: bool,
}

/// Where a container is, in the order of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Created.
    Created,
    /// Running.
    Running,
    /// Exited.
    Exited,
}

/// A container as an answer shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerSeen {
    /// Its id.
    pub id: String,
    /// Its pod.
    pub pod: String,
    /// Its name.
    pub name: String,
    /// Its state, `None` when it is Unknown.
    pub state: Option<State>,
    /// Exit code and time, where the answer has them.
    pub ended: Option<(i32, i64)>,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// Nothing but success.
    Done,
    /// An id.
    Id(String),
    /// An exit code.
    Code(i32),
    /// A pod.
    Pod(PodSeen),
    /// All pods.
    Pods(Vec<PodSeen>),
    /// A container.
    Container(ContainerSeen),
    /// All containers.
    Containers(Vec<ContainerSeen>),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It succeeded.
    Reply(Reply),
    /// It was refused.
    Refused(tonic::Code, String),
    /// The connection broke.
    Cut(String),
    /// Its client went away.
    Abandoned,
    /// There was no answer for longer than anything may take.
    Silence,
}
