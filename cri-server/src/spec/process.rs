//! The first process of a container: arguments, environment, capabilities. Pure.

use std::collections::HashSet;

use oci_spec::{
    image::ImageConfiguration,
    runtime::{
        Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, PosixRlimit,
        PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, UserBuilder,
    },
};
use podhold_proto::cri;

use super::User;
use crate::{
    descriptors::Limit,
    error::{Error, Result},
};

/// Search path of containers whose image sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container may do unless the request says otherwise.
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The first process.
pub fn build(
    config: &cri::ContainerConfig,
    image: &ImageConfiguration,
    user: &User,
    capabilities: &Granted,
) -> Result<Process> {
    let empty = oci_spec::image::Config::default();
    let defaults = image.config().as_ref().unwrap_or(&empty);
    let mut process = ProcessBuilder::default()
        .terminal(config.tty)
        .args(arguments(config, defaults)?)
        .env(environment(config, defaults, user)?)
        .cwd(working_dir(config, defaults)?)
        .user(oci_user(user)?)
        .capabilities(capabilities.to_oci()?);
    let limits = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    if let Some(adjust) = limits.map(|limits| limits.oom_score_adj).filter(|adjust| *adjust != 0) {
        process = process.oom_score_adj(i32::try_from(adjust).unwrap_or_default());
    }
    let mut process = process.build().map_err(Error::doing("process"))?;
    // The builder's own default is to set it. Asked for or left out, never denied: libcontainer fails on
    // an explicit `false` with seccomp.
    process.set_no_new_privileges(security(config).no_new_privs.then_some(true));
    Ok(process)
}

/// How many files a process may have open, in OCI words.
pub fn open_files(limit: Limit) -> Result<PosixRlimit> {
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(limit.soft)
        .hard(limit.hard)
        .build()
        .map_err(Error::doing("limit on open files"))
}

/// The security context, with its defaults.
pub fn security(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The numbers a process runs with, in OCI words.
pub fn oci_user(user: &User) -> Result<oci_spec::runtime::User> {
    UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(user.groups.clone())
        .build()
        .map_err(Error::doing("user"))
}

/// ENTRYPOINT and CMD against command and args, as Kubernetes documents it: a command drops both, args
/// drop CMD.
fn arguments(config: &cri::ContainerConfig, image: &oci_spec::image::Config) -> Result<Vec<String>> {
    let entrypoint = image.entrypoint().clone().unwrap_or_default();
    let cmd = image.cmd().clone().unwrap_or_default();
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (entrypoint, cmd),
        (true, false) => (entrypoint, config.args.clone()),
        (false, _) => (config.command.clone(), config.args.clone()),
    };
    let all: Vec<String> = command.into_iter().chain(args).collect();
    match all.first() {
        None => {
            Err(Error::invalid("command", "neither the request nor the image says what to run; set command"))
        }
        Some(first) if first.is_empty() => Err(Error::invalid("command", "the program's name is empty")),
        Some(_) if all.iter().any(|arg| arg.contains('\0')) => {
            Err(Error::invalid("command", "it or a word of args holds a NUL byte"))
        }
        Some(_) => Ok(all),
    }
}

/// The image's variables, then the request's, which win; PATH and HOME where neither sets them.
fn environment(
    config: &cri::ContainerConfig,
    image: &oci_spec::image::Config,
    user: &User,
) -> Result<Vec<String>> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match all.iter_mut().find(|(known, _)| known == key) {
        Some(entry) => entry.1 = value.to_owned(),
        None => all.push((key.to_owned(), value.to_owned())),
    };
    for entry in image.env().iter().flatten() {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(key, value);
    }
    for entry in &config.envs {
        let value = std::str::from_utf8(&entry.value)
            .map_err(|_| Error::invalid("envs", format!("the value of {:?} is not UTF-8", entry.key)))?;
        if entry.key.is_empty() || entry.key.contains(['=', '\0']) || value.contains('\0') {
            let reason = format!("{:?} is not the name of a variable, or its value holds a NUL", entry.key);
            return Err(Error::invalid("envs", reason));
        }
        set(&entry.key, value);
    }
    let has = |key: &str| all.iter().any(|(known, _)| known == key);
    let (no_path, no_home, no_term) = (!has("PATH"), !has("HOME"), config.tty && !has("TERM"));
    let mut env: Vec<String> = all.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    if no_path {
        env.push(DEFAULT_PATH.to_owned());
    }
    if no_home {
        env.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")));
    }
    if no_term {
        env.push("TERM=xterm".to_owned());
    }
    Ok(env)
}

fn working_dir(config: &cri::ContainerConfig, image: &oci_spec::image::Config) -> Result<String> {
    let asked = Some(config.working_dir.clone()).filter(|dir| !dir.is_empty());
    let dir = asked.or_else(|| image.working_dir().clone()).filter(|dir| !dir.is_empty());
    let dir = dir.unwrap_or_else(|| "/".to_owned());
    // A file descriptor of ours that leaked would be reachable by such a path (CVE-2024-21626).
    if !dir.starts_with('/') || dir.starts_with("/proc/self/fd") || dir.contains('\0') {
        return Err(Error::invalid(
            "working_dir",
            format!("{dir:?} is not an absolute path in the container"),
        ));
    }
    Ok(dir)
}

