//! Capabilities of a process on its way to its workload: what it may have at most, and what it takes.
//!
//! What this machine cannot give (it lacks it in its own bounding set) is left out.

use caps::{CapSet, CapsHashSet, errors::CapsError};
use libcontainer::capabilities::CapabilityExt;
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

/// Makes `set` consist of `wanted`. Of the bounding set capabilities can only be dropped; what is not in
/// it cannot be had again.
pub(super) fn set(set: CapSet, wanted: &CapsHashSet) -> Result<(), CapsError> {
    if !matches!(set, CapSet::Bounding) {
        return caps::set(None, set, wanted);
    }
    for capability in caps::read(None, CapSet::Bounding)?.difference(wanted) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    Ok(())
}

/// Sets the bounding set; while the process may still do so.
pub(super) fn bound(wanted: &LinuxCapabilities) -> Result<(), String> {
    set_possible(CapSet::Bounding, wanted.bounding())
}

/// Makes all that is permitted effective, after a change of the user.
pub(super) fn raise() -> Result<(), String> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|error| error.to_string())?;
    caps::set(None, CapSet::Effective, &permitted).map_err(|error| error.to_string())
}

/// Sets all sets but the bounding one. Afterwards the process can do no more than its workload.
pub(super) fn take(wanted: &LinuxCapabilities) -> Result<(), String> {
    raise()?;
    set_possible(CapSet::Inheritable, wanted.inheritable())?;
    set_possible(CapSet::Effective, wanted.effective())?;
    set_possible(CapSet::Permitted, wanted.permitted())?;
    set_possible(CapSet::Ambient, wanted.ambient())
}

fn set_possible(kind: CapSet, wanted: &Option<Capabilities>) -> Result<(), String> {
    let wanted: CapsHashSet = wanted.iter().flatten().map(CapabilityExt::to_cap).collect();
    let limit = match kind {
        CapSet::Bounding => CapSet::Bounding,
        _ => CapSet::Permitted,
    };
    let failed = |error| format!("set the {kind:?} capabilities: {error}");
    let mut possible = caps::read(None, limit).map_err(failed)?;
    if matches!(kind, CapSet::Ambient) {
        // Only what is inheritable can be ambient; see capabilities(7).
        let inheritable = caps::read(None, CapSet::Inheritable).map_err(failed)?;
        possible.retain(|capability| inheritable.contains(capability));
    }
    let granted = wanted.intersection(&possible).copied().collect();
    set(kind, &granted).map_err(failed)
}
