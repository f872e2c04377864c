//! The story of the product, step by step, over the wire.

mod model;
mod resume;
mod story;
