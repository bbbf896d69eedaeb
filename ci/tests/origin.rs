//! The origin pool against a real S3 server (s3s-fs behind its layer) and against raw sockets that misbehave.

#![allow(clippy::unwrap_used)]

#[path = "origin/real.rs"]
mod real;
#[path = "origin/rig.rs"]
mod rig;
