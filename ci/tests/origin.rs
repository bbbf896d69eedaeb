//! The origin pool against a real S3 server (s3s-fs behind its layer) and against raw sockets that misbehave.
//!
//! Run by `ci/test`. With the environment of `ci/seaweedfs`, the tests of `real` run against SeaweedFS instead; what may
//! differ there stands in `ci/s3-differences.md`.

#![allow(clippy::unwrap_used)]

#[path = "origin/faults.rs"]
mod faults;
#[path = "origin/pressure.rs"]
mod pressure;
#[path = "origin/raw_server.rs"]
mod raw_server;
#[path = "origin/real.rs"]
mod real;
#[path = "origin/rig.rs"]
mod rig;
#[path = "origin/s3_server.rs"]
mod s3_server;
#[path = "origin/settling.rs"]
mod settling;
#[path = "origin/signature.rs"]
mod signature;
