//! Muster's wire contract.
