//! Conversions between domain values and protobuf's well-known types that every server needs.

use muster_domain::error::{Error, Result};
use muster_storage::Timestamp;

pub use prost_types::FieldMask;

/// A moment on the wire.
pub fn to_wire(moment: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: moment.unix_timestamp(),
        nanos: i32::try_from(moment.nanosecond()).expect("below 10⁹"),
    }
}

/// A moment from the wire.
///
/// # Errors
/// `INVALID_ARGUMENT` with an empty path if it is outside the years 1 to 9999.
pub fn from_wire(moment: &prost_types::Timestamp) -> Result<Timestamp> {
    let invalid = || Error::field("", "must be a time in the years 1 to 9999");
    let nanos = u32::try_from(moment.nanos).map_err(|_| invalid())?;
    let whole = Timestamp::from_unix_timestamp(moment.seconds).map_err(|_| invalid())?;
    let exact = whole.replace_nanosecond(nanos).map_err(|_| invalid())?;
    // Postgres keeps microseconds.
    exact
        .replace_nanosecond(nanos / 1_000 * 1_000)
        .map_err(|_| invalid())
        .and_then(|moment| {
            if moment.year() >= 1 {
                Ok(moment)
            } else {
                Err(invalid())
            }
        })
}

/// A moment that must lie in the future.
///
/// # Errors
/// `INVALID_ARGUMENT` with an empty path.
pub fn future_from_wire(moment: &prost_types::Timestamp) -> Result<Timestamp> {
    let moment = from_wire(moment)?;
    if moment > Timestamp::now_utc() {
        Ok(moment)
    } else {
        Err(Error::field("", "must lie in the future"))
    }
}
