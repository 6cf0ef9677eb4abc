//! What libcontainer makes of a seccomp profile, put right.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArgBuilder, LinuxSeccompOperator};

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
