//! Deliveries of ordered groups, by the owners that their shards had.

use anyhow::{Context, Result};

use crate::event::{Delivery, Fence};

/// The table in which a database sink keeps the newest owner that it has stored something of, for
/// each shard: `(grp, shard, epoch)`.
pub(super) const TABLE: &str = "aqueduct_fence";

/// What a batch has of one owner of one shard.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// The owner.
    pub fence: &'a Fence,
    /// The events, by their places in the batch, in order.
    pub events: Vec<usize>,
}

/// The runs of a batch: of one shard, older owners come first.
pub(super) fn runs<'a>(batch: &[&'a Delivery]) -> Result<Vec<Run<'a>>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for (index, delivery) in batch.iter().enumerate() {
        let fence = delivery.fence.as_deref().context("an ordered event without a fence")?;
        match runs.iter_mut().find(|run| *run.fence == *fence) {
            Some(run) => run.events.push(index),
            None => runs.push(Run { fence, events: vec![index] }),
        }
    }
    runs.sort_by_key(|run| run.fence);
    Ok(runs)
}

/// Whether no two runs are of one shard.
pub(super) fn are_apart(runs: &[Run<'_>]) -> bool {
    let shard = |run: &Run<'_>| (run.fence.group.clone(), run.fence.shard);
    runs.windows(2).all(|pair| shard(&pair[0]) != shard(&pair[1]))
}
