//! Messages that are well in everything but one thing.

use std::sync::LazyLock;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message as _;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage as _, Value,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// Nesting of messages up to which every field is tried.
const DEPTH: usize = 4;

/// Ids that stand for something.
pub(super) struct Known {
    pub(super) filter: String,
    pub(super) import: String,
    pub(super) segment: String,
    pub(super) resolution: String,
    pub(super) token: String,
    pub(super) key: String,
}

/// What is sent in one call.
#[derive(Clone)]
pub(super) struct Call {
    /// What is wrong with it.
    pub(super) what: String,
    pub(super) messages: Vec<Vec<u8>>,
}

/// At most so many hostile calls of an rpc, and a good one.
pub(super) fn calls(rpc: &MethodDescriptor, known: &Known, most: usize) -> Vec<Call> {
    let mut rng = StdRng::seed_from_u64(7);
    let good = conversation(rpc, known);
    let mut calls = Vec::new();
    for (at, message) in good.iter().enumerate() {
        for (what, mutated) in mutations(message, known, 0) {
            calls.push(call(
                format!("message {at}, {what}"),
                &good,
                at,
                mutated.encode_to_vec(),
            ));
        }
    }
    calls.shuffle(&mut rng);
    calls.truncate(most);
    for at in 0..good.len() {
        let bytes = good[at].encode_to_vec();
        for round in 0..5 {
            let mut damaged = bytes.clone();
            for _ in 0..rng.random_range(1..4) {
                if !damaged.is_empty() {
                    let place = rng.random_range(0..damaged.len());
                    damaged[place] = rng.random();
                }
            }
            calls.push(call(
                format!("message {at}, damaged {round}"),
                &good,
                at,
                damaged,
            ));
        }
        let half = bytes[..bytes.len() / 2].to_vec();
        calls.push(call(format!("message {at}, half of it"), &good, at, half));
    }
    let messages: Vec<_> = good.iter().map(|message| message.encode_to_vec()).collect();
    let (twice, none) = ([messages.clone(), messages.clone()].concat(), Vec::new());
    for (what, messages) in [
        ("good", messages),
        ("everything twice", twice),
        ("none", none),
    ] {
        let what = what.to_owned();
        calls.push(Call { what, messages });
    }
    calls
}

fn call(what: String, good: &[DynamicMessage], at: usize, bytes: Vec<u8>) -> Call {
    let mut messages: Vec<_> = good.iter().map(|message| message.encode_to_vec()).collect();
    messages[at] = bytes;
    Call { what, messages }
}

/// The messages of a call that is well.
fn conversation(rpc: &MethodDescriptor, known: &Known) -> Vec<DynamicMessage> {
    let input = rpc.input();
    if rpc.name() != "IngestCohort" {
        return vec![plausible(&input, known, 0)];
    }
    let one_of = |name: &str| {
        let mut message = DynamicMessage::new(input.clone());
        let field = input.get_field_by_name(name).unwrap();
        message.set_field(&field, value(&field, known, 0));
        message
    };
    ["open", "batch", "commit"].map(one_of).to_vec()
}

/// A message in which every field has a value that may occur. Of a oneof it has the first.
fn plausible(descriptor: &MessageDescriptor, known: &Known, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let first = field
            .containing_oneof()
            .is_none_or(|oneof| oneof.fields().next().as_ref() == Some(&field));
        let left_out = [
            "update_mask",
            "etag",
            "page_token",
            "resume_token",
            "expire_time",
        ];
        if first && !left_out.contains(&field.name()) && depth < DEPTH {
            message.set_field(&field, value(&field, known, depth));
        }
    }
    message
}

