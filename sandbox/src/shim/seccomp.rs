//! Seccomp profiles on their way into the kernel: the program that lies in the bundle, and what
//! libcontainer makes of a profile, put right.

use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag, LinuxSeccompOperator};

use crate::{bundle, record, sys};

/// Fits a profile to libcontainer 0.7.0, which exchanges mask and value of `SCMP_CMP_MASKED_EQ`: in OCI
/// (config-linux, seccomp) `value` is the mask and `valueTwo`, 0 when absent, what must remain. Left
/// alone, `clone` without new namespaces, as default profiles allow it, becomes `clone` with any flags.
pub(super) fn adapt(profile: &mut LinuxSeccomp) -> Result<(), String> {
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let Some(mut arguments) = rule.args().clone() else { continue };
        for argument in &mut arguments {
            if argument.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
                let (mask, remains) = (argument.value(), argument.value_two().unwrap_or(0));
                let exchanged = LinuxSeccompArgBuilder::default()
                    .index(argument.index())
                    .op(argument.op())
                    .value(remains)
                    .value_two(mask);
                *argument = exchanged.build().map_err(|error| format!("seccomp: {error}"))?;
            }
        }
        rule.set_args(Some(arguments));
    }
    profile.set_syscalls(Some(rules));
    Ok(())
}

/// The kernel takes at most 4096 instructions (BPF_MAXINSNS) of eight bytes.
const LONGEST: u64 = 4096 * 8;

/// The program that was compiled with the bundle; `None` of a bundle that has none.
pub(super) fn program(bundle: &Path) -> Result<Option<Vec<u8>>, String> {
    let path = bundle.join(bundle::SECCOMP_PROGRAM);
    match record::read_bytes(&path, LONGEST) {
        Err(error) if error.is_missing() => Ok(None),
        read => read.map(Some).map_err(|error| error.to_string()),
    }
}

/// Puts this process under the program of a profile that has these flags. It needs no_new_privs or CAP_SYS_ADMIN.
pub(super) fn load(program: &[u8], flags: &[LinuxSeccompFilterFlag]) -> Result<(), String> {
    let flags = flags.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                // Concerns a listener alone, and there is none.
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    });
    sys::load_filter(program, flags).map_err(|error| format!("seccomp: load the filter: {error}"))
}
