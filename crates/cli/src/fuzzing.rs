//! The way in of a fuzz target (`tests/fuzz`); not an interface.

/// Reads a file of users.
pub fn users_csv(bytes: &[u8]) {
    crate::command::users::fuzz_csv(bytes);
}
