//! Muster's rules and types, free of I/O: no tokio, no sqlx, no tonic.
//!
//! Everything that decides what an import or a segment *means* lives here, so that it can be read,
//! tested and reasoned about without a database or a socket.
//!
//! Start with [`error`], then read the modules in the order of the product's story.

pub mod credential;
pub mod error;
pub mod filter;
pub mod identifier;
pub mod import;
pub mod name;
pub mod network;
pub mod spreadsheet;
pub mod user_set;
