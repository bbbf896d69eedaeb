//! The secrets of `forebay dev`: the key that signs tokens, a token for all its volumes, the keys of the built-in S3.
//!
//! Called by `dev.rs` at start. Keys are made on the first run and kept, readable by their owner only; the token is
//! issued anew at each start, so it is always good for a week.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::layout::{Layout, Secrecy, write_whole};
use super::node_config::{Mode, Volume};
use crate::cli::token::claims;
use crate::token::{Right, SigningKey, generate_key};

const TOKEN_SECONDS: u64 = 7 * 86_400;

/// What the configuration of a proxy says of the key.
#[derive(Debug, Clone, Serialize)]
pub struct PublicKey {
    id: String,
    key: String,
}

/// Makes sure that the key is there, and issues a token for `volumes` into its file. Returns both.
///
/// # Errors
/// If a file can't be read or written, or the kept key is damaged.
pub fn issue_token(layout: &Layout, volumes: &[Volume]) -> anyhow::Result<(PublicKey, String)> {
    let path = layout.token_key();
    let pem = kept_or(&path, || Ok(generate_key()?))?;
    let key = SigningKey::from_pem(&pem)
        .with_context(|| format!("{} is damaged; remove it to have a new one", path.display()))?;
    let writable = volumes.iter().any(|volume| volume.mode != Mode::ReadOnly);
    let right = if writable { Right::ReadWrite } else { Right::Read };
    let names: Vec<String> = volumes.iter().map(|volume| volume.name.clone()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970; set it")?.as_secs();
    let token = key.issue(&claims(&names, right, "forebay dev", now, TOKEN_SECONDS))?;
    write_whole(&layout.token(), token.as_bytes(), Secrecy::Secret)?;
    Ok((PublicKey { id: key.id().to_owned(), key: key.public().to_owned() }, token))
}

/// The access key and secret key of the built-in S3 server.
///
/// # Errors
/// If the file can't be read or written, or is damaged.
pub fn s3_keys(layout: &Layout) -> anyhow::Result<(String, String)> {
    let path = layout.s3_keys();
    let text = kept_or(&path, || {
        let mut rng = StdRng::try_from_os_rng().context("the kernel gives no random bytes")?;
        Ok(format!("DEV{:017X}\n{:032x}{:08x}\n", rng.random::<u64>(), rng.random::<u128>(), rng.random::<u32>()))
    })?;
    let mut lines = text.lines();
    match (lines.next(), lines.next()) {
        (Some(access), Some(secret)) if !access.is_empty() && !secret.is_empty() => {
            Ok((access.to_owned(), secret.to_owned()))
        }
        _ => bail!("{} is damaged; remove it to have new keys", path.display()),
    }
}

/// What `path` holds, or what `make` makes and leaves there.
fn kept_or(path: &Path, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let text = make()?;
            write_whole(path, text.as_bytes(), Secrecy::Secret)?;
            Ok(text)
        }
        Err(e) => Err(e).with_context(|| format!("{} can't be read", path.display())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_tokens_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let volumes = [Volume { name: "demo-back".to_owned(), prefix: String::new(), mode: Mode::WriteBack }];
        let (key, token) = issue_token(&layout, &volumes).unwrap();
        let (again, other) = issue_token(&layout, &volumes).unwrap();
        assert_eq!((key.id, key.key), (again.id, again.key));
        assert_ne!(token, other);
        assert_eq!(fs::read_to_string(layout.token()).unwrap(), other);
        let keys = s3_keys(&layout).unwrap();
        assert_eq!(s3_keys(&layout).unwrap(), keys);
        fs::write(layout.s3_keys(), "half\n").unwrap();
        assert!(s3_keys(&layout).unwrap_err().to_string().contains("damaged"));
    }
}
