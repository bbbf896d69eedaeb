//! `forebay-bench replay` as people run it: recorded traces of both formats, generated ones, and files that are no trace.
//!
//! What it must never do: make a table of rubbish, or another table of the same requests.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay-bench")).arg("replay").args(arguments).output().unwrap()
}

fn table(arguments: &[&str]) -> String {
    let output = replay(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = replay(arguments);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Thirty keys in turn, each asked for twice in a row: of 100 bytes, so 3,000 in all.
fn history() -> Vec<(u64, u32)> {
    (0..600).map(|request| (request / 2 % 30, 100)).collect()
}

fn oracle_general(folder: &Path) -> PathBuf {
    let record = |(time, (id, size)): (usize, (u64, u32))| {
        [&(time as u32).to_le_bytes()[..], &id.to_le_bytes(), &size.to_le_bytes(), &i64::MAX.to_le_bytes()].concat()
    };
    let file = folder.join("trace.oracleGeneral");
    fs::write(&file, history().into_iter().enumerate().flat_map(record).collect::<Vec<u8>>()).unwrap();
    file
}

fn csv(folder: &Path) -> PathBuf {
    let line = |(time, (id, size)): (usize, (u64, u32))| format!("{time},block-{id},{size}\n");
    let file = folder.join("trace.csv");
    let lines: String = history().into_iter().enumerate().map(line).collect();
    fs::write(&file, format!("time,id,size\n{lines}")).unwrap();
    file
}

#[test]
fn both_formats_of_one_trace_make_the_same_table() {
    let folder = TempDir::new().unwrap();
    let (binary, text) = (oracle_general(folder.path()), csv(folder.path()));
    let of = |file: &Path| table(&["--trace", file.to_str().unwrap(), "--capacity", "1000,100%"]);
    let (binary, text) = (of(&binary), of(&text));
    assert_eq!(binary.split_once('\n').unwrap().1, text.split_once('\n').unwrap().1);
    assert!(binary.starts_with("### trace.oracleGeneral (600 requests)"), "{binary}");
    // Round and round through three times the cache: of FIFO, LRU, CLOCK and SIEVE only the second of two requests hits.
    assert!(binary.contains("| 1000 B | requests missed, % | 50.00 | 50.00 | "), "{binary}");
    // With room for all, each key is missed once: 30 of 600.
    let whole = binary.lines().find(|line| line.starts_with("| 100 %")).unwrap();
    assert_eq!(whole, "| 100 % = 3000 B | requests missed, % | 5.00 | 5.00 | 5.00 | 5.00 | 5.00 | 5.00 | +0.00 |");
}

#[test]
fn a_generated_trace_makes_the_same_table_every_time() {
    let generate = ["--generate", "zipf:0.9,keys=2000,requests=50000,size=1KiB-64KiB", "--capacity", "1%,20%"];
    let one = table(&generate);
    assert_eq!(one, table(&generate));
    assert!(one.contains("bytes missed") && one.contains("| 20 % = "), "{one}");
    let seeded =
        table(&["--generate", "zipf:0.9,keys=2000,requests=50000,size=1KiB-64KiB,seed=2", "--capacity", "1%,20%"]);
    assert_ne!(one.split_once('\n').unwrap().1, seeded.split_once('\n').unwrap().1);
}

#[test]
fn the_marked_part_of_a_file_is_replaced() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("RESULTS.md");
    let generate =
        ["--generate", "loop:1.2,keys=100,requests=1000", "--capacity", "50%", "--write", file.to_str().unwrap()];
    fs::write(&file, "no marks").unwrap();
    table(&generate);
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.starts_with("no marks\n<!-- replay: begin -->\n"), "{written}");
    fs::write(&file, "# A\n<!-- replay: begin -->\nold\n<!-- replay: end -->\nB\n").unwrap();
    let shown = table(&generate);
    let written = fs::read_to_string(&file).unwrap();
    assert!(
        written.starts_with("# A\n<!--") && written.ends_with("-->\nB\n") && written.contains(shown.trim_end()),
        "{written}"
    );
    assert!(!written.contains("old"));
}

#[test]
fn rubbish_is_refused_with_its_place() {
    let folder = TempDir::new().unwrap();
    let with = |name: &str, content: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, content).unwrap();
        refusal(&["--trace", file.to_str().unwrap(), "--capacity", "1000"])
    };
    let mut cut = fs::read(oracle_general(folder.path())).unwrap();
    cut.truncate(100);
    assert!(with("cut", &cut).contains("record 4 at byte 96: the file ends after 4 of its 24 bytes"));
    assert!(with("noise", &[0xa5; 240]).contains("record 0 at byte 0: its next access is"));
    assert!(with("text", b"dear reader,\nthis is\n").contains("line 1"));
    assert!(with("empty", b"").contains("no requests in it"));
    assert!(with("packed", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0]).contains("compressed with zstd"));
    assert!(refusal(&["--trace", "/nowhere", "--capacity", "1"]).contains("/nowhere"));
    assert!(refusal(&["--generate", "zipf:0.9", "--capacity", "0%"]).contains("1% to 100%"));
}
