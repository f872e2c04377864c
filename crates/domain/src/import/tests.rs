//! The accounting, held against a naive model that looks at one identifier at a time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[test]
fn the_digest_is_the_documented_one() {
    let mut digest = ImportDigest::default();
    digest.update(Effect::Add, IdentifierRef::external_id("u-1"));
    digest.update(Effect::Remove, IdentifierRef::alias("mail", "ann"));
    let mut expected = [0; 128];
    expected[..9].copy_from_slice(b"\x01\x01\0\0\0\x03u-1");
    expected[64..][..17].copy_from_slice(b"\x02\x02\0\0\0\x04mail\0\0\0\x03ann");
    assert_eq!(digest.finish(), <[u8; 32]>::from(Sha256::digest(expected)));
}

#[test]
fn the_stored_state_of_a_digest_holds_no_end_of_an_identifier() {
    for length in 1..=200 {
        let id = "x".repeat(length);
        for identifier in [
            IdentifierRef::external_id(&id),
            IdentifierRef::alias(&id, &id),
        ] {
            let mut digest = ImportDigest::default();
            digest.update(Effect::Add, identifier);
            let state = digest.state();
            // Eight words of hash and a count of blocks; then what is left over, which is nothing.
            assert!(
                state[40..].iter().all(|&byte| byte == 0),
                "{length}: {state:?}"
            );
        }
    }
}

#[test]
fn a_stored_digest_goes_on_where_it_stopped() {
    let (mut whole, mut part) = (ImportDigest::default(), ImportDigest::default());
    for id in 0..100 {
        let id = format!("user-{id}");
        whole.update(Effect::Add, IdentifierRef::external_id(&id));
        part.update(Effect::Add, IdentifierRef::external_id(&id));
        part = ImportDigest::from_state(&part.state()).unwrap();
    }
    assert_eq!(whole.finish(), part.finish());
    assert!(ImportDigest::from_state(b"short").is_err());
}

#[test]
fn a_device_no_longer_matches_once_its_user_is_identified() {
    let mut tally = Tally::default();
    let run = |by_device, users: &[u32]| Run {
        effect: Effect::Add,
        by_device,
        matched: users.len() as u64,
        users: users.iter().collect(),
    };
    let identified = UserSet::from([1, 2]);
    let mut tombstones = Tombstones::default();
    tombstones.delete(4);
    let runs = [run(true, &[1, 3, 4]), run(false, &[2])];
    tally.apply(&runs, &tombstones, &identified);
    let mut members = Arc::default();
    let published = tally.publish(Mode::Delta, &mut members, &tombstones);
    assert_eq!(*members, UserSet::from([2, 3]));
    assert_eq!(published.summary.outcomes.device_of_identified_user, 1);
    assert_eq!(published.summary.outcomes.unknown, 1);
    assert_eq!(published.summary.received, 4);
}

#[test]
fn publishing_tidies_up_after_merges_and_deletions() {
    let mut tombstones = Tombstones::default();
    tombstones.merge(1, 2);
    tombstones.delete(3);
    let stored = Arc::new(UserSet::from([1, 3, 5]));
    let mut members = Arc::clone(&stored);
    let published = Tally::default().publish(Mode::Delta, &mut members, &tombstones);
    assert_eq!(*members, UserSet::from([2, 5]));
    assert_eq!(*stored, UserSet::from([1, 3, 5]), "somebody else holds it");
    assert_eq!(published.added, UserSet::from([2]));
    assert_eq!(published.removed, UserSet::from([1, 3]));
    assert_eq!(published.summary.members_before, 2);
    assert_eq!(published.summary.members_added, 0);
}

/// One identifier of an upload: what it does, whether it is a device, and whom it matched.
#[derive(Debug, Clone)]
struct Sent {
    effect: Effect,
    by_device: bool,
    user: u32,
}

fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let one = (any::<bool>(), any::<bool>(), 0u32..12).prop_map(|(add, by_device, user)| Sent {
        effect: if add { Effect::Add } else { Effect::Remove },
        by_device,
        user,
    });
    prop::collection::vec(one, 0..60)
}

