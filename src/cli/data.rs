//! `forebay get|put|head|rm|ls|probe|check`: a volume's blocks from a shell, through the client library.
//!
//! Called by `cli`. Each opens the volume (`data/connect`), does one thing and ends. Results on stdout, progress on stderr if that is a terminal. Exit codes: 0 done, 1
//! failed, 2 usage or configuration, 3 there is no such block, 4 nobody can answer now (`owner-unreachable` among it): try again later.

pub mod check;
mod connect;
mod progress;
pub mod show;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Args, ValueEnum};

pub use self::connect::Connection;
use self::connect::Opened;
use self::progress::Progress;
use crate::client::{Meta, PutCondition, Sent, Via};
use crate::resource::Durability;

/// `forebay get`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The volume.
    volume: String,
    /// The block's key.
    key: String,
    /// Write to this file, whole or not at all, instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only these bytes: FIRST-LAST, or FIRST- to the end.
    #[arg(long, value_name = "FIRST-LAST", value_parser = byte_range)]
    range: Option<ByteRange>,
    #[command(flatten)]
    connection: Connection,
}

/// First byte, and the one after the last.
#[derive(Debug, Clone)]
struct ByteRange(std::ops::Range<u64>);

/// `forebay put`
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The volume.
    volume: String,
    /// The block's key.
    key: String,
    /// The file; `-`: stdin.
    file: PathBuf,
    /// Only if nothing has the key.
    #[arg(long)]
    if_absent: bool,
    /// Ask for more than the volume's default.
    #[arg(long, value_enum, value_name = "LEVEL")]
    durability: Option<Level>,
    #[command(flatten)]
    connection: Connection,
}

/// Where an acknowledged block lies, at least.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    /// On one member's disk.
    Disk,
    /// On two members' disks.
    Peer,
    /// In the store.
    Origin,
}

/// One block.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// The volume.
    volume: String,
    /// The block's key.
    key: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `forebay ls`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The volume.
    volume: String,
    /// Only keys that begin so.
    #[arg(default_value = "")]
    prefix: String,
    /// Print JSON, one block a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// `forebay get`
///
/// # Errors
/// [`crate::client::ClientError`], or the output can't be written.
pub fn get(args: GetArgs) -> anyhow::Result<()> {
    let range = args.range.map(|range| range.0);
    let opened = Opened::new(&args.connection, &args.volume)?;
    opened.run(async |client| {
        let mut block = client.get(&args.key, range).await?;
        let mut progress = Progress::new("get", block.range.end - block.range.start);
        let mut output = Output::new(args.output.as_deref())?;
        while let Some(bytes) = block.next().await? {
            output.write(&bytes)?;
            progress.add(bytes.len() as u64);
        }
        progress.end();
        output.finish()
    })
}

/// `forebay put`
///
/// # Errors
/// [`crate::client::ClientError`], or the file can't be read.
pub fn put(args: PutArgs) -> anyhow::Result<()> {
    let opened = Opened::new(&args.connection, &args.volume)?;
    opened.run(async |client| {
        let bytes_max = u64::from(client.routing().volume.block_size);
        let body = read_body(&args.file, bytes_max)?;
        let condition = if args.if_absent { PutCondition::Absent } else { PutCondition::Any };
        let durability = args.durability.map(|level| match level {
            Level::Disk => Durability::Disk,
            Level::Peer => Durability::Peer,
            Level::Origin => Durability::Origin,
        });
        let (mut progress, sent) = (Progress::new("put", body.len() as u64), Sent::default());
        let putting = client.put_watched(&args.key, body, condition, durability, &sent);
        let done = progress.watch(&sent, putting).await?;
        let what = if done.unchanged { "was there already" } else { "stored" };
        writeln!(io::stdout(), "{} {what}, durability {}, {}", done.etag, done.durability, via(&done.via))?;
        Ok(())
    })
}

/// `forebay head`
///
/// # Errors
/// [`crate::client::ClientError`].
pub fn head(args: BlockArgs) -> anyhow::Result<()> {
    let opened = Opened::new(&args.connection, &args.volume)?;
    opened.run(async |client| {
        let Meta { etag, len_bytes, via: from } = client.head(&args.key).await?;
        let mut stdout = io::stdout();
        if args.json {
            let found = serde_json::json!({"key": args.key, "etag": etag, "bytes": len_bytes, "via": via(&from)});
            writeln!(stdout, "{found}")?;
        } else {
            writeln!(stdout, "etag   {etag}\nbytes  {len_bytes}\nvia    {}", via(&from))?;
        }
        Ok(())
    })
}

