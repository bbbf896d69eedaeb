//! What `ci/crash` and `ci/powercut` have in common: a real proxy under load, an end without warning, and an oracle that
//! knows what must hold afterwards.
//!
//! `node` runs the proxy, `bucket` the S3 server and the line to it, `oracle` keeps what was acknowledged, `load` makes it
//! so, `verify` compares after each restart, `campaign` repeats all that, `flags` reads the command line. The seed decides
//! every choice; when exactly the end comes, the machine decides.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // A test; and each campaign uses a part of it.

pub mod bucket;
pub mod campaign;
pub mod flags;
pub mod load;
pub mod node;
pub mod oracle;
pub mod verify;