/// The capabilities of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Bounding, permitted and effective.
    pub set: HashSet<Capability>,
    /// Ambient (and inheritable).
    pub ambient: HashSet<Capability>,
}

impl Granted {
    /// What the request adds to and drops from the default, within `bounding`, which is what this
    /// daemon itself may hand on.
    pub fn of(security: &cri::LinuxContainerSecurityContext, bounding: &HashSet<Capability>) -> Result<Self> {
        if security.privileged {
            return Ok(Self { set: bounding.clone(), ambient: HashSet::new() });
        }
        let asked = security.capabilities.clone().unwrap_or_default();
        let is_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        let mut set: HashSet<Capability> =
            match (is_all(&asked.add_capabilities), is_all(&asked.drop_capabilities)) {
                (true, _) => bounding.clone(),
                (false, true) => HashSet::new(),
                (false, false) => DEFAULT_CAPABILITIES.into_iter().collect(),
            };
        for name in asked.drop_capabilities.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
            set.remove(&parse(name, "drop_capabilities")?);
        }
        for name in asked.add_capabilities.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
            set.insert(parse(name, "add_capabilities")?);
        }
        let mut ambient = HashSet::new();
        for name in &asked.add_ambient_capabilities {
            let capability = parse(name, "add_ambient_capabilities")?;
            set.insert(capability);
            ambient.insert(capability);
        }
        set.retain(|capability| bounding.contains(capability));
        ambient.retain(|capability| bounding.contains(capability));
        Ok(Self { set, ambient })
    }

    fn to_oci(&self) -> Result<LinuxCapabilities> {
        let set: Capabilities = self.set.clone();
        LinuxCapabilitiesBuilder::default()
            .bounding(set.clone())
            .effective(set.clone())
            .permitted(set)
            .inheritable(self.ambient.clone())
            .ambient(self.ambient.clone())
            .build()
            .map_err(Error::doing("capabilities"))
    }
}

fn parse(name: &str, field: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).parse().map_err(|_| {
        Error::invalid(
            format!("linux.security_context.capabilities.{field}"),
            format!("{name:?} is not a capability of Linux"),
        )
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;

    fn image() -> oci_spec::image::Config {
        ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["default".to_owned()])
            .env(vec!["A=1".to_owned(), "B=2".to_owned()])
            .build()
            .unwrap()
    }

    #[test]
    fn command_and_args_against_entrypoint_and_cmd() {
        let config = |command: &[&str], args: &[&str]| cri::ContainerConfig {
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            args: args.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        };
        for (command, args, want) in [
            (&[][..], &[][..], &["/entry", "default"][..]),
            (&[], &["x"], &["/entry", "x"]),
            (&["sh"], &[], &["sh"]),
            (&["sh"], &["-c"], &["sh", "-c"]),
        ] {
            assert_eq!(arguments(&config(command, args), &image()).unwrap(), want);
        }
        assert!(arguments(&config(&[], &[]), &Default::default()).is_err());
    }

    #[test]
    fn set_user_id_programs_work_unless_new_privileges_are_refused() {
        let image = oci_spec::image::ImageConfiguration::default();
        let granted = Granted { set: HashSet::new(), ambient: HashSet::new() };
        let flag = |no_new_privs| {
            let security = cri::LinuxContainerSecurityContext { no_new_privs, ..Default::default() };
            let config = cri::ContainerConfig {
                command: vec!["sh".into()],
                linux: Some(cri::LinuxContainerConfig { security_context: Some(security), resources: None }),
                ..Default::default()
            };
            build(&config, &image, &User::default(), &granted).unwrap().no_new_privileges()
        };
        assert_eq!((flag(false), flag(true)), (None, Some(true)));
    }

    #[test]
    fn the_requests_variables_win_and_path_is_always_there() {
        let config = cri::ContainerConfig {
            envs: vec![cri::KeyValue { key: "B".into(), value: b"3=3".to_vec() }],
            ..Default::default()
        };
        let env = environment(&config, &image(), &User::default()).unwrap();
        assert_eq!(env[..2], ["A=1", "B=3=3"]);
        assert!(env.iter().any(|entry| entry.starts_with("PATH=")) && env.contains(&"HOME=/".to_owned()));
    }

    #[test]
    fn capabilities_are_added_and_dropped_by_any_spelling() {
        let bounding: HashSet<Capability> =
            DEFAULT_CAPABILITIES.into_iter().chain([Capability::SysAdmin]).collect();
        let granted = |add: &[&str], drop: &[&str]| {
            let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            let security = cri::LinuxContainerSecurityContext {
                capabilities: Some(cri::Capability {
                    add_capabilities: names(add),
                    drop_capabilities: names(drop),
                    ..Default::default()
                }),
                ..Default::default()
            };
            Granted::of(&security, &bounding).map(|granted| granted.set)
        };
        assert_eq!(granted(&[], &[]).unwrap().len(), 14);
        assert_eq!(granted(&["ALL"], &[]).unwrap(), bounding);
        assert_eq!(granted(&["ALL"], &["cap_sys_admin"]).unwrap().len(), 14);
        assert_eq!(granted(&["CHOWN"], &["all"]).unwrap(), HashSet::from([Capability::Chown]));
        // What the daemon itself lacks cannot be handed on.
        assert_eq!(granted(&["SYS_BOOT"], &["ALL"]).unwrap(), HashSet::new());
        assert!(granted(&["FLY"], &[]).is_err());
    }
}