/// `forebay rm`
///
/// # Errors
/// [`crate::client::ClientError`].
pub fn remove(args: BlockArgs) -> anyhow::Result<()> {
    let opened = Opened::new(&args.connection, &args.volume)?;
    opened.run(async |client| Ok(client.delete(&args.key).await?))
}

/// `forebay ls`
///
/// # Errors
/// There are no credentials for the store, or it can't be asked.
pub fn list(args: ListArgs) -> anyhow::Result<()> {
    let opened = Opened::new(&args.connection, &args.volume)?;
    opened.run(async |client| {
        let store = client.store().await.map_err(|reason| {
            anyhow::anyhow!(
                "lists come from the store, by credentials of yours or of a session, and there are none: {reason}"
            )
        })?;
        let mut continuation = None;
        let mut stdout = io::stdout().lock();
        loop {
            let (listed, next) = store.list(&args.prefix, continuation.as_deref()).await?;
            for item in listed {
                if args.json {
                    writeln!(stdout, "{}", serde_json::to_string(&item)?)?;
                } else {
                    writeln!(stdout, "{:>10}  {}  {}", item.bytes, item.modified, printable(&item.key))?;
                }
            }
            match next {
                Some(next) => continuation = Some(next),
                None => return Ok(()),
            }
        }
    })
}

/// Who answered, for people.
fn via(via: &Via) -> String {
    match via {
        Via::Store => "straight from the store".to_owned(),
        Via::Member { group, member, cache_status } if cache_status.is_empty() => format!("{group}/{member}"),
        Via::Member { group, member, cache_status } => format!("{group}/{member} ({cache_status})"),
    }
}

/// A key can hold anything; a terminal shall not obey it.
fn printable(key: &str) -> String {
    key.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Where a block goes: stdout, or a file that appears when it is whole.
struct Output {
    file: Option<(File, PathBuf, PathBuf)>,
}

impl Output {
    fn new(path: Option<&Path>) -> anyhow::Result<Output> {
        let Some(path) = path else { return Ok(Output { file: None }) };
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}.part", std::process::id()));
        let new = PathBuf::from(new);
        let file = File::create(&new).with_context(|| new.display().to_string())?;
        Ok(Output { file: Some((file, new, path.to_owned())) })
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match &mut self.file {
            Some((file, new, _)) => file.write_all(bytes).with_context(|| new.display().to_string()),
            None => io::stdout().lock().write_all(bytes).context("stdout"),
        }
    }

    fn finish(mut self) -> anyhow::Result<()> {
        match self.file.take() {
            Some((file, new, path)) => {
                drop(file);
                fs::rename(&new, &path).with_context(|| path.display().to_string())
            }
            None => io::stdout().flush().context("stdout"),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((_, new, _)) = &self.file {
            // What broke off is nobody's.
            let _ = fs::remove_file(new);
        }
    }
}

fn read_body(path: &Path, bytes_max: u64) -> anyhow::Result<Bytes> {
    let mut body = Vec::new();
    let limit = bytes_max + 1;
    if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut body).context("stdin")?;
    } else {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        file.take(limit).read_to_end(&mut body).with_context(|| path.display().to_string())?;
    }
    anyhow::ensure!(
        body.len() as u64 <= bytes_max,
        "{} is larger than {bytes_max} bytes, the volume's block size",
        path.display()
    );
    Ok(body.into())
}

fn byte_range(text: &str) -> Result<ByteRange, String> {
    let bad = || format!("{text:?} is no range: write FIRST-LAST or FIRST-");
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let first: u64 = first.parse().map_err(|_| bad())?;
    let end = if last.is_empty() {
        u64::MAX
    } else {
        last.parse::<u64>().ok().and_then(|last| last.checked_add(1)).ok_or_else(bad)?
    };
    if first < end { Ok(ByteRange(first..end)) } else { Err(bad()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_first_to_last() {
        assert_eq!(byte_range("2-4").unwrap().0, 2..5);
        assert_eq!(byte_range("7-").unwrap().0, 7..u64::MAX);
        for bad in ["", "-", "-5", "5-4", "a-b", "3"] {
            assert!(byte_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block");
        let mut output = Output::new(Some(&path)).unwrap();
        output.write(b"half").unwrap();
        drop(output);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut output = Output::new(Some(&path)).unwrap();
        output.write(b"whole").unwrap();
        output.finish().unwrap();
        assert_eq!(
            (fs::read(&path).unwrap().as_slice(), fs::read_dir(folder.path()).unwrap().count()),
            (&b"whole"[..], 1)
        );
    }
}
