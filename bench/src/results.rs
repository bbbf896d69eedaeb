//! The file that tables are kept in: each command replaces the part between its own marks.
//!
//! Called by the commands that have `--write`. A mark is an HTML comment, so that nobody sees it who reads the file as it
//! is shown.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Puts `text` between the marks called `mark` of `file`; a file without those, or none, gets them at its end.
///
/// # Errors
/// The file cannot be read or written.
pub fn write_marked(file: &Path, mark: &str, text: &str) -> Result<()> {
    let context = || format!("--write {}", file.display());
    let (begin, end) = (format!("<!-- {mark}: begin -->"), format!("<!-- {mark}: end -->"));
    let old = if file.exists() { fs::read_to_string(file).with_context(context)? } else { String::new() };
    let (before, after) = match (old.split_once(&begin), old.split_once(&end)) {
        (Some((before, _)), Some((_, after))) => (before.to_owned(), after.to_owned()),
        _ => (format!("{old}\n"), "\n".to_owned()),
    };
    fs::write(file, format!("{before}{begin}\n{}\n{end}{after}", text.trim())).with_context(context)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_part_of_a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("RESULTS.md");
        let filled = |text: &str| format!("# Results\n\n<!-- a: begin -->\n{text}\n<!-- a: end -->\n\n## More\n");
        fs::write(&file, filled("old")).unwrap();
        write_marked(&file, "a", "new\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), filled("new"));
        write_marked(&file, "b", "first").unwrap();
        write_marked(&file, "b", "second").unwrap();
        let expected = format!("{}\n<!-- b: begin -->\nsecond\n<!-- b: end -->\n", filled("new"));
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    }
}
