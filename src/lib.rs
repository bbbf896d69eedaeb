//! Forebay: a block-caching tier in front of object storage.
//!
//! The library behind the one binary. With `--no-default-features --features client` only what a client links is built.

#[cfg(feature = "client")]
pub mod breaker;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod follow;
pub mod lease;
pub mod placement;
pub mod problem;
pub mod resource;
pub mod routing;
pub mod token;

#[cfg(feature = "admin")]
pub mod admin;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
#[cfg(all(feature = "server", any(test, fuzzing)))]
pub mod fuzz;
#[cfg(feature = "server")]
pub mod mailbox;
#[cfg(feature = "client")]
pub mod origin;
#[cfg(feature = "server")]
pub mod proxy;
