//! Further processes in running containers.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    time::{Duration, Instant},
};

use oci_spec::runtime::{
    Arch, Capability, LinuxCapabilities, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall, UserBuilder,
};
use podhold_sandbox::{
    ContainerId,
    launch::{ExecEnd, ExecIo, ExecSpec, LaunchError, SignalTo, StartSpec},
};

use common::{Host, Pod, namespace, possible, shell, until};

async fn sleeper(host: &Host) -> (Pod, ContainerId, u32) {
    start(host, host.shell("c1", "sleep 1000")).await
}

async fn start(host: &Host, start: StartSpec) -> (Pod, ContainerId, u32) {
    let pod = host.open().await;
    let id = start.id.clone();
    let pid = pod.live.start(start).await.unwrap().pid;
    (pod, id, pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_gives_its_output_and_code() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (pod, id, _) = sleeper(&host).await;
    let (end, output) = pod.exec(&id, shell("echo out; echo err >&2; pwd; exit 9"), None).await;
    assert_eq!((end, output.as_str()), (ExecEnd::Exited(9), "out\nerr\n/\n"));
    let (end, _) = pod.exec(&id, shell("kill -9 $$"), None).await;
    assert_eq!(end, ExecEnd::Exited(137));
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_in_the_container_in_every_respect() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (pod, id, init) = sleeper(&host).await;
    let (read, write) = std::io::pipe().unwrap();
    let io = ExecIo::Files { stdin: Some(read.into()), stdout: None, stderr: None };
    let mut process = shell("");
    process.set_args(Some(vec!["cat".into()]));
    let exec = ExecSpec { container: id.clone(), process, io, timeout: None };
    let mut session = pod.live.exec(exec).await.unwrap();
    for name in ["pid", "mnt", "ipc", "uts", "net"] {
        assert_eq!(namespace(session.pid(), name), namespace(init, name), "{name}");
    }
    let cgroup = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let joined = |text: &str| text.lines().filter(|line| line.contains(host.cgroup.as_str())).count();
    assert!(joined(&cgroup(init)) > 0);
    assert_eq!(joined(&cgroup(session.pid())), joined(&cgroup(init)));
    let status = fs::read_to_string(format!("/proc/{}/status", session.pid())).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for name in ["SigBlk:", "SigIgn:"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    assert_eq!(field("NoNewPrivs:"), "1", "as the container");
    let fds: Vec<String> = fs::read_dir(format!("/proc/{}/fd", session.pid()))
        .unwrap()
        .map(|fd| fd.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(fds.len(), 3, "{fds:?}");
    drop(write);
    assert_eq!(session.wait().await.unwrap(), ExecEnd::Exited(0));
    assert_eq!(session.wait().await.unwrap(), ExecEnd::Exited(0), "asked again");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_takes_too_long_is_killed_alone() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (mut pod, id, init) = sleeper(&host).await;
    let before = Instant::now();
    let limit = Some(Duration::from_millis(300));
    // The child shares the session, and would keep the pipe open.
    let (end, output) = pod.exec(&id, shell("echo begun; sleep 1000 & sleep 1000"), limit).await;
    assert_eq!((end, output.as_str()), (ExecEnd::TimedOut, "begun\n"));
    assert!(before.elapsed() < Duration::from_secs(10));
    assert!(fs::metadata(format!("/proc/{init}")).is_ok(), "the container runs on");

    let io = ExecIo::Files { stdin: None, stdout: None, stderr: None };
    let exec = ExecSpec { container: id.clone(), process: shell("sleep 1000"), io, timeout: None };
    let mut session = pod.live.exec(exec).await.unwrap();
    session.kill().await.unwrap();
    assert_eq!(session.wait().await.unwrap(), ExecEnd::Exited(137));
    session.kill().await.expect("killing again succeeds");
    pod.live.signal(&id, 9, SignalTo::Init).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    let io = ExecIo::Files { stdin: None, stdout: None, stderr: None };
    let exec = ExecSpec { container: id.clone(), process: shell("true"), io, timeout: None };
    assert!(
        matches!(pod.live.exec(exec).await, Err(LaunchError::NotRunning { container, .. }) if container == id)
    );
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_the_user_groups_and_capabilities_it_asks_for() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (pod, id, _) = sleeper(&host).await;
    let mut process = shell("id -u; id -g; id -G; umask; echo $HOME; grep -E '^Cap' /proc/self/status");
    let user = UserBuilder::default().uid(1000u32).gid(1001u32).additional_gids([5u32, 6]).umask(0o077u32);
    process.set_user(user.build().unwrap());
    let mut capabilities = LinuxCapabilities::default();
    let few: std::collections::HashSet<_> = [Capability::NetBindService].into();
    let none = std::collections::HashSet::new();
    capabilities.set_bounding(Some(few.clone()));
    capabilities.set_permitted(Some(few.clone()));
    capabilities.set_effective(Some(few));
    capabilities.set_inheritable(Some(none.clone()));
    capabilities.set_ambient(Some(none));
    process.set_capabilities(Some(capabilities));
    let (end, output) = pod.exec(&id, process, None).await;
    assert_eq!(end, ExecEnd::Exited(0), "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(&lines[..5], ["1000", "1001", "1001 5 6", "0077", "/home/user"], "{output}");
    assert_eq!(
        &lines[5..],
        [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000400",
            "CapAmb:\t0000000000000000"
        ]
    );
    pod.close(&host).await;
}

/// A container that tries mkdir(2), which its profile refuses, shows what it may do, and stays.
fn filtered(host: &Host, no_new_privileges: Option<bool>) -> StartSpec {
    let script = "mkdir /tmp/x; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; echo end; sleep 1000";
    host.container("c1", &["sh", "-c", script], |spec| {
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["mkdir".into(), "mkdirat".into()]);
        rule.set_action(LinuxSeccompAction::ScmpActErrno);
        let mut seccomp = LinuxSeccomp::default();
        seccomp.set_default_action(LinuxSeccompAction::ScmpActAllow);
        seccomp.set_syscalls(Some(vec![rule]));
        let mut linux = spec.linux().clone().unwrap();
        linux.set_seccomp(Some(seccomp));
        spec.set_linux(Some(linux));
        let mut process = spec.process().clone().unwrap();
        process.set_no_new_privileges(no_new_privileges);
        process.set_user(UserBuilder::default().uid(1000u32).gid(1000u32).build().unwrap());
        let few: std::collections::HashSet<_> = [Capability::NetBindService, Capability::Kill].into();
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some(few.clone()));
        capabilities.set_permitted(Some(few.clone()));
        capabilities.set_effective(Some(few.clone()));
        capabilities.set_inheritable(Some(few));
        capabilities.set_ambient(Some([Capability::NetBindService].into()));
        process.set_capabilities(Some(capabilities));
        spec.set_process(Some(process));
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn init_and_execs_are_under_the_containers_seccomp_filter_however_it_was_compiled() {
    if !possible() {
        return;
    }
    for no_new_privileges in [Some(true), None] {
        let mut seen = Vec::new();
        // By us when the bundle was made, and, with a bundle of an earlier build, by libcontainer.
        for compiled in [true, false] {
            let host = Host::new();
            let container = filtered(&host, no_new_privileges);
            if !compiled {
                let bundle = host.layout.bundle(&host.pod, &container.id);
                fs::remove_file(bundle.join("seccomp.bpf")).expect("it is compiled with the bundle");
            }
            let (pod, id, _) = start(&host, container).await;
            until("it has spoken", || host.log_text(&id).contains("F end"));
            let mut process = shell("mkdir /tmp/x; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status");
            process.set_user(UserBuilder::default().uid(1000u32).gid(1000u32).build().unwrap());
            process.set_capabilities(None);
            process.set_no_new_privileges(None);
            let (end, exec) = pod.exec(&id, process, None).await;
            assert_eq!(end, ExecEnd::Exited(0));
            let init = host.log_text(&id);
            for output in [&init, &exec] {
                assert!(output.contains("Operation not permitted"), "{output}");
                assert!(output.contains("Seccomp:\t2"), "{output}");
                assert!(output.contains("CapAmb:\t0000000000000400"), "{output}");
            }
            seen.extend([init, exec].map(|output| facts(&output)));
            pod.close(&host).await;
        }
        assert!(seen.iter().all(|facts| *facts == seen[0]), "{seen:#?}");
    }
}

/// What `/proc/self/status` says, from a log or from output.
fn facts(output: &str) -> Vec<String> {
    let line = |line: &str| line.find("Cap").or(line.find("NoNew")).or(line.find("Seccomp"));
    output.lines().filter_map(|text| line(text).map(|at| text[at..].to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_refused_in_words() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (pod, id, _) = sleeper(&host).await;
    for (program, words) in [
        ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/nosuch", "exec: \"/nosuch\": no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        let mut process = shell("");
        process.set_args(Some(vec![program.into()]));
        let io = ExecIo::Files { stdin: None, stdout: None, stderr: None };
        let exec = ExecSpec { container: id.clone(), process, io, timeout: None };
        let refused = pod.live.exec(exec).await.err().expect("refused");
        assert!(matches!(&refused, LaunchError::Refused(text) if text == words), "{refused}");
    }
    let mut process = shell("true");
    process.set_cwd("/nosuch".into());
    let io = ExecIo::Files { stdin: None, stdout: None, stderr: None };
    let refused = pod.live.exec(ExecSpec { container: id, process, io, timeout: None }).await;
    let words = refused.err().expect("refused").to_string();
    assert!(words.contains("/nosuch"), "{words}");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_gets_a_terminal_of_the_container() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (pod, id, _) = sleeper(&host).await;
    let mut process = shell("tty; read line; echo got $line; stty size");
    let size = oci_spec::runtime::BoxBuilder::default().height(33u64).width(99u64).build().unwrap();
    process.set_console_size(Some(size));
    process.set_terminal(Some(true));
    let exec = ExecSpec { container: id, process, io: ExecIo::Terminal, timeout: None };
    let mut session = pod.live.exec(exec).await.unwrap();
    let terminal = session.take_terminal().unwrap();
    assert!(session.take_terminal().is_none());
    let output = tokio::task::spawn_blocking(move || {
        let mut terminal = fs::File::from(terminal);
        let written = terminal.write_all(b"words\n");
        let mut output = Vec::new();
        // The end of a terminal is EIO.
        let _ = terminal.read_to_end(&mut output);
        format!("{written:?} {}", String::from_utf8(output).unwrap())
    })
    .await
    .unwrap();
    assert_eq!(session.wait().await.unwrap(), ExecEnd::Exited(0), "{output}");
    for expected in ["/dev/pts/", "got words", "33 99"] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_execs_at_once_all_give_their_own_answer() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (pod, id, _) = sleeper(&host).await;
    let (live, name) = (&pod, &id);
    let runs = (0..40).map(|n| async move {
        let (end, output) = live.exec(name, shell(&format!("echo {n}; exit {n}")), None).await;
        assert_eq!((end, output), (ExecEnd::Exited(n), format!("{n}\n")));
    });
    for run in runs.collect::<Vec<_>>() {
        run.await;
    }
    let together = (0..20).map(|n| {
        let io = ExecIo::Files { stdin: None, stdout: None, stderr: None };
        pod.live.exec(ExecSpec {
            container: id.clone(),
            process: shell(&format!("exit {n}")),
            io,
            timeout: None,
        })
    });
    let mut sessions = Vec::new();
    for session in together {
        sessions.push(session.await.unwrap());
    }
    for (n, mut session) in (0..).zip(sessions) {
        assert_eq!(session.wait().await.unwrap(), ExecEnd::Exited(n));
    }
    until("no helper is left", || {
        let left = host.left();
        left.iter().filter(|what| what.starts_with("process")).count() <= 4
    });
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_joins_the_inits_cgroup_where_the_container_has_divided_its_own() {
    if !possible() {
        return;
    }
    let unified = std::path::Path::new("/sys/fs/cgroup/unified");
    let enabled = std::fs::read_to_string(unified.join("cgroup.subtree_control")).unwrap_or_default();
    let Some(controller) = enabled.split_whitespace().next() else {
        println!("SKIPPED: needs a controller enabled in {}", unified.display());
        return;
    };
    let host = Host::new();
    let pod = host.open().await;
    let start = host.shell("c1", "sleep 1000");
    let id = start.id.clone();
    let init = pod.live.start(start).await.unwrap().pid;
    // What systemd does in a container: the processes go to a leaf, controllers are given to the leaves.
    let pods = unified.join(host.cgroup.relative());
    let own = pods.join(id.as_str());
    std::fs::create_dir_all(own.join("init.scope")).unwrap();
    for directory in [&pods, &own] {
        std::fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    }
    std::fs::write(own.join("init.scope/cgroup.procs"), init.to_string()).unwrap();
    let divided = std::fs::write(own.join("cgroup.procs"), std::process::id().to_string());
    assert_eq!(divided.unwrap_err().raw_os_error(), Some(libc::EBUSY));

    let (end, output) = pod.exec(&id, shell("grep ^0:: /proc/self/cgroup"), None).await;
    assert_eq!(end, ExecEnd::Exited(0), "{output}");
    assert!(output.ends_with("/c1/init.scope\n"), "{output}");
    pod.live.delete(&id).await.unwrap();
    assert!(!own.exists());
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_comparison_of_a_seccomp_rule_is_taken_as_oci_means_it() {
    if !possible() {
        return;
    }
    let host = Host::new();
    // Refuses a clone that sends no signal at its end; fork(2) asks for SIGCHLD, so it stays allowed. With
    // mask and value exchanged every clone would match.
    let no_signal = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(0xffu64)
        .value_two(0u64)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()
        .unwrap();
    let container = host.container("c1", &["sh", "-c", "(sleep 0); echo forked"], |spec| {
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["clone".into()]);
        rule.set_action(LinuxSeccompAction::ScmpActErrno);
        rule.set_args(Some(vec![no_signal]));
        let mut seccomp = LinuxSeccomp::default();
        seccomp.set_default_action(LinuxSeccompAction::ScmpActAllow);
        seccomp.set_syscalls(Some(vec![rule]));
        let mut linux = spec.linux().clone().unwrap();
        linux.set_seccomp(Some(seccomp));
        spec.set_linux(Some(linux));
    });
    let sleeper = host.container("c2", &["sleep", "1000"], |spec| {
        let json = fs::read(host.layout.bundle(&host.pod, &container.id).join("config.json")).unwrap();
        let filtered: oci_spec::runtime::Spec = serde_json::from_slice(&json).unwrap();
        let mut linux = spec.linux().clone().unwrap();
        linux.set_seccomp(filtered.linux().as_ref().unwrap().seccomp().clone());
        spec.set_linux(Some(linux));
    });
    let mut pod = host.open().await;
    let code = pod.run(container.clone()).await.code;
    let log = host.log_text(&container.id);
    assert!(code == 0 && log.contains("forked"), "init: {code} {log}");
    let id = sleeper.id.clone();
    pod.live.start(sleeper).await.unwrap();
    let (end, output) = pod.exec(&id, shell("(sleep 0); echo forked"), None).await;
    assert!(end == ExecEnd::Exited(0) && output.contains("forked"), "exec: {end:?} {output}");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; run with PODHOLD_SHIM set to a release build"]
async fn time_of_execs_one_after_the_other() {
    const RUNS: u32 = 200;
    for filtered in [false, true] {
        let host = Host::new();
        let container = host.container("c1", &["sleep", "1000"], |spec| {
            let mut linux = spec.linux().clone().unwrap();
            linux.set_seccomp(filtered.then(long_profile));
            spec.set_linux(Some(linux));
        });
        let (pod, id, _) = start(&host, container).await;
        let mut process = shell("");
        process.set_args(Some(vec!["true".into()]));
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let begun = Instant::now();
            let (end, _) = pod.exec(&id, process.clone(), None).await;
            assert_eq!(end, ExecEnd::Exited(0));
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let median = times[times.len() / 2];
        println!("seccomp {filtered}: median {median:?}, fastest {:?}", times[0]);
        pod.close(&host).await;
    }
}

/// As long as a node's default profile: every call this machine's library knows by number, three
/// architectures.
fn long_profile() -> LinuxSeccomp {
    const CALLS: &str = "read write open close stat fstat lstat poll lseek mmap mprotect munmap brk \
        rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select \
        sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep getitimer \
        alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg recvmsg shutdown bind \
        listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve exit wait4 \
        kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync \
        truncate ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink \
        readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage sysinfo times \
        getuid syslog getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid \
        getgroups setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget \
        capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod \
        personality statfs fstatfs getpriority setpriority sched_setparam sched_getparam \
        sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min \
        sched_rr_get_interval mlock munlock mlockall munlockall prctl arch_prctl setrlimit chroot sync gettid \
        readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr \
        removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity io_setup \
        io_destroy io_getevents io_submit io_cancel epoll_create remap_file_pages getdents64 set_tid_address \
        restart_syscall semtimedop fadvise64 timer_create timer_settime timer_gettime timer_getoverrun \
        timer_delete clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill \
        utimes mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr waitid ioprio_set \
        ioprio_get inotify_init inotify_add_watch inotify_rm_watch openat mkdirat mknodat fchownat futimesat \
        newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll \
        set_robust_list get_robust_list splice tee sync_file_range vmsplice utimensat epoll_pwait signalfd \
        timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 \
        epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo recvmmsg prlimit64 \
        sendmmsg getcpu sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create execveat \
        membarrier mlock2 copy_file_range preadv2 pwritev2 statx rseq close_range openat2 faccessat2 \
        process_madvise epoll_pwait2 clone3";
    let mut rule = LinuxSyscall::default();
    rule.set_names(CALLS.split_whitespace().map(str::to_owned).collect());
    rule.set_action(LinuxSeccompAction::ScmpActAllow);
    let mut seccomp = LinuxSeccomp::default();
    seccomp.set_default_action(LinuxSeccompAction::ScmpActErrno);
    seccomp.set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]));
    seccomp.set_syscalls(Some(vec![rule]));
    seccomp
}
