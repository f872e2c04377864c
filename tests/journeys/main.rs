//! The story of the product, step by step, over the wire.

mod campaign;
mod matching;
mod model;
mod pains;
mod rest;
mod rest_errors;
mod resume;
mod story;
