//! Who entered and who left between two resolutions.
//!
//! People are compared, not numbers: whoever was merged since counts as the person they are now, so
//! a merge between two resolutions is nobody's leaving. The erased are compared by number and come
//! out withheld.

use std::sync::Arc;

use muster_domain::{
    error::Result,
    user_set::{Standing, Tombstones, UserSet},
};
use muster_identity::Identities;
use muster_service::{
    compute,
    outlet::{self, Limits, Messages, Outlet},
};
use muster_storage::{Role, WorkspaceId};
use uuid::Uuid;

use crate::{
    audience::BATCH_RECORDS,
    records::{Batch, Records, View},
    resolutions,
};

/// Whether users entered or left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Entered,
    Left,
}

/// One message of a difference.
#[derive(Debug)]
pub(crate) enum DiffMessage {
    Header {
        entered: u64,
        left: u64,
        stayed: u64,
    },
    Batch {
        side: Side,
        users: Batch,
    },
    End,
}

/// Streams the difference between two kept resolutions.
///
/// # Errors
/// `NOT_FOUND`.
pub(crate) async fn stream(
    identities: Identities,
    limits: Limits,
    workspace: WorkspaceId,
    (base, target): (Uuid, Uuid),
    view: View,
) -> Result<Messages<DiffMessage>> {
    let store = &identities.store().acting_as(Role::Segments);
    let caller = &limits.caller;
    let (_, base) = resolutions::read_again(store, caller, workspace, base).await?;
    let (_, target) = resolutions::read_again(store, caller, workspace, target).await?;
    let (tx, directory) = store
        .directory_snapshot("diff_resolutions", workspace)
        .await?;
    tx.commit().await?;
    let compared = compute(move || {
        let base = people(&base, &directory.tombstones);
        let target = people(&target, &directory.tombstones);
        let stayed = base.intersection_len(&target);
        (&base - &target, &target - &base, stayed)
    });
    let (left, entered, stayed) = compared.await?;
    Ok(outlet::stream(limits, move |outlet| {
        let header = DiffMessage::Header {
            entered: entered.len(),
            left: left.len(),
            stayed,
        };
        async move {
            outlet.send(header).await?;
            for (side, users) in [(Side::Left, left), (Side::Entered, entered)] {
                send(&identities, workspace, view, side, users, &outlet).await?;
            }
            outlet.send(DiffMessage::End).await
        }
    }))
}

async fn send(
    identities: &Identities,
    workspace: WorkspaceId,
    view: View,
    side: Side,
    users: UserSet,
    outlet: &Outlet<DiffMessage>,
) -> Result<()> {
    let users = Arc::new(users);
    let mut records = Records::new(
        identities.clone(),
        workspace,
        view,
        Arc::clone(&users),
        0..0,
    );
    let mut rest = users.iter();
    let mut batch: Vec<u32> = Vec::new();
    loop {
        let wanted = BATCH_RECORDS - batch.len();
        batch.extend(rest.by_ref().take(wanted));
        if batch.is_empty() {
            return Ok(());
        }
        let room = outlet.room().await?;
        let users = records.read(&batch).await?;
        batch.drain(..users.len);
        room.send(DiffMessage::Batch { side, users }).await?;
    }
}

/// The people that a pinned set stands for now, and the numbers of the erased.
fn people(pinned: &UserSet, tombstones: &Tombstones) -> UserSet {
    let gone = pinned & tombstones.gone();
    let erased = gone
        .iter()
        .filter(|&user| tombstones.standing(user) == Standing::Deleted);
    let mut people = tombstones.normalise(pinned.clone());
    people.extend(erased);
    people
}
