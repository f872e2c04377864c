//! The story of the product, step by step, over the wire.

#![expect(clippy::unwrap_used, reason = "helpers of tests belong to tests")]

mod audit;
mod campaign;
mod erasure;
mod hostile;
mod matching;
mod model;
mod operator;
mod pains;
mod rest;
mod rest_errors;
mod rest_keys;
mod resume;
mod search;
mod story;
mod uploads;
