//! The keys of the built-in S3 server of `forebay dev`, also as the file that its admin's store refers to.
//!
//! Called by `dev.rs` at start. They are made on the first run and kept, readable by their owner only.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::layout::{Layout, Secrecy, write_whole};

/// The section of the credentials file.
pub const PROFILE: &str = "default";

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
            let credentials = format!("[{PROFILE}]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
            write_whole(&layout.s3_credentials(), credentials.as_bytes(), Secrecy::Secret)?;
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
    fn keys_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let keys = s3_keys(&layout).unwrap();
        assert_eq!(s3_keys(&layout).unwrap(), keys);
        assert!(fs::read_to_string(layout.s3_credentials()).unwrap().contains(&keys.1));
        fs::write(layout.s3_keys(), "half\n").unwrap();
        assert!(s3_keys(&layout).unwrap_err().to_string().contains("damaged"));
    }
}
