//! Which profiles confine a container: seccomp, AppArmor, SELinux. Reads profiles and asks the kernel what
//! it has; what the request demands and this node cannot give is refused, never dropped.

use std::{fs, sync::Once};

use oci_spec::runtime::LinuxSeccomp;
use podhold_proto::cri::{self, security_profile::ProfileType};

use super::{blocking, prepare};
use crate::{
    error::{Error, Result},
    lsm::apparmor,
    spec::{self, process::Granted},
};

/// There while SELinux is active.
const SELINUX: &str = "/sys/fs/selinux/enforce";
static WARN_UNCONFINED: Once = Once::new();

/// The profile a request names, by the new field or by the deprecated one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Profile {
    Default,
    Unconfined,
    Localhost(String),
}

/// What a pod's or a container's profiles may not be. `container` fields of a pod are checked alike: what
/// cannot be had is refused before anything is made.
pub(super) fn check_pod(security: &cri::LinuxSandboxSecurityContext) -> Result<()> {
    #[allow(deprecated, reason = "older kubelets still send it")]
    let old = security.seccomp_profile_path.as_str();
    profile("seccomp", security.seccomp.as_ref(), old)?;
    profile("apparmor", security.apparmor.as_ref(), "")?;
    match security.privileged {
        true => Ok(()),
        false => check_selinux(security.selinux_options.as_ref()),
    }
}

/// As [`check_pod`], for a container.
pub(super) fn check_container(security: &cri::LinuxContainerSecurityContext) -> Result<()> {
    seccomp_profile(security)?;
    apparmor_profile(security)?;
    match security.privileged {
        true => Ok(()),
        false => check_selinux(security.selinux_options.as_ref()),
    }
}

/// The seccomp profile of a container; none is unconfined (CRI `seccomp`, `seccomp_profile_path`).
pub(super) fn seccomp(
    security: &cri::LinuxContainerSecurityContext,
    granted: &Granted,
) -> Result<Option<LinuxSeccomp>> {
    match seccomp_profile(security)?.filter(|_| !security.privileged) {
        None | Some(Profile::Unconfined) => Ok(None),
        Some(Profile::Default) => spec::seccomp::default_profile(&granted.set).map(Some),
        Some(Profile::Localhost(path)) => {
            let text = prepare::read_profile(&path)?;
            spec::seccomp::localhost_profile(&path, &text).map(Some)
        }
    }
}

/// The node's seccomp profile that a container names.
pub(super) fn localhost_seccomp(security: &cri::LinuxContainerSecurityContext) -> Option<String> {
    match seccomp_profile(security) {
        Ok(Some(Profile::Localhost(path))) => Some(path),
        _ => None,
    }
}

/// Why a container cannot have its seccomp profile: it cannot be made into a program for the kernel.
pub(super) fn unusable(security: &cri::LinuxContainerSecurityContext, reason: String) -> Error {
    match localhost_seccomp(security) {
        Some(path) => {
            Error::invalid("linux.security_context.seccomp.localhost_ref", format!("{path}: {reason}"))
        }
        None => {
            Error::Precondition(format!("the default seccomp profile cannot be had on this node: {reason}"))
        }
    }
}

/// The AppArmor profile of a container; `None` leaves it unconfined. Without one in the request it is the
/// default, and that is nothing where the kernel has no AppArmor, as with peers, or where Podhold's profile
/// cannot be loaded, which is said once.
pub(super) async fn apparmor(
    security: &cri::LinuxContainerSecurityContext,
    own: &apparmor::OwnProfile,
) -> Result<Option<String>> {
    let asked = apparmor_profile(security)?;
    let demanded = asked.is_some();
    let enabled = apparmor::is_enabled();
    match asked.unwrap_or(Profile::Default) {
        _ if security.privileged => Ok(None),
        Profile::Unconfined => Ok(None),
        Profile::Default if !enabled => Ok(None),
        Profile::Default => match own.ensure().await {
            Ok(()) => Ok(Some(apparmor::NAME.to_owned())),
            Err(reason) if demanded => Err(Error::Precondition(format!(
                "linux.security_context.apparmor: RuntimeDefault is asked for, and profile {:?} is not loaded \
                 on this node: {reason}; mend that and restart the daemon, or ask for Unconfined",
                apparmor::NAME
            ))),
            Err(reason) => {
                WARN_UNCONFINED.call_once(|| {
                    tracing::warn!(reason, "containers that name no AppArmor profile run without one");
                });
                Ok(None)
            }
        },
        Profile::Localhost(name) if !enabled => Err(Error::Precondition(format!(
            "linux.security_context.apparmor: profile {name:?} is asked for, and the kernel of this node has \
             no AppArmor; use RuntimeDefault or Unconfined, or another node"
        ))),
        Profile::Localhost(name) => of_the_node(name).await.map(Some),
    }
}

