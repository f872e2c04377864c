use muster_domain::identifier::IdentifierRef;
use muster_proto::ingest::v1::{IngestCohortRequest, ingest_cohort_request::Message};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

type Item = (Effect, Identifier);

fn pack(items: &[Item], offset: u64) -> Vec<IdentifierBatch> {
    let mut packer = Packer::new(offset);
    let mut batches = Vec::new();
    for (effect, identifier) in items {
        batches.extend(packer.push(*effect, identifier.clone()).unwrap());
    }
    batches.extend(packer.take());
    batches
}

/// The order in which a server applies the identifiers of a batch.
fn flatten(batch: &IdentifierBatch) -> Vec<Item> {
    let mut items = Vec::new();
    for change in &batch.changes {
        let effect = match change.effect() {
            ChangeEffect::Add => Effect::Add,
            ChangeEffect::Remove => Effect::Remove,
            ChangeEffect::Unspecified => panic!("an effect is always given"),
        };
        let external_ids = change.external_ids.iter().map(IdentifierRef::external_id);
        let aliases = change
            .aliases
            .iter()
            .map(|a| IdentifierRef::alias(&a.label, &a.name));
        let device_ids = change.device_ids.iter().map(IdentifierRef::device_id);
        let all = external_ids.chain(aliases).chain(device_ids);
        items.extend(all.map(|identifier| (effect, identifier.to_owned())));
    }
    items
}

fn check(items: &[Item], offset: u64) {
    let mut next = offset;
    let mut flattened = Vec::new();
    for batch in pack(items, offset) {
        let content = flatten(&batch);
        assert_eq!(batch.offset, next);
        assert!((1..=MAX_BATCH_IDENTIFIERS).contains(&content.len()));
        next += content.len() as u64;
        flattened.extend(content);
        let request = IngestCohortRequest {
            message: Some(Message::Batch(batch)),
        };
        assert!(request.encoded_len() < MAX_BATCH_BYTES);
    }
    assert_eq!(flattened, items);
}

fn external(id: impl Into<String>) -> Item {
    let identifier = Identifier {
        kind: IdentifierKind::ExternalId,
        label: String::new(),
        id: id.into(),
    };
    (Effect::Add, identifier)
}

fn item(id: &'static str) -> impl Strategy<Value = Item> {
    (prop::bool::ANY, 1..=3_u8, "[a-z]{0,3}", id).prop_map(|(add, kind, label, id)| {
        let effect = if add { Effect::Add } else { Effect::Remove };
        let kind = IdentifierKind::from_code(kind).unwrap();
        let label = if kind == IdentifierKind::Alias {
            label
        } else {
            String::new()
        };
        (effect, Identifier { kind, label, id })
    })
}

proptest! {
    #[test]
    fn batches_give_the_source_back_in_order(items in prop::collection::vec(item(".{0,8}"), 0..300)) {
        check(&items, 17);
    }

    #[test]
    fn large_identifiers_stay_within_the_size(
        items in prop::collection::vec(item("[a-z]{0,2}"), 1..40),
        bytes in 1_000..90_000_usize,
    ) {
        let grown: Vec<Item> = items
            .into_iter()
            .map(|(effect, mut identifier)| {
                identifier.id = identifier.id.repeat(bytes);
                (effect, identifier)
            })
            .collect();
        check(&grown, 0);
    }
}

#[test]
fn ten_thousand_fit_and_one_more_begins_a_batch() {
    let items: Vec<Item> = (0..10_001).map(|n| external(n.to_string())).collect();
    let lengths: Vec<usize> = pack(&items, 0).iter().map(|b| flatten(b).len()).collect();
    assert_eq!(lengths, [10_000, 1]);
}

#[test]
fn one_effect_in_the_order_of_the_wire_is_one_change() {
    let of = |kind| {
        let (effect, identifier) = external("x");
        (effect, Identifier { kind, ..identifier })
    };
    let kinds = [
        IdentifierKind::ExternalId,
        IdentifierKind::Alias,
        IdentifierKind::DeviceId,
    ];
    let forwards: Vec<Item> = kinds.map(of).into();
    let backwards: Vec<Item> = forwards.iter().rev().cloned().collect();
    assert_eq!(pack(&forwards, 0)[0].changes.len(), 1);
    assert_eq!(pack(&backwards, 0)[0].changes.len(), 3);
}

#[test]
fn alternating_effects_stay_within_the_size() {
    let items: Vec<Item> = (0..10_000)
        .map(|n| {
            let (_, identifier) = external("x".repeat(90));
            (
                if n % 2 == 0 {
                    Effect::Add
                } else {
                    Effect::Remove
                },
                identifier,
            )
        })
        .collect();
    check(&items, u64::MAX / 2);
}

#[test]
fn an_identifier_larger_than_a_batch_is_refused_by_position() {
    let mut packer = Packer::new(5);
    let (effect, identifier) = external("x".repeat(MAX_BATCH_BYTES));
    let error = packer.push(effect, identifier).unwrap_err();
    assert_eq!(error.position, 5);
}

/// Reads a list as an upload would, after `skip` identifiers.
fn read(items: &[Item], skip: u64) -> (Vec<Item>, Total) {
    let (sender, mut receiver) = mpsc::channel(1_000);
    read_source(|| Ok(items.iter().cloned().map(Ok)), skip, &sender);
    let (mut sent, mut total) = (Vec::new(), None);
    while let Ok(piece) = receiver.try_recv() {
        match piece.unwrap() {
            Piece::Batch(batch) => sent.extend(flatten(&batch)),
            Piece::End(end) => total = Some(end),
        }
    }
    (sent, total.unwrap())
}

#[test]
fn a_resumed_source_skips_but_digests_everything() {
    let items: Vec<Item> = (0..25_000).map(|n| external(n.to_string())).collect();
    let (all, total) = read(&items, 0);
    assert_eq!(all, items);
    assert_eq!(total.identifiers, 25_000);
    assert_eq!(read(&items, 9_999), (items[9_999..].to_vec(), total));
    assert_eq!(read(&items, u64::MAX), (Vec::new(), total));
}

#[test]
fn an_error_of_the_source_is_handed_over_and_nothing_ends() {
    let (sender, mut receiver) = mpsc::channel(10);
    let source = || {
        let items = [
            Ok(external("a")),
            Err(io::Error::other("disk")),
            Ok(external("b")),
        ];
        Ok(items.into_iter())
    };
    read_source(source, 0, &sender);
    assert_eq!(
        receiver.try_recv().unwrap().unwrap_err().to_string(),
        "disk"
    );
    assert!(receiver.try_recv().is_err());
}
