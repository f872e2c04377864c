//! Messages of the contract as JSON, by reflection over their descriptors.
//!
//! One rule for every message instead of one shape written by hand for each: field names as in the
//! `.proto` files, times as RFC 3339, enum values in lower case without their prefix, 64-bit numbers
//! as numbers, bytes in hexadecimal. A field that is absent is `null`, so that the keys of an object
//! never depend on its content; only of a oneof there is just the member that is set.

use std::sync::LazyLock;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage, Value as Field,
};
use serde_json::{Map, Value};

use crate::when;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(muster_proto::FILE_DESCRIPTOR_SET)
        .expect("the descriptor set was made by the compiler")
});

/// The descriptor of a message of the contract.
pub(crate) fn descriptor(full_name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(full_name)
        .expect("every noun names a message of the contract; a test goes through them")
}

/// A message as JSON; `full_name` is its name in the contract.
pub(crate) fn message(full_name: &str, message: &impl prost::Message) -> Value {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(full_name), bytes.as_slice())
        .expect("a message decodes as itself");
    object(&dynamic)
}

fn object(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "google.protobuf.Timestamp" => {
            let (seconds, nanos) = seconds_and_nanos(message);
            return when::rfc3339(seconds, nanos).into();
        }
        "google.protobuf.Duration" => {
            let (seconds, nanos) = seconds_and_nanos(message);
            #[expect(
                clippy::cast_precision_loss,
                reason = "durations here are days, not ages of the universe"
            )]
            return (seconds as f64 + f64::from(nanos) / 1e9).into();
        }
        _ => {}
    }
    let mut object = Map::new();
    for field in descriptor.fields() {
        let present = !field.supports_presence() || message.has_field(&field);
        if present {
            let value = value(&field, &message.get_field(&field));
            object.insert(field.name().to_owned(), value);
        } else if !is_alternative(&field) {
            object.insert(field.name().to_owned(), Value::Null);
        }
    }
    Value::Object(object)
}

/// Whether the field is one of several in a oneof; `optional` fields are alone in theirs.
fn is_alternative(field: &FieldDescriptor) -> bool {
    field
        .containing_oneof()
        .is_some_and(|oneof| !oneof.is_synthetic())
}

fn value(field: &FieldDescriptor, content: &Field) -> Value {
    match content {
        Field::Bool(flag) => Value::Bool(*flag),
        Field::I32(number) => (*number).into(),
        Field::I64(number) => (*number).into(),
        Field::U32(number) => (*number).into(),
        Field::U64(number) => (*number).into(),
        Field::F32(number) => (*number).into(),
        Field::F64(number) => (*number).into(),
        Field::String(text) => text.as_str().into(),
        Field::Bytes(bytes) => hex(bytes).into(),
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(descriptor) => enum_value(&descriptor, *number),
            _ => (*number).into(),
        },
        Field::Message(message) => object(message),
        Field::List(items) => items.iter().map(|item| value(field, item)).collect(),
        // The contract has no maps.
        Field::Map(_) => Value::Null,
    }
}

fn seconds_and_nanos(message: &DynamicMessage) -> (i64, i32) {
    let number = |name| message.get_field_by_name(name);
    (
        number("seconds").and_then(|v| v.as_i64()).unwrap_or(0),
        number("nanos").and_then(|v| v.as_i32()).unwrap_or(0),
    )
}

/// `KEY_STATE_ACTIVE` as `active`; `null` for the value that is never sent; the bare number of one
/// that is newer than this program.
fn enum_value(descriptor: &EnumDescriptor, number: i32) -> Value {
    if number == 0 {
        return Value::Null;
    }
    let Some(value) = descriptor.get_value(number) else {
        return number.into();
    };
    let prefix = snake_case(descriptor.name()).to_uppercase() + "_";
    let name = value.name();
    let short = name.strip_prefix(&prefix).unwrap_or(name);
    short.to_lowercase().into()
}

/// `KeyState` as `key_state`.
pub(crate) fn snake_case(camel: &str) -> String {
    let mut snake = String::new();
    for letter in camel.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use muster_proto::{ingest::v1 as ingest, keys::v1 as keys, segments::v1 as segments};
    use prost_types::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_keeps_every_key_whatever_it_holds() {
        let key = keys::DataImportKey {
            key_id: "k1".to_owned(),
            state: keys::KeyState::Active.into(),
            create_time: Some(Timestamp {
                seconds: 1_772_366_400,
                nanos: 500_000_000,
            }),
            ..Default::default()
        };
        let expected = json!({
            "key_id": "k1", "workspace": "", "partner": "", "label": "", "hint": "",
            "state": "active", "create_time": "2026-03-01T12:00:00.5Z", "expire_time": null,
            "revoke_time": null, "last_used_time": null, "replaced_by_key_id": "",
            "allowed_addresses": [],
        });
        assert_eq!(message("muster.keys.v1.DataImportKey", &key), expected);
    }

    #[test]
    fn numbers_stay_numbers_and_enums_lose_their_prefix() {
        let import = ingest::Import {
            received: u64::MAX,
            state: ingest::ImportState::AwaitingConfirmation.into(),
            mode: 99,
            ..Default::default()
        };
        let value = message("muster.ingest.v1.Import", &import);
        assert_eq!(value["received"], json!(u64::MAX));
        assert_eq!(value["state"], "awaiting_confirmation");
        assert_eq!(value["mode"], 99);
        assert_eq!(value["summary"], Value::Null);
    }

    #[test]
    fn a_oneof_shows_the_member_that_is_set() {
        use segments::{Filter, cohort_reference::Cohort, filter::Node};
        let filter = Filter {
            node: Some(Node::Not(Box::new(Filter {
                node: Some(Node::Cohort(segments::CohortFilter {
                    partner: "tinyclues".to_owned(),
                    cohorts: vec![segments::CohortReference {
                        cohort: Some(Cohort::CohortId("c1".to_owned())),
                    }],
                    rule: segments::CohortMembershipRule::Includes.into(),
                })),
            }))),
        };
        let expected = json!({ "not": { "cohort": {
            "partner": "tinyclues", "cohorts": [{ "cohort_id": "c1" }], "rule": "includes",
        }}});
        assert_eq!(message("muster.segments.v1.Filter", &filter), expected);
    }

    #[test]
    fn an_optional_field_is_null_when_absent_and_a_zero_is_a_zero() {
        let mut cohort = ingest::Cohort::default();
        let count = |cohort: &ingest::Cohort| {
            message("muster.ingest.v1.Cohort", cohort)["member_count"].clone()
        };
        assert_eq!(count(&cohort), Value::Null);
        cohort.member_count = Some(0);
        assert_eq!(count(&cohort), json!(0));
    }
}
