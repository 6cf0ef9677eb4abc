//! Setting capability sets of this process, the bounding set included.

use caps::{CapSet, CapsHashSet, errors::CapsError};

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
