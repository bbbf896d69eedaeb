//! Asking the admin over HTTPS: one question, one answer, each within a deadline.
//!
//! Called by `follow`. The admin's certificate is verified against the configured authority, or the system's; there is no way around that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::IF_NONE_MATCH;
use reqwest::{Certificate, Client, ClientBuilder, Url};
use serde::Deserialize;

use super::bearer::Bearer;
use super::{Answer, AskError, Asking};
use crate::resource::Revision;
use crate::routing::ROUTING_BYTES_MAX;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For an answer that needs no waiting, and beyond the wait of one that does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const PROBLEM_BYTES_MAX: usize = 16 << 10;

/// Why HTTPS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The `ca` file.
    #[error("{path}: {reason}: name a PEM file of certificates")]
    Ca {
        /// As configured.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The URL.
    #[error("{0:?} is no https:// URL of an admin")]
    Url(String),
    /// The HTTP client.
    #[error("HTTPS can't be set up: {0}")]
    Http(String),
}

/// One document of one admin.
#[derive(Debug)]
pub struct Admin {
    http: Client,
    url: Url,
    bearer: Arc<Bearer>,
}

impl Admin {
    /// The document at `path` of the admin at `base`.
    ///
    /// # Errors
    /// What keeps it from being asked at all.
    pub fn new(base: &str, path: &str, bearer: Arc<Bearer>, ca: Option<&Path>) -> Result<Admin, SetupError> {
        let bad = || SetupError::Url(base.to_owned());
        let base = Url::parse(base).ok().filter(|url| url.scheme() == "https" && url.has_host()).ok_or_else(bad)?;
        let url = base.join(path).map_err(|_| bad())?;
        let http = builder(ca, &base)?.build().map_err(|error| SetupError::Http(error.to_string()))?;
        Ok(Admin { http, url, bearer })
    }

    /// Where the document is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    async fn request(&self, since: Option<Revision>, wait: Duration) -> Result<Answer, AskError> {
        let mut url = self.url.clone();
        let mut request = {
            let mut query = url.query_pairs_mut();
            if let Some(since) = since {
                query.append_pair("since", &since.to_string());
            }
            if !wait.is_zero() {
                query.append_pair("wait", &format!("{}ms", wait.as_millis()));
            }
            drop(query);
            self.http.get(url)
        };
        if let Some(since) = since {
            request = request.header(IF_NONE_MATCH, format!("\"{since}\""));
        }
        let response = request.bearer_auth(self.bearer.token()).send().await.map_err(unreachable)?;
        let status = response.status();
        match status {
            StatusCode::OK => {
                let body = read(response, ROUTING_BYTES_MAX).await?;
                Ok(Answer::Document(
                    String::from_utf8(body).map_err(|_| AskError::Refused("it is no text".to_owned()))?,
                ))
            }
            StatusCode::NOT_MODIFIED => Ok(Answer::Same),
            status => {
                let body = read(response, PROBLEM_BYTES_MAX).await.unwrap_or_default();
                let words = format!("{status}{}", problem_words(&body));
                let is_passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                Err(if is_passing { AskError::Unreachable(words) } else { AskError::Refused(words) })
            }
        }
    }
}

impl Asking for Admin {
    async fn ask(&self, since: Option<Revision>, wait: Duration) -> Result<Answer, AskError> {
        match tokio::time::timeout(wait + ANSWER_TIMEOUT, self.request(since, wait)).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Unreachable(format!("no answer within {:?}", wait + ANSWER_TIMEOUT))),
        }
    }
}

/// Tells the admin something: puts JSON to its paths with the follower's own token, and waits for the answer. What fails is tried again by the
/// caller, which has a thread for it.
pub struct Reporter {
    runtime: tokio::runtime::Runtime,
    http: Client,
    base: Url,
    bearer: Arc<Bearer>,
}

/// It was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotTaken(String);

impl Reporter {
    /// To the admin that `settings` name.
    ///
    /// # Errors
    /// HTTPS can't be set up.
    pub fn new(settings: &super::FollowSettings) -> Result<Reporter, SetupError> {
        let base = Url::parse(&settings.admin).map_err(|_| SetupError::Url(settings.admin.clone()))?;
        let fail = |error: &dyn std::fmt::Display| SetupError::Http(error.to_string());
        let runtime: std::io::Result<_> = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| fail(&error))?;
        let builder = builder(settings.ca.as_deref(), &base)?.timeout(ANSWER_TIMEOUT);
        let http = builder.build().map_err(|error| fail(&error))?;
        Ok(Reporter { runtime, http, base, bearer: Arc::clone(&settings.bearer) })
    }

    /// Puts `body`, JSON, to `path`.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn put(&self, path: &str, body: String) -> Result<(), NotTaken> {
        let url = self.base.join(path).map_err(|_| NotTaken(format!("{path} makes no URL")))?;
        let request = self.http.put(url).bearer_auth(self.bearer.token()).body(body);
        // Within the runtime from its first step: it sets timers.
        let answered = self.runtime.block_on(async { request.send().await });
        let answer = answered.map_err(|error| NotTaken(words(&error.without_url())))?;
        if answer.status().is_success() { Ok(()) } else { Err(NotTaken(answer.status().to_string())) }
    }
}

/// A client of an admin: HTTPS only, trusting `ca` alone if it is given.
///
/// # Errors
/// The `ca` file.
pub fn builder(ca: Option<&Path>, base: &Url) -> Result<ClientBuilder, SetupError> {
    let mut builder = Client::builder()
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(15));
    if let Some(path) = ca {
        builder = builder.tls_certs_only(certificates(path)?);
    }
    if matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
        // HTTPS_PROXY is for the world outside.
        builder = builder.no_proxy();
    }
    Ok(builder)
}

/// The certificates of a PEM file.
///
/// # Errors
/// It can't be read, or holds none.
pub fn certificates(path: &Path) -> Result<Vec<Certificate>, SetupError> {
    let fail = |reason: String| SetupError::Ca { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| fail(error.to_string()))?;
    if certificates.is_empty() { Err(fail("there is no certificate in it".to_owned())) } else { Ok(certificates) }
}

async fn read(mut response: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, AskError> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(unreachable)? {
        if body.len() + bytes.len() > bytes_max {
            return Err(AskError::Refused(format!("it has more than {bytes_max} bytes")));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

fn unreachable(error: reqwest::Error) -> AskError {
    AskError::Unreachable(words(&error.without_url()))
}

/// An error and what is behind it.
pub fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !words.ends_with(&more) {
            words = format!("{words}: {more}");
        }
        source = error.source();
    }
    words
}

/// What a problem document (RFC 9457) says, as the end of a sentence.
fn problem_words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        title: String,
        #[serde(default)]
        detail: String,
    }
    match serde_json::from_slice::<Said>(body) {
        Ok(said) if said.detail.is_empty() => format!(": {}", said.title),
        Ok(said) => format!(": {}: {}", said.title, said.detail),
        Err(_) => String::new(),
    }
}
