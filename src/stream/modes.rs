//! The mode of a group: it is an ordered one, or it is not, and all its members have to agree. One
//! that goes by no order takes events of any shard from among those that another one delivers in
//! order. What is said where they do not agree.

use anyhow::{Error, anyhow};

use super::{GroupSpec, StreamSpec};

/// What is said to a member while `other`, of the other mode, lives.
pub(super) fn refusal(stream: &StreamSpec, group: &GroupSpec, other: &str) -> Error {
    let place = (stream.kind.place)(stream);
    let (mine, theirs) = (said(group.ordered), said(!group.ordered));
    anyhow!(
        "group `{}` has `{mine}` here, and member `{other}`, which is at work on it, has `{theirs}` \
         ({place}: stop that one, or make the files agree; one that was killed counts as stopped \
         after its lease)",
        group.name
    )
}

/// What is said to a member that finds its group taken over by the other mode: it was silent for
/// longer than its lease.
pub(super) fn changed_meanwhile(stream: &StreamSpec, group: &str, ordered: bool) -> Error {
    let place = (stream.kind.place)(stream);
    anyhow!(
        "group `{group}` was taken over by members with `{}` while this one, with `{}`, was silent \
         ({place}: make the files agree)",
        said(!ordered),
        said(ordered)
    )
}

/// As a file says it.
fn said(ordered: bool) -> &'static str {
    if ordered { "ordered = true" } else { "ordered = false" }
}
