//! Where requests go: the flags that `get` and `put` share, and the request heads made from them.
//!
//! A head is built once per key before the clock starts, so that nothing of this file is in any figure.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use url::Url;

/// The server, its keys and what it wants to see in a request.
#[derive(Args, Debug, Clone)]
pub struct Target {
    /// The server, e.g. https://127.0.0.1:7400
    #[arg(long)]
    pub target: Url,
    /// The certificate authority to trust (PEM)
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// A file with the bearer token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Further header lines, e.g. `Range: bytes=0-4095`
    #[arg(long = "header", value_name = "LINE")]
    pub headers: Vec<String>,
    /// The path of a key; `{key}` stands for its number
    #[arg(long, default_value = "/v1/volumes/demo-back/blocks/bench-{key}")]
    pub path_template: String,
    /// How many keys there are
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// The size of each block, e.g. 4KiB
    #[arg(long, value_parser = crate::units::parse_size)]
    pub size: u64,
}

impl Target {
    /// The path of one key.
    pub fn path(&self, key_index: usize) -> String {
        self.path_template.replace("{key}", &key_index.to_string())
    }

    /// The head of a request, with the empty line that ends it; `length` is that of its body, if it has one.
    ///
    /// # Errors
    /// The token file cannot be read, or a flag holds a line break.
    pub fn head(&self, method: &str, key_index: usize, length: Option<u64>) -> Result<Vec<u8>> {
        let host = &self.target[url::Position::BeforeHost..url::Position::AfterPort];
        let mut lines = vec![format!("{method} {} HTTP/1.1", self.path(key_index)), format!("Host: {host}")];
        if let Some(file) = &self.token_file {
            let token = fs::read_to_string(file).with_context(|| format!("--token-file {}", file.display()))?;
            lines.push(format!("Authorization: Bearer {}", token.trim()));
        }
        lines.extend(length.map(|length| format!("Content-Length: {length}")));
        lines.extend(self.headers.iter().cloned());
        ensure!(lines.iter().all(|line| !line.contains(['\r', '\n'])), "a header or the path holds a line break");
        Ok((lines.join("\r\n") + "\r\n\r\n").into_bytes())
    }
}
