//! Who signs requests to a store: keys from the configuration, the environment or the shared credentials file.
//!
//! Read once at start and again when the store says they expired. Secrets appear in no message and no `Debug` output.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where keys come from.
#[derive(Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// These.
    Keys(Keys),
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if set, `AWS_SESSION_TOKEN`.
    Environment,
    /// A section of a file in the form of `~/.aws/credentials`.
    File {
        /// The file; `None`: `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`.
        path: Option<PathBuf>,
        /// The section; `None`: `AWS_PROFILE`, else `default`.
        profile: Option<String>,
    },
    /// The usual places: the environment, then the file.
    Usual,
}

/// A pair of keys, perhaps with a session token.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Names the account; not secret, but nobody's business.
    pub access_key: String,
    /// The secret.
    pub secret_key: String,
    /// Goes with keys that expire.
    pub session_token: Option<String>,
}

/// No usable keys, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Not in the environment.
    #[error("no credentials in the environment: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    NotInEnvironment,
    /// The file can't be read.
    #[error("credentials file {path}: {reason}; name it by `credentials.file` or set AWS_SHARED_CREDENTIALS_FILE")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// The file has no such section, or the section lacks a key.
    #[error("credentials file {path}: section [{profile}] has no {missing}")]
    Incomplete {
        /// The file.
        path: String,
        /// The section.
        profile: String,
        /// `aws_access_key_id` or `aws_secret_access_key`.
        missing: &'static str,
    },
    /// Neither place has any.
    #[error(
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write {path}, or set the store's `credentials`"
    )]
    Nowhere {
        /// The file looked for.
        path: String,
    },
}

impl CredentialSource {
    /// What a reference of a store's record names on this machine: `usual`, `env`, `profile:NAME` or `file:PATH#PROFILE`; the admin has checked its form.
    #[must_use]
    pub fn referred(reference: Option<&str>) -> CredentialSource {
        let file = |path: Option<&str>, profile: &str| CredentialSource::File {
            path: path.map(PathBuf::from),
            profile: Some(profile.to_owned()),
        };
        match reference {
            Some("env") => CredentialSource::Environment,
            Some(text) => match (text.strip_prefix("profile:"), text.strip_prefix("file:")) {
                (Some(profile), _) => file(None, profile),
                (_, Some(place)) => match place.rsplit_once('#') {
                    Some((path, profile)) => file(Some(path), profile),
                    None => file(Some(place), "default"),
                },
                _ => CredentialSource::Usual,
            },
            None => CredentialSource::Usual,
        }
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// [`CredentialError`] names the place and the fix.
    pub fn load(&self) -> Result<Keys, CredentialError> {
        self.load_with(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn load_with(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Keys, CredentialError> {
        match self {
            CredentialSource::Keys(keys) => Ok(keys.clone()),
            CredentialSource::Environment => from_environment(env).ok_or(CredentialError::NotInEnvironment),
            CredentialSource::File { path, profile } => {
                let path = path.clone().unwrap_or_else(|| usual_file(env));
                let profile = profile.clone().or_else(|| env("AWS_PROFILE"));
                from_file(&path, profile.as_deref().unwrap_or("default"))
            }
            CredentialSource::Usual => {
                if let Some(keys) = from_environment(env) {
                    return Ok(keys);
                }
                let path = usual_file(env);
                if !path.exists() {
                    return Err(CredentialError::Nowhere { path: path.display().to_string() });
                }
                from_file(&path, env("AWS_PROFILE").as_deref().unwrap_or("default"))
            }
        }
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialSource::Keys(keys) => f.debug_tuple("Keys").field(keys).finish(),
            CredentialSource::Environment => f.write_str("Environment"),
            CredentialSource::File { path, profile } => {
                f.debug_struct("File").field("path", path).field("profile", profile).finish()
            }
            CredentialSource::Usual => f.write_str("Usual"),
        }
    }
}

impl Keys {
    /// Enough of the access key to recognise it: its first four characters.
    #[must_use]
    pub fn hint(&self) -> String {
        format!("{}…", self.access_key.chars().take(4).collect::<String>())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("access_key", &self.hint()).finish_non_exhaustive()
    }
}

fn from_environment(env: &dyn Fn(&str) -> Option<String>) -> Option<Keys> {
    Some(Keys {
        access_key: env("AWS_ACCESS_KEY_ID")?,
        secret_key: env("AWS_SECRET_ACCESS_KEY")?,
        session_token: env("AWS_SESSION_TOKEN"),
    })
}

fn usual_file(env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match env("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env("HOME").unwrap_or_else(|| "/".to_owned())).join(".aws/credentials"),
    }
}

fn from_file(path: &Path, profile: &str) -> Result<Keys, CredentialError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CredentialError::Unreadable { path: path.display().to_string(), reason: error.to_string() })?;
    let value = |key: &str| value(&text, profile, key);
    let incomplete = |missing| CredentialError::Incomplete {
        path: path.display().to_string(),
        profile: profile.to_owned(),
        missing,
    };
    Ok(Keys {
        access_key: value("aws_access_key_id").ok_or_else(|| incomplete("aws_access_key_id"))?,
        secret_key: value("aws_secret_access_key").ok_or_else(|| incomplete("aws_secret_access_key"))?,
        session_token: value("aws_session_token"),
    })
}

/// `key = value` of `[section]`; comments are lines that start with `#` or `;`.
fn value(text: &str, section: &str, key: &str) -> Option<String> {
    let mut inside = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside)
            && name.trim() == key
            && !value.trim().is_empty()
        {
            return Some(value.trim().to_owned());
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILE: &str = "[default]\n# a comment\naws_access_key_id = AK1\naws_secret_access_key=a=b\n\n\
                        [other]\naws_access_key_id=AK2\n aws_secret_access_key = S2 \naws_session_token = T2\n[half]\naws_access_key_id=AK3\n";

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_usual_places_are_the_environment_then_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).unwrap();
        let file = path.to_str().unwrap();
        let load = |pairs: &[(&str, &str)]| CredentialSource::Usual.load_with(&env(pairs));

        let keys = load(&[("AWS_SHARED_CREDENTIALS_FILE", file)]).unwrap();
        assert_eq!((keys.access_key.as_str(), keys.secret_key.as_str()), ("AK1", "a=b"));
        let keys = load(&[("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "other")]).unwrap();
        assert_eq!((keys.secret_key.as_str(), keys.session_token.as_deref()), ("S2", Some("T2")));
        let both = [("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "S")];
        assert_eq!(load(&both).unwrap().access_key, "E");
        let half = load(&[("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "half")]).unwrap_err();
        assert!(half.to_string().contains("[half] has no aws_secret_access_key"), "{half}");
        assert!(matches!(load(&[("HOME", "/nonexistent")]), Err(CredentialError::Nowhere { .. })));
    }

    #[test]
    fn secrets_are_never_printed() {
        let keys = Keys {
            access_key: "AKIAEXAMPLE".into(),
            secret_key: "verysecret".into(),
            session_token: Some("sessiontoken".into()),
        };
        let printed = format!("{:?} {:?}", CredentialSource::Keys(keys.clone()), keys);
        assert!(printed.contains("AKIA…") && !printed.contains("verysecret"), "{printed}");
        assert!(!printed.contains("sessiontoken") && !printed.contains("EXAMPLE"), "{printed}");
    }
}
