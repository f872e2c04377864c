//! The people of the directory, drawn from their numbers alone, and who of them is in a list.

use muster_proto::users::v1::UserRecord;
use rand::{SeedableRng as _, rngs::StdRng, seq::index};

/// Draws the lists.
const SEED: u64 = 20_260_501;

/// The external id of a person: 25 bytes, in no order.
pub(crate) fn external_id(person: u32) -> String {
    format!("customer-{:016x}", scattered(person))
}

/// Sent to create a person with one device.
pub(crate) fn record(person: u32) -> UserRecord {
    UserRecord {
        external_id: external_id(person),
        device_ids: vec![format!(
            "{:032x}",
            u128::from(scattered(person)) << 32 | 0xd
        )],
        ..Default::default()
    }
}

/// Multiplication by an odd number is a bijection, so nobody shares an id.
fn scattered(person: u32) -> u64 {
    (u64::from(person) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// So many different people of the first `people`, in random order; another `draw`, other people.
pub(crate) fn draw(people: u32, count: u32, draw: u64) -> Vec<u32> {
    let mut random = StdRng::seed_from_u64(SEED ^ draw);
    let (people, count) = (people as usize, count.min(people) as usize);
    let drawn = index::sample(&mut random, people, count).into_iter();
    drawn
        .map(|person| u32::try_from(person).expect("numbers of people are 32 bits"))
        .collect()
}

/// Their external ids.
pub(crate) fn external_ids(people: &[u32]) -> Vec<String> {
    people.iter().map(|person| external_id(*person)).collect()
}
