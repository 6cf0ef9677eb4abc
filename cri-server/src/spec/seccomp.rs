//! The default seccomp profile, and profiles that a pod names. Pure: profile files are read by the
//! caller.
//!
//! What is not known is answered with ENOSYS, so that a C library falls back; what is known and refused
//! with EPERM.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::syscalls::{ALLOWED, NEVER, WITH_CAPABILITY};
use crate::error::{Error, Result};

/// Namespace flags of clone(2) that a container may not use without CAP_SYS_ADMIN.
const CLONE_NEW: u64 = 0x7e02_0000;
/// Address family of virtual machine sockets, which reach the hypervisor past the network namespace.
const AF_VSOCK: u64 = 40;
/// Execution domains of personality(2) that change nothing dangerous, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile `RuntimeDefault` for a container with these capabilities.
pub fn default_profile(capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp> {
    let mut allowed: Vec<String> = ALLOWED.iter().map(|name| (*name).to_owned()).collect();
    let mut refused: Vec<String> = NEVER.iter().map(|name| (*name).to_owned()).collect();
    for (capability, calls) in WITH_CAPABILITY {
        let list = if capabilities.contains(capability) { &mut allowed } else { &mut refused };
        list.extend(calls.iter().map(|name| (*name).to_owned()));
    }
    let mut rules = Vec::new();
    if capabilities.contains(&Capability::SysAdmin) {
        allowed.extend(["clone".to_owned(), "clone3".to_owned()]);
    } else {
        let no_namespaces = argument(0, CLONE_NEW, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq)?;
        rules.push(rule(vec!["clone".into()], LinuxSeccompAction::ScmpActAllow, vec![no_namespaces])?);
    }
    for domain in PERSONALITIES {
        let equal = argument(0, domain, None, LinuxSeccompOperator::ScmpCmpEq)?;
        rules.push(rule(vec!["personality".into()], LinuxSeccompAction::ScmpActAllow, vec![equal])?);
    }
    let not_vsock = argument(0, AF_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)?;
    rules.push(rule(vec!["socket".into()], LinuxSeccompAction::ScmpActAllow, vec![not_vsock])?);
    rules.push(rule(allowed, LinuxSeccompAction::ScmpActAllow, Vec::new())?);
    rules.push(refusal(refused)?);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::ENOSYS.unsigned_abs())
        .architectures(architectures())
        .syscalls(rules)
        .build()
        .map_err(Error::doing("default seccomp profile"))
}

/// A profile of the node, from its file's text (the JSON format of Docker and the OCI).
pub fn localhost_profile(path: &str, text: &str) -> Result<LinuxSeccomp> {
    serde_json::from_str(text).map_err(|error| {
        Error::invalid(
            "linux.security_context.seccomp.localhost_ref",
            format!("{path} is not a seccomp profile: {error}"),
        )
    })
}

/// The machine's own calls and its 32-bit ones. Not x32: kernels are built without it, its calls are killed
/// either way, and each architecture adds a third to the time a start and an exec spend on compiling.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]
    }
}

fn refusal(names: Vec<String>) -> Result<LinuxSyscall> {
    LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(libc::EPERM.unsigned_abs())
        .build()
        .map_err(Error::doing("seccomp rule"))
}

fn rule(
    names: Vec<String>,
    action: LinuxSeccompAction,
    arguments: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall> {
    let mut rule = LinuxSyscallBuilder::default().names(names).action(action);
    if !arguments.is_empty() {
        rule = rule.args(arguments);
    }
    rule.build().map_err(Error::doing("seccomp rule"))
}

fn argument(
    index: usize,
    value: u64,
    second: Option<u64>,
    op: LinuxSeccompOperator,
) -> Result<LinuxSeccompArg> {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    if let Some(second) = second {
        argument = argument.value_two(second);
    }
    argument.build().map_err(Error::doing("seccomp rule"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &LinuxSeccomp, call: &str) -> bool {
        profile.syscalls().iter().flatten().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
                && rule.names().iter().any(|name| name == call)
        })
    }

    #[test]
    fn a_capability_opens_its_calls_and_no_others() {
        let plain = default_profile(&HashSet::new()).unwrap();
        let admin = default_profile(&HashSet::from([Capability::SysAdmin])).unwrap();
        assert!(allowed(&plain, "read") && allowed(&plain, "execve"));
        assert!(!allowed(&plain, "mount") && allowed(&admin, "mount"));
        assert!(!allowed(&admin, "init_module"));
        for call in ["io_uring_setup", "userfaultfd", "keyctl"] {
            assert!(!allowed(&admin, call), "{call}");
        }
    }
}
