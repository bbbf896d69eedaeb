//! Brings the benchmark's keys to where they are to be read from: `put` through a server, `fill` as files.
//!
//! Contents come from `content`, so `get` can verify what either has written.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustls::{ClientConnection, StreamOwned};

use crate::content::{Body, Contents};
use crate::target::Target;
use crate::units::show_size;
use crate::wire;

/// How long a key may be declined (503) before we give up.
const PATIENCE: Duration = Duration::from_secs(60);

/// `forebay-bench put`
#[derive(Args)]
pub struct Put {
    #[command(flatten)]
    target: Target,
}

/// `forebay-bench fill`
#[derive(Args)]
pub struct Fill {
    /// The folder to write into; it is created
    #[arg(long)]
    dir: PathBuf,
    /// The file name of a key; `{key}` stands for its number
    #[arg(long, default_value = "bench-{key}")]
    name_template: String,
    /// How many keys
    #[arg(long, default_value_t = 64)]
    keys: u32,
    /// The size of each block, e.g. 4KiB
    #[arg(long, value_parser = crate::units::parse_size)]
    size: u64,
}

impl Put {
    /// Puts every key, one after the other, and says how fast that was.
    ///
    /// # Errors
    /// A connection or a status that is no success, with the server's words.
    pub fn run(self) -> Result<()> {
        let target = self.target;
        let contents = Contents::new(Body::Seeded, target.keys as usize, usize::try_from(target.size)?);
        let config = wire::client_config(&target.ca)?;
        let (socket, name) = wire::connect(&target.target)?;
        let tls = ClientConnection::new(Arc::clone(&config), name)?;
        let mut stream = BufReader::new(StreamOwned::new(tls, socket));
        let start = Instant::now();
        for key_index in 0..target.keys as usize {
            put_one(&mut stream, &target, key_index, contents.block(key_index))?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let mib = (target.size * u64::from(target.keys)) as f64 / f64::from(1 << 20);
        println!(
            "put {} keys of {} in {seconds:.2} s, {:.1} MiB/s",
            target.keys,
            show_size(target.size),
            mib / seconds
        );
        Ok(())
    }
}

type TlsStream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// Puts one key; a server that is busy (503) is asked again.
fn put_one(stream: &mut TlsStream, target: &Target, key_index: usize, body: &[u8]) -> Result<()> {
    let head = target.head("PUT", key_index, Some(body.len() as u64))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let out = stream.get_mut();
        out.write_all(&head)?;
        out.write_all(body)?;
        out.flush()?;
        match read_response(stream)? {
            (200 | 201 | 204, _) => return Ok(()),
            (503, _) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            (status, body) => bail!("PUT {}: {status} {}", target.path(key_index), body.trim()),
        }
    }
}

/// Status and body of one response.
fn read_response(stream: &mut TlsStream) -> Result<(u16, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(stream.read_until(b'\n', &mut head)? > 0, "the server closed the connection");
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    ensure!(parsed.parse(&head)?.is_complete(), "a response head that does not end");
    let status = parsed.code.context("a response without status")?;
    let mut length = 0;
    for header in parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length")) {
        length = std::str::from_utf8(header.value)?.trim().parse::<u64>()?;
    }
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

impl Fill {
    /// Writes every key's file.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn run(self) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("--dir {}", self.dir.display()))?;
        let contents = Contents::new(Body::Seeded, self.keys as usize, usize::try_from(self.size)?);
        for key_index in 0..self.keys as usize {
            let path = self.dir.join(self.name_template.replace("{key}", &key_index.to_string()));
            fs::write(&path, contents.block(key_index)).with_context(|| path.display().to_string())?;
        }
        println!("wrote {} files of {} to {}", self.keys, show_size(self.size), self.dir.display());
        Ok(())
    }
}
