//! What every Muster server shares.
//!
//! A server crate implements a generated tonic trait, hands it to [`server::Services`] and gets
//! limits, credentials, authorisation, health, reflection and an orderly end. A handler reads:
//!
//! ```text
//! async fn get_key(&self, request: Request<pb::GetKeyRequest>) -> RpcResult<pb::GetKeyResponse> {
//!     respond(async {
//!         let (caller, body) = admitted(request);
//!         let key = self.app.get(&caller, body.try_into()?).await?;
//!         Ok(key.into())
//!     })
//!     .await
//! }
//! ```
//!
//! This crate knows no service by type. Read [`authorization`] for who may call what, [`caller`] for
//! how that is found out, [`response`] for what an error becomes on the wire.

pub mod admission;
mod allowance;
pub mod attempts;
pub mod authorization;
pub mod caller;
pub mod computation;
pub mod consistency;
mod edge;
mod intake;
pub mod once;
pub mod outlet;
pub mod page;
mod refusals;
pub mod response;
pub mod server;
pub mod telemetry;
pub mod traffic;
pub mod wire;

pub use admission::Admission;
pub use caller::{Caller, admitted};
pub use computation::{compute, shutting_down};
pub use consistency::ConsistencyToken;
pub use once::{Once, answered, once};
pub use page::Page;
pub use response::{RpcResult, respond, status};
