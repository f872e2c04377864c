//! Runs a private Postgres cluster in a data directory.
