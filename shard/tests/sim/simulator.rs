//! The simulator: the real shard on a simulated disk, clock, origin and scheduler, against a model of plain maps.
//!
//! One seed is one run (`run`): its plan, its clients, its faults, its crashes. The same seed gives the same run, to the
//! nanosecond; a digest of the run's history proves it. Used by the program behind `ci/sim` (`program.rs`) and, in a
//! short form, by `tests/sim.rs`. `exhaust` runs every small crash workload instead of random ones.

pub mod campaign;
pub mod client;
pub mod coverage;
pub mod exhaust;
pub mod history;
pub mod machine;
pub mod model;
pub mod operator;
pub mod pins;
pub mod plan;
pub mod rack;
pub mod reader;
pub mod run;
pub mod truth;
pub mod universe;