/// Cuts an upload into runs as a server does, with batches of the given size.
fn runs(upload: &[Sent], batch: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for batch in upload.chunks(batch) {
        let same = |a: &Sent, b: &Sent| a.effect == b.effect && a.by_device == b.by_device;
        for chunk in batch.chunk_by(same) {
            runs.push(Run {
                effect: chunk[0].effect,
                by_device: chunk[0].by_device,
                matched: chunk.len() as u64,
                users: chunk.iter().map(|sent| sent.user).collect(),
            });
        }
    }
    runs
}

fn model(upload: &[Sent], before: &BTreeSet<u32>) -> (BTreeSet<u32>, Outcomes) {
    let mut outcomes = Outcomes::default();
    let mut last: BTreeMap<u32, Effect> = BTreeMap::new();
    for sent in upload {
        match last.insert(sent.user, sent.effect) {
            Some(earlier) if earlier == sent.effect => outcomes.duplicate += 1,
            Some(_) => outcomes.superseded += 1,
            None => {}
        }
    }
    let mut after = before.clone();
    for (user, effect) in last {
        match effect {
            Effect::Add if after.insert(user) => outcomes.added += 1,
            Effect::Add => outcomes.already_member += 1,
            Effect::Remove if after.remove(&user) => outcomes.removed += 1,
            Effect::Remove => outcomes.not_member += 1,
        }
    }
    (after, outcomes)
}

proptest! {
    #[test]
    fn every_identifier_has_one_outcome_however_the_upload_is_batched(
        upload in sent(),
        before in prop::collection::btree_set(0u32..12, 0..12),
        batch in 1usize..20,
        page in 1usize..8,
    ) {
        let mut tally = Tally::default();
        let staged = runs_to_bytes(&runs(&upload, batch));
        for page in runs_from_bytes(&staged).unwrap().chunks(page) {
            tally.apply(page, &Tombstones::default(), &UserSet::new());
        }
        let stored: Arc<UserSet> = Arc::new(before.iter().copied().collect());
        let mut members = Arc::clone(&stored);
        let published = tally.publish(Mode::Delta, &mut members, &Tombstones::default());
        let (after, outcomes) = model(&upload, &before);
        prop_assert_eq!(members.iter().collect::<BTreeSet<_>>(), after);
        prop_assert_eq!(published.summary.outcomes, outcomes);
        prop_assert_eq!(published.summary.received, upload.len() as u64);
        let replayed = (&*stored | &published.added) - &published.removed;
        prop_assert_eq!(&replayed, &*members);
        prop_assert_eq!(stored.iter().collect::<BTreeSet<_>>(), before, "somebody else holds it");
    }

    #[test]
    fn nothing_is_lost_when_the_directory_changes_before_the_commit(
        upload in sent(),
        merges in prop::collection::vec((0u32..12, 0u32..12), 0..6),
        deleted in prop::collection::btree_set(0u32..12, 0..4),
        identified in prop::collection::btree_set(0u32..12, 0..6),
        replace: bool,
        page in 1usize..8,
    ) {
        let mut tombstones = Tombstones::default();
        for (from, into) in merges {
            if tombstones.standing(from) == Standing::Live
                && tombstones.standing(into) == Standing::Live
                && from != into
            {
                tombstones.merge(from, into);
            }
        }
        for user in deleted {
            if tombstones.standing(user) == Standing::Live {
                tombstones.delete(user);
            }
        }
        let identified: UserSet = identified.into_iter().collect();
        let mut tally = Tally::default();
        for page in runs(&upload, 7).chunks(page) {
            tally.apply(page, &tombstones, &identified);
        }
        let mode = if replace { Mode::Replace } else { Mode::Delta };
        let mut members = Arc::default();
        let published = tally.publish(mode, &mut members, &tombstones);
        prop_assert_eq!(published.summary.received, upload.len() as u64);
        prop_assert!(members.is_disjoint(tombstones.gone()));
        // The last change about a person wins, whatever identifier it came under.
        let mut last = BTreeMap::new();
        for sent in &upload {
            let user = match tombstones.standing(sent.user) {
                Standing::Live => sent.user,
                Standing::Merged(survivor) => survivor,
                Standing::Deleted => continue,
            };
            if !(sent.by_device && identified.contains(user)) {
                last.insert(user, sent.effect);
            }
        }
        let expected: BTreeSet<u32> = last
            .into_iter()
            .filter_map(|(user, effect)| (effect == Effect::Add).then_some(user))
            .collect();
        prop_assert_eq!(members.iter().collect::<BTreeSet<_>>(), expected);
    }
}