fn value(field: &FieldDescriptor, known: &Known, depth: usize) -> Value {
    let one = match field.kind() {
        Kind::String => Value::String(match field.name() {
            "workspace" => "shop".to_owned(),
            "partner" => "tinyclues".to_owned(),
            "import_id" => known.import.clone(),
            "segment_id" => known.segment.clone(),
            name if name.ends_with("resolution_id") => known.resolution.clone(),
            "token_id" => known.token.clone(),
            "key_id" => known.key.clone(),
            "scopes" => "segments:read".to_owned(),
            "text" => known.filter.clone(),
            "consistency_token" | "request_id" | "etag" | "page_token" => String::new(),
            "external_id" | "external_ids" => "u1".to_owned(),
            _ => "spring".to_owned(),
        }),
        Kind::Bytes => Value::Bytes(vec![0; 32].into()),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Bool => Value::Bool(false),
        Kind::Double => Value::F64(0.5),
        Kind::Int32 => Value::I32(0),
        Kind::Int64 => Value::I64(0),
        Kind::Uint32 => Value::U32(0),
        Kind::Uint64 => Value::U64(0),
        Kind::Message(inner) => Value::Message(plausible(&inner, known, depth + 1)),
        other => panic!(
            "{}: a kind without a value here: {other:?}",
            field.full_name()
        ),
    };
    if field.is_list() {
        Value::List(vec![one])
    } else {
        one
    }
}

/// Everything that can be wrong with one field of a message or of those in it.
fn mutations(good: &DynamicMessage, known: &Known, depth: usize) -> Vec<(String, DynamicMessage)> {
    let mut all = Vec::new();
    for field in good.descriptor().fields() {
        for (what, hostile) in hostile(&field, known, depth) {
            let mut message = good.clone();
            message.set_field(&field, hostile);
            all.push((format!("{}: {what}", field.name()), message));
        }
        let mut message = good.clone();
        message.clear_field(&field);
        all.push((format!("{} missing", field.name()), message));
    }
    all
}

fn hostile(field: &FieldDescriptor, known: &Known, depth: usize) -> Vec<(String, Value)> {
    let ones = hostile_ones(field, known, depth);
    if !field.is_list() {
        return ones;
    }
    let good = value(field, known, depth).as_list().unwrap()[0].clone();
    let mut lists: Vec<_> = ones
        .into_iter()
        .map(|(what, one)| (what, Value::List(vec![good.clone(), one])))
        .collect();
    for count in [2, 1_001, 10_001] {
        lists.push((
            format!("{count} times"),
            Value::List(vec![good.clone(); count]),
        ));
    }
    lists
}

fn hostile_ones(field: &FieldDescriptor, known: &Known, depth: usize) -> Vec<(String, Value)> {
    let shown = |value: Value| (format!("{value:?}").chars().take(60).collect(), value);
    let times = [
        -62_135_596_801,
        -377_705_116_801,
        253_402_300_799,
        253_402_300_800,
        9_224_318_015_999,
    ];
    match field.kind() {
        Kind::String => STRINGS
            .iter()
            .cloned()
            .map(Value::String)
            .map(shown)
            .collect(),
        Kind::Bytes => [0, 1, 31, 33, 100_000]
            .map(|length| shown(Value::Bytes(vec![0xff; length].into())))
            .to_vec(),
        Kind::Enum(_) => [-1, 0, 2, 99, i32::MIN, i32::MAX]
            .map(|number| shown(Value::EnumNumber(number)))
            .to_vec(),
        Kind::Bool => [true, false].map(|it| shown(Value::Bool(it))).to_vec(),
        Kind::Double => [
            0.0,
            -0.0,
            -1.0,
            1.0,
            1e308,
            f64::NAN,
            f64::INFINITY,
            f64::MIN_POSITIVE,
        ]
        .map(|it| shown(Value::F64(it)))
        .to_vec(),
        Kind::Int32 => [-1, 1, 1_000, 1_001, 1_000_000_000, i32::MIN, i32::MAX]
            .map(|it| shown(Value::I32(it)))
            .to_vec(),
        Kind::Int64 => [-1, 1, i64::MIN, i64::MAX, i64::MAX / 1_000_000]
            .into_iter()
            .chain(times)
            .map(|it| shown(Value::I64(it)))
            .collect(),
        Kind::Uint32 => [1, 2, 1_024, 1_025, 1 << 31, u32::MAX]
            .map(|it| shown(Value::U32(it)))
            .to_vec(),
        Kind::Uint64 => [1, 1 << 32, 1 << 63, u64::MAX]
            .map(|it| shown(Value::U64(it)))
            .to_vec(),
        Kind::Message(inner) if inner.full_name() == "muster.segments.v1.Filter" => {
            let mut filters = deep_filters(&inner, known);
            if depth < DEPTH {
                filters.extend(inner_messages(&inner, known, depth));
            }
            filters
        }
        Kind::Message(_) if depth >= DEPTH => Vec::new(),
        Kind::Message(inner) => inner_messages(&inner, known, depth),
        other => panic!("{}: {other:?}", field.full_name()),
    }
}

