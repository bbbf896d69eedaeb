//! `forebay dev`: everything a first look needs, on loopback.

pub mod s3_server;
