//! All of Muster's SQL: migrations, checked queries and transactions of the one Postgres schema.
//!
//! Functions take a connection, do one thing and return domain types; callers compose them in a
//! transaction from [`Store::begin_in`]. There are no repositories and no traits. Every statement is
//! checked at compile time against the descriptions in `.sqlx`; `make prepare` writes them anew.
//!
//! Every function of a workspace takes its [`WorkspaceId`] and puts it into every predicate. Beneath
//! that, row-level security shows a transaction the one workspace it was begun in
//! ([`Store::begin_in`]), and each server acts in a [`Role`] that may only what it needs.
//!
//! Start with [`Store`], then read the module of the noun you are after; `migrations/` has the
//! commented schema.

pub mod audience;
pub mod audit;
mod clean_up;
pub mod cohorts;
pub mod contents;
pub mod credentials;
pub mod directory;
pub mod imports;
pub mod partners;
pub mod references;
pub mod rejected;
pub mod requests;
pub mod resolutions;
pub mod segments;
pub mod versions;
pub mod workspaces;

mod error;
mod roles;
pub mod schema;
pub mod share;
mod store;

pub use error::{Error, OnConstraint, Result};
pub use roles::Role;
pub use store::{Settings, Store, Tx};

/// A connection, inside or outside a transaction.
pub use sqlx::PgConnection as Connection;
pub use workspaces::WorkspaceId;

/// A moment, in UTC.
pub use time::OffsetDateTime as Timestamp;