fn inner_messages(inner: &MessageDescriptor, known: &Known, depth: usize) -> Vec<(String, Value)> {
    let good = plausible(inner, known, depth + 1);
    let empty = (
        "empty".to_owned(),
        Value::Message(DynamicMessage::new(inner.clone())),
    );
    let mut all = vec![empty];
    for (what, message) in mutations(&good, known, depth + 1) {
        all.push((what, Value::Message(message)));
    }
    all
}

/// Filters that nest: as deep as allowed, deeper, and so deep that the message cannot be read.
fn deep_filters(filter: &MessageDescriptor, known: &Known) -> Vec<(String, Value)> {
    let not = filter.get_field_by_name("not").unwrap();
    let nested = |levels: usize| {
        let mut inner = plausible(filter, known, 1);
        for _ in 1..levels {
            let mut outer = DynamicMessage::new(filter.clone());
            outer.set_field(&not, Value::Message(inner));
            inner = outer;
        }
        (format!("{levels} levels"), Value::Message(inner))
    };
    [31, 32, 33, 45, 150].map(nested).to_vec()
}

/// Texts that some layer below may not like, or take for something else.
static STRINGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut strings: Vec<String> = [
        "",
        " ",
        "\0",
        "a\0b",
        "\u{1}\u{7f}\u{85}",
        "a\nb",
        "%",
        "_",
        "\\",
        "'",
        "\"",
        "'; --",
        "\u{feff}\u{202e}\u{200b}",
        "\u{10ffff}",
        "../..",
        "=1+1",
        "-1",
        "nobody",
        "*",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "0199c2f0-7c1e-7000-8000-3f1d5a2b9c4",
        "not a UUID",
        "tinyclues:",
        "segment(\"spring\")",
        "tinyclues:\"\\u{0}\"",
        "tinyclues:id(\"a\\u{0}\")",
    ]
    .map(str::to_owned)
    .to_vec();
    strings.extend(["x", "é", "\u{1}", "("].iter().map(|c| c.repeat(60_000)));
    strings.extend([256, 513].map(|length| "x".repeat(length)));
    strings.push("x".repeat(5 << 20));
    // What every token of ours is made of, with keys that no list gave out.
    let tokens = [
        "null",
        "0",
        "-1",
        "9223372036854775807",
        "18446744073709551615",
        "1e999",
        r#""\u0000""#,
        r#""x""#,
        r#""00000000-0000-0000-0000-000000000000""#,
        "[]",
        "{}",
        r#"[0,"\u0000"]"#,
        r#"[170141183460469231731687303715884105727,"x"]"#,
        r#"[-170141183460469231731687303715884105728,"\u0000"]"#,
        r#"["\u0000","00000000-0000-0000-0000-000000000000"]"#,
        r#"["at",1,9223372036854775807,null]"#,
        r#"["at",-1,-9223372036854775808,null]"#,
        r#"["at",1,1,["00000000-0000-0000-0000-000000000000",9223372036854775807]]"#,
    ];
    strings.extend(tokens.map(|json| BASE64_URL_SAFE_NO_PAD.encode(json)));
    strings.push("[".repeat(40_000));
    strings
});
