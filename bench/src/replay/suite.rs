//! The generated traces whose table stands in bench/RESULTS.md, with their seeds.
//!
//! Run by `forebay-bench replay --committed`, and through a whole node with `--node`, each at 1, 5, 20 and 50 % of its footprint: popularity of three degrees,
//! popularity under scans, training epochs, and the loop that is a little too large.

use super::generate::Generator;

const SPECS: [&str; 6] = [
    "zipf:0.7,seed=1",
    "zipf:0.9,seed=2",
    "zipf:1.1,seed=3",
    "zipf-scan:0.9,scan=20%,seed=4",
    "epochs:8,seed=5",
    "loop:1.2,seed=6",
];

/// The traces.
pub fn generators() -> Vec<Generator> {
    SPECS.iter().map(|spec| spec.parse().expect("the list above is tested")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_committed_trace_can_be_made() {
        assert_eq!(super::generators().len(), super::SPECS.len());
    }
}
