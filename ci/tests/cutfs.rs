//! A small file system that can lose power: what was not synced may be dropped, torn, or survive out of order.
//!
//! Development only, used by `ci/powercut`. `media` is the model (bytes and names that are durable, changes that are not),
//! `mount` serves it to the kernel by FUSE, `proof` tries the model without a mount. One directory, no links, no
//! permissions: what a proxy needs for its slabs.

#![allow(dead_code)] // The proof runs without the mount.

pub mod media;
pub mod mount;
pub mod proof;
