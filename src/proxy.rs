//! To come.
pub mod preflight;
