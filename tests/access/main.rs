//! Who may do what: every rpc of the contract, called with every kind of credential, and with
//! everything of somebody else's that it can name.
//!
//! [`requests`] has a row for each rpc: begin there. `matrix` calls each row as everybody, `tenants`
//! with what belongs to another workspace, `partners` with what belongs to another partner, `trail` sees
//! what is on record of each.

#![expect(clippy::unwrap_used, reason = "helpers of tests belong to tests")]

mod limits;
mod matrix;
mod networks;
mod partners;
mod requests;
mod statements;
mod tenants;
mod trail;
mod wire;
mod world;
