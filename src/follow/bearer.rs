//! The token that goes with each request: given once, or a file that somebody renews.
//!
//! Called by `follow` for each question to the admin, and by the client for each request to a member. A file is read again when it changed, looked at
//! once a second at most; if it can't be read any more, the last token is used on. Never printed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const TOKEN_FILE_BYTES_MAX: u64 = 64 << 10;

/// Where a token comes from.
pub struct Bearer {
    file: Option<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    token: String,
    modified: Option<SystemTime>,
    looked: Instant,
}

/// There is no token to be had.
#[derive(Debug, thiserror::Error)]
pub enum BearerError {
    /// The file.
    #[error("{path}: {source}")]
    File {
        /// As configured.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// Something else than a token. What it is instead is not said: it may be another secret.
    #[error("holds no token: one line, as `forebay token create` prints it")]
    NoToken,
}

impl Bearer {
    /// This token, for good.
    ///
    /// # Errors
    /// It is none.
    pub fn fixed(token: &str) -> Result<Bearer, BearerError> {
        let token = checked(token)?;
        Ok(Bearer { file: None, current: Mutex::new(Current { token, modified: None, looked: Instant::now() }) })
    }

    /// What the file holds, now and whenever it changes.
    ///
    /// # Errors
    /// It can't be read, or holds no token.
    pub fn file(path: &Path) -> Result<Bearer, BearerError> {
        let (token, modified) = read(path)?;
        let current = Current { token, modified, looked: Instant::now() };
        Ok(Bearer { file: Some(path.to_owned()), current: Mutex::new(current) })
    }

    /// The token of now.
    #[must_use]
    pub fn token(&self) -> String {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.file
            && current.looked.elapsed() >= LOOK_INTERVAL
        {
            current.looked = Instant::now();
            let modified = std::fs::metadata(path).ok().and_then(|metadata| metadata.modified().ok());
            if modified != current.modified
                && let Ok((token, modified)) = read(path)
            {
                (current.token, current.modified) = (token, modified);
            }
        }
        current.token.clone()
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearer").field("file", &self.file).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<(String, Option<SystemTime>), BearerError> {
    let fail = |source| BearerError::File { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(fail)?;
    if metadata.len() > TOKEN_FILE_BYTES_MAX {
        return Err(BearerError::NoToken);
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    Ok((checked(&text)?, metadata.modified().ok()))
}

fn checked(text: &str) -> Result<String, BearerError> {
    let token = text.trim();
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if is_token { Ok(token.to_owned()) } else { Err(BearerError::NoToken) }
}
