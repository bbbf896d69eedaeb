//! `forebay admin`: the server that keeps what a deployment consists of. Metadata only, never on the data path.
//!
//! `server` accepts, `api` answers: one table of routes, from which the dispatch and the OpenAPI document are made. `rules` says what may be
//! changed, `registry` is the port to the storage and `sqlite` its implementation; `keys` signs and verifies; `routing_view` gathers what a
//! volume's clients are told. Invariants: what is acknowledged is durable; each change has one revision and one audit row; no secret
//! is answered or logged.

pub mod api;
pub mod config;
pub mod keys;
pub mod registry;
pub mod routing_view;
pub mod rules;
pub mod server;
pub mod sqlite;
pub mod sts;
