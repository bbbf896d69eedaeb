//! Signed URLs (SigV4 in the query string): the only file that knows rusty-s3.
//!
//! Every `x-amz-*` header and every condition is part of the signature, so nothing between us and the store can add,
//! drop or change one; the body of a PUT is covered by its signed `x-amz-checksum-crc32c`. A URL is a capability for
//! fifteen minutes: it is never logged, and errors of the HTTP client are stripped of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use rusty_s3::actions::{GetObject, HeadObject, PutObject};
use rusty_s3::{Bucket, BucketError, Credentials, S3Action, UrlStyle};
use url::Url;

use super::credentials::{CredentialError, CredentialSource, Keys};
use super::settings::{AddressStyle, StoreSettings};

/// How long a signature is good: as long as S3 tolerates a clock to be off.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(900);

/// A header that is sent and signed; the name in lower case.
pub type SignedHeader = (&'static str, String);

/// What is asked of an object or, for a list, of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Fetch.
    Get,
    /// Ask about.
    Head,
    /// Store.
    Put,
    /// Delete.
    Delete,
    /// List keys: the check of a store, and the client's `ls`.
    List,
}

impl Verb {
    /// The method of its request.
    #[must_use]
    pub fn method(self) -> Method {
        match self {
            Verb::Get | Verb::List => Method::GET,
            Verb::Head => Method::HEAD,
            Verb::Put => Method::PUT,
            Verb::Delete => Method::DELETE,
        }
    }
}

/// Signs requests of one store.
pub struct Signer {
    bucket: Bucket,
    source: CredentialSource,
    keys: Mutex<Arc<Loaded>>,
}

/// Keys and what rusty-s3 makes of them.
struct Loaded {
    keys: Keys,
    credentials: Credentials,
}

/// A store that can't be addressed, and the key to fix.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The endpoint is no URL.
    #[error("`endpoint = \"{endpoint}\"` is not a URL ({reason}): write http:// or https://, the host and the port")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// No credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

impl Signer {
    /// Reads the credentials and checks the endpoint.
    ///
    /// # Errors
    /// [`SignerError`] names what to change.
    pub fn new(settings: &StoreSettings) -> Result<Signer, SignerError> {
        let endpoint_error = |reason: String| SignerError::Endpoint { endpoint: settings.endpoint.clone(), reason };
        let endpoint: Url =
            settings.endpoint.parse().map_err(|error: url::ParseError| endpoint_error(error.to_string()))?;
        let style = match settings.style {
            AddressStyle::Path => UrlStyle::Path,
            AddressStyle::VirtualHost => UrlStyle::VirtualHost,
        };
        let bucket = Bucket::new(endpoint, style, settings.bucket.clone(), settings.region.clone())
            .map_err(|error: BucketError| endpoint_error(error.to_string()))?;
        let keys = Mutex::new(Arc::new(Loaded::new(settings.credentials.load()?)));
        Ok(Signer { bucket, source: settings.credentials.clone(), keys })
    }

    /// The signed URL of one request about the object `name`; for [`Verb::List`] `name` is a prefix.
    pub fn url(&self, verb: Verb, name: &str, headers: &[SignedHeader]) -> Url {
        assert!(verb == Verb::List || !name.is_empty(), "an empty name would address the bucket");
        let loaded = self.loaded();
        let credentials = Some(&loaded.credentials);
        match verb {
            Verb::Get => signed(GetObject::new(&self.bucket, credentials, name), headers),
            Verb::Head => signed(HeadObject::new(&self.bucket, credentials, name), headers),
            Verb::Put => signed(PutObject::new(&self.bucket, credentials, name), headers),
            Verb::Delete => signed(self.bucket.delete_object(credentials, name), headers),
            Verb::List => {
                let mut list = GetObject::new(&self.bucket, credentials, "");
                list.query_mut().insert("list-type", "2");
                list.query_mut().insert("max-keys", "1");
                list.query_mut().insert("prefix", name);
                signed(list, headers)
            }
        }
    }

    /// The signed URL of a list: objects under `prefix`, from where the last answer left off.
    pub fn list_url(&self, prefix: &str, count_max: u32, continuation: Option<&str>) -> Url {
        let loaded = self.loaded();
        let mut list = GetObject::new(&self.bucket, Some(&loaded.credentials), "");
        let count_max = count_max.to_string();
        list.query_mut().insert("list-type", "2");
        list.query_mut().insert("max-keys", count_max.as_str());
        list.query_mut().insert("prefix", prefix);
        list.query_mut().insert("encoding-type", "url");
        if let Some(continuation) = continuation {
            list.query_mut().insert("continuation-token", continuation);
        }
        list.sign(SIGNATURE_LIFETIME)
    }

    /// Enough of the access key to recognise it.
    pub fn key_hint(&self) -> String {
        self.loaded().keys.hint()
    }

    /// Reads the credentials again; whether they changed. Called when the store says they expired.
    pub fn reload(&self) -> bool {
        let Ok(keys) = self.source.load() else { return false };
        let mut current = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = current.keys != keys;
        if changed {
            *current = Arc::new(Loaded::new(keys));
        }
        changed
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Loaded {
    fn new(keys: Keys) -> Loaded {
        let credentials = match &keys.session_token {
            Some(token) => Credentials::new_with_token(&keys.access_key, &keys.secret_key, token),
            None => Credentials::new(&keys.access_key, &keys.secret_key),
        };
        Loaded { keys, credentials }
    }
}

fn signed<'a>(mut action: impl S3Action<'a>, headers: &'a [SignedHeader]) -> Url {
    for (name, value) in headers {
        action.headers_mut().insert(*name, value.as_str());
    }
    action.sign(SIGNATURE_LIFETIME)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn signer(style: AddressStyle, endpoint: &str) -> Result<Signer, SignerError> {
        let keys = Keys { access_key: "AK".into(), secret_key: "SK".into(), session_token: Some("T".into()) };
        let mut settings = StoreSettings::new("s", endpoint, "eu-1", "bucket", CredentialSource::Keys(keys));
        settings.style = style;
        Signer::new(&settings)
    }

    #[test]
    fn keys_stand_percent_encoded_in_the_path() {
        let signer = signer(AddressStyle::Path, "http://127.0.0.1:9000/base").unwrap();
        let path = |name: &str| signer.url(Verb::Get, name, &[]).path().to_owned();
        assert_eq!(path("a b+c%?#ü"), "/base/bucket/a%20b%2Bc%25%3F%23%C3%BC");
        assert_eq!(path("//a//"), "/base/bucket///a//");
        assert_eq!(path("%2E%2E/x"), "/base/bucket/%252E%252E/x");
        assert_eq!(path("..."), "/base/bucket/...");
    }

    #[test]
    fn the_bucket_is_in_the_host_if_asked() {
        let signer = signer(AddressStyle::VirtualHost, "https://s3.example.com").unwrap();
        let url = signer.url(Verb::Put, "k", &[("if-none-match", "*".into())]);
        assert_eq!((url.host_str(), url.path()), (Some("bucket.s3.example.com"), "/k"));
        assert!(url.query().unwrap().contains("X-Amz-SignedHeaders=host%3Bif-none-match"), "{url}");
        assert!(url.query().unwrap().contains("X-Amz-Security-Token=T"), "{url}");
    }

    #[test]
    fn a_bad_endpoint_is_named() {
        for endpoint in ["nonsense", "ftp://x", ""] {
            let error = signer(AddressStyle::Path, endpoint).err().unwrap().to_string();
            assert!(error.contains("endpoint") && error.contains(endpoint), "{error}");
        }
    }
}
