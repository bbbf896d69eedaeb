//! A client of the admin's interface, for commands: one request at a time, errors in the admin's own words.
//!
//! Called by `control` and its parts. Where the admin is: flags, then `FOREBAY_ADMIN`, `FOREBAY_TOKEN`, `FOREBAY_TOKEN_FILE`,
//! `FOREBAY_CA`, then `~/.config/forebay/client.toml`. The token is taken from the environment or a file only, and never printed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::header::{ETAG, IF_MATCH};
use reqwest::{Certificate, Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::cli::client_file::ClientFile;
use crate::config::ConfigError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the longest wait for a change.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Where the admin is.
#[derive(Debug, Args)]
pub struct Connection {
    /// The admin's URL, https://….
    #[arg(long, env = "FOREBAY_ADMIN", value_name = "URL", global = true)]
    admin: Option<String>,
    /// A file that holds a token and nothing else; or the token in `FOREBAY_TOKEN`.
    #[arg(long, env = "FOREBAY_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// PEM file of the certificate authority to trust, instead of the system's.
    #[arg(long, env = "FOREBAY_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

/// What was found at a path.
#[derive(Debug)]
pub struct Found {
    /// The record, or whatever it is.
    pub body: Value,
    /// For `If-Match`.
    pub etag: Option<String>,
}

/// The admin, as a command sees it.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// Sets up a client; asks nothing yet.
    ///
    /// # Errors
    /// A setting is missing or can't be read: a [`ConfigError`] that names it.
    pub fn new(connection: &Connection) -> anyhow::Result<Client> {
        let file = ClientFile::read()?;
        let admin = connection.admin.clone().or(file.admin);
        let admin = admin
            .ok_or_else(|| ConfigError::new("--admin", "is missing: give the admin's URL, or set FOREBAY_ADMIN"))?;
        let is_usable = |url: &Url| url.scheme() == "https" && url.has_host();
        let base = Url::parse(&admin).ok().filter(is_usable);
        let base = base.ok_or_else(|| ConfigError::new("--admin", format!("{admin:?} is no https:// URL")))?;
        let token = token(connection.token_file.as_deref().or(file.token_file.as_deref()))?;
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT);
        if let Some(path) = connection.ca.as_deref().or(file.ca.as_deref()) {
            let bad = |what: String| ConfigError::new("--ca", format!("{}: {what}: name a PEM file", path.display()));
            let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| bad(error.to_string()))?;
            builder = builder.tls_certs_only(certificates);
        }
        if matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            // HTTPS_PROXY is for the world outside.
            builder = builder.no_proxy();
        }
        let http = builder.build().context("a client for HTTPS")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { http, base, token, runtime })
    }

    /// Reads what is at `path`.
    ///
    /// # Errors
    /// What the admin says, or why it can't be asked.
    pub fn fetch(&self, path: &str) -> anyhow::Result<Found> {
        let (body, etag) = self.send(self.request(Method::GET, path)?)?;
        Ok(Found { body: json(&body)?, etag })
    }

    /// Makes something.
    ///
    /// # Errors
    /// What the admin says, or why it can't be asked.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.request(Method::POST, path)?.body(body.to_string());
        json(&self.send(request)?.0)
    }

    /// Replaces what was seen with `etag`.
    ///
    /// # Errors
    /// What the admin says, or why it can't be asked.
    pub fn put(&self, path: &str, etag: Option<&str>, body: &Value) -> anyhow::Result<Value> {
        let request = self.request(Method::PUT, path)?.body(body.to_string());
        json(&self.send(guarded(request, etag))?.0)
    }

    /// Ends what was seen with `etag`. Returns what the admin says of it, if anything.
    ///
    /// # Errors
    /// What the admin says, or why it can't be asked.
    pub fn delete(&self, path: &str, etag: Option<&str>) -> anyhow::Result<Value> {
        json(&self.send(guarded(self.request(Method::DELETE, path)?, etag))?.0)
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        let url = self.base.join(path).with_context(|| format!("{path} is no path"))?;
        Ok(self.http.request(method, url).bearer_auth(&self.token))
    }

    /// The answer's body and ETag; a problem becomes an error in its own words.
    fn send(&self, request: RequestBuilder) -> anyhow::Result<(Vec<u8>, Option<String>)> {
        self.runtime.block_on(async {
            let admin = &self.base;
            let mut response =
                request.send().await.with_context(|| format!("{admin} can't be asked: check --admin and --ca"))?;
            let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
            let mut body = Vec::new();
            while let Some(bytes) = response.chunk().await.with_context(|| format!("{admin} broke off its answer"))? {
                anyhow::ensure!(
                    body.len() + bytes.len() <= ANSWER_BYTES_MAX,
                    "{admin} answers more than {ANSWER_BYTES_MAX} bytes"
                );
                body.extend_from_slice(&bytes);
            }
            let status = response.status();
            if status.is_success() || status == StatusCode::NOT_MODIFIED {
                return Ok((body, etag));
            }
            let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
            match problem["detail"].as_str() {
                Some(detail) => bail!("{} ({})", detail, problem["title"].as_str().unwrap_or("no title")),
                None => bail!("{admin} answers {status}: is it a Forebay admin?"),
            }
        })
    }
}

fn guarded(request: RequestBuilder, etag: Option<&str>) -> RequestBuilder {
    match etag {
        Some(etag) => request.header(IF_MATCH, etag),
        None => request,
    }
}

fn json(body: &[u8]) -> anyhow::Result<Value> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).context("the admin's answer is no JSON")
}

/// The token from the environment, else from a file.
fn token(file: Option<&Path>) -> anyhow::Result<String> {
    let token = match (std::env::var("FOREBAY_TOKEN"), file) {
        (Ok(token), _) if !token.trim().is_empty() => token,
        (_, Some(file)) => std::fs::read_to_string(file)
            .map_err(|error| ConfigError::new("--token-file", format!("{}: {error}", file.display())))?,
        _ => {
            let fix = "is missing: name a file that holds a token, or set FOREBAY_TOKEN";
            return Err(ConfigError::new("--token-file", fix).into());
        }
    };
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        // What it is instead is not said: it may be another secret.
        return Err(
            ConfigError::new("--token-file", "holds no token: one line, as `forebay admin token` prints it").into()
        );
    }
    Ok(token.to_owned())
}