/// A profile that somebody else has loaded.
async fn of_the_node(name: String) -> Result<String> {
    let name = name.strip_prefix("localhost/").unwrap_or(&name).to_owned();
    blocking("AppArmor profiles", move || {
        if apparmor::is_loaded(&name) {
            return Ok(name);
        }
        let reason = format!("profile {name:?} is not loaded; load it on the node with apparmor_parser");
        Err(Error::invalid("linux.security_context.apparmor.localhost_ref", reason))
    })
    .await
}

fn check_selinux(options: Option<&cri::SeLinuxOption>) -> Result<()> {
    let Some(options) = options.filter(|options| **options != cri::SeLinuxOption::default()) else {
        return Ok(());
    };
    let cri::SeLinuxOption { user, role, r#type, level } = options;
    let reason = match fs::exists(SELINUX) {
        Ok(true) => "labels are not built yet",
        _ => "the kernel of this node has no SELinux active",
    };
    Err(Error::Precondition(format!(
        "linux.security_context.selinux_options: {user:?}:{role:?}:{type:?}:{level:?} is asked for, and \
         {reason}; leave selinux_options out, or use another node",
    )))
}

fn seccomp_profile(security: &cri::LinuxContainerSecurityContext) -> Result<Option<Profile>> {
    #[allow(deprecated, reason = "older kubelets still send it")]
    let old = security.seccomp_profile_path.as_str();
    profile("seccomp", security.seccomp.as_ref(), old)
}

fn apparmor_profile(security: &cri::LinuxContainerSecurityContext) -> Result<Option<Profile>> {
    #[allow(deprecated, reason = "older kubelets still send it")]
    let old = security.apparmor_profile.as_str();
    profile("apparmor", security.apparmor.as_ref(), old)
}

/// One profile out of its two fields; the new one wins where both are set, as the kubelet sets both.
fn profile(kind: &str, new: Option<&cri::SecurityProfile>, old: &str) -> Result<Option<Profile>> {
    let field = |name: &str| format!("linux.security_context.{kind}{name}");
    let Some(new) = new else {
        return match (old, old.strip_prefix("localhost/")) {
            ("", _) => Ok(None),
            ("runtime/default" | "docker/default", _) => Ok(Some(Profile::Default)),
            ("unconfined", _) => Ok(Some(Profile::Unconfined)),
            (_, Some(reference)) if !reference.is_empty() => {
                Ok(Some(Profile::Localhost(reference.to_owned())))
            }
            _ => {
                let name = if kind == "seccomp" { "_profile_path" } else { "_profile" };
                let reason = format!("{old:?} is not runtime/default, unconfined or localhost/ and a name");
                Err(Error::invalid(field(name), reason))
            }
        };
    };
    let reference = new.localhost_ref.as_str();
    match ProfileType::try_from(new.profile_type) {
        Err(_) => {
            let reason = format!("{} is not a value of this field", new.profile_type);
            Err(Error::invalid(field(".profile_type"), reason))
        }
        Ok(ProfileType::Localhost) if reference.is_empty() => {
            Err(Error::invalid(field(".localhost_ref"), "is empty; name the node's profile"))
        }
        Ok(ProfileType::Localhost) => Ok(Some(Profile::Localhost(reference.to_owned()))),
        Ok(kind) if !reference.is_empty() => {
            let reason = format!("names {reference:?}, and profile_type is {}", kind.as_str_name());
            Err(Error::invalid(field(".localhost_ref"), reason))
        }
        Ok(ProfileType::RuntimeDefault) => Ok(Some(Profile::Default)),
        Ok(ProfileType::Unconfined) => Ok(Some(Profile::Unconfined)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: i32, reference: &str) -> cri::SecurityProfile {
        cri::SecurityProfile { profile_type: kind, localhost_ref: reference.into() }
    }

    #[test]
    fn the_deprecated_field_means_what_it_says_and_the_new_one_wins() {
        let local = Profile::Localhost("/a/b.json".to_owned());
        for (new, old, want) in [
            (None, "", None),
            (None, "runtime/default", Some(Profile::Default)),
            (None, "docker/default", Some(Profile::Default)),
            (None, "unconfined", Some(Profile::Unconfined)),
            (None, "localhost//a/b.json", Some(local.clone())),
            (Some(named(0, "")), "unconfined", Some(Profile::Default)),
            (Some(named(1, "")), "", Some(Profile::Unconfined)),
            (Some(named(2, "/a/b.json")), "localhost/other", Some(local)),
        ] {
            assert_eq!(profile("seccomp", new.as_ref(), old).unwrap(), want, "{new:?} {old:?}");
        }
    }

    #[test]
    fn a_profile_that_cannot_be_meant_is_named_by_its_field() {
        for (new, old, field) in [
            (None, "localhost/", "seccomp_profile_path"),
            (None, "default", "seccomp_profile_path"),
            (Some(named(7, "")), "", "seccomp.profile_type"),
            (Some(named(2, "")), "", "seccomp.localhost_ref"),
            (Some(named(0, "/a")), "", "seccomp.localhost_ref"),
        ] {
            let refusal = profile("seccomp", new.as_ref(), old).unwrap_err().to_string();
            assert!(refusal.starts_with(&format!("linux.security_context.{field}: ")), "{refusal}");
        }
    }
}
