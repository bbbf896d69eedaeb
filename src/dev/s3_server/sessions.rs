//! Session credentials of the S3 server: STS's AssumeRole on the same port, and the gate that holds sessions to their policies.
//!
//! s3s verifies every signature by the secret that is told here; then the gate asks whose access key it was. The server's own key may do everything. A session's must
//! come with its token, before its end, for what its policy allows: else 403. Sessions are kept in memory only: a server that starts anew knows none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::{Extensions, HeaderMap, Method, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::path::S3Path;
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};
use url::form_urlencoded;

use super::policy::Policy;

/// The one role that can be assumed.
pub const ROLE: &str = "arn:aws:iam::000000000000:role/forebay-dev";

const SESSIONS_MAX: usize = 10_000;
const FORM_BYTES_MAX: usize = 16 << 10;
/// As long as STS gives the longest session.
const SECONDS_MAX: u64 = 43_200;

/// Who may do what.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    access_key: String,
    secret_key: SecretKey,
    sessions: Mutex<HashMap<String, Session>>,
}

#[derive(Clone)]
struct Session {
    secret_key: String,
    token: String,
    ends: SystemTime,
    policy: Policy,
}

impl Sessions {
    /// With the server's own key.
    pub fn new(access_key: &str, secret_key: &str) -> Sessions {
        let secret_key = SecretKey::from(secret_key);
        Sessions(Arc::new(Inner { access_key: access_key.to_owned(), secret_key, sessions: Mutex::default() }))
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether whoever has `access_key` may list all of `bucket`; who may not is not told that an object is absent.
    pub fn may_list(&self, access_key: &str, bucket: &str) -> bool {
        let resource = format!("arn:aws:s3:::{bucket}");
        let may = |session: &Session| session.policy.allows("s3:ListBucket", &resource, None);
        access_key == self.0.access_key || self.sessions().get(access_key).is_some_and(may)
    }

    /// A new session as the answer's XML tells it.
    fn assume(&self, form: &HashMap<String, String>) -> S3Result<String> {
        let asked = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if asked("Action") != "AssumeRole" || asked("RoleSessionName").is_empty() {
            return Err(s3_error!(InvalidArgument, "ask for Action=AssumeRole, with a RoleSessionName"));
        }
        if asked("RoleArn") != ROLE {
            return Err(s3_error!(AccessDenied, "no such role: there is {ROLE}"));
        }
        let seconds = asked("DurationSeconds").parse().ok().filter(|seconds| (1..=SECONDS_MAX).contains(seconds));
        let seconds = seconds.ok_or_else(|| s3_error!(InvalidArgument, "DurationSeconds: write 1 to 43200"))?;
        let policy = Policy::parse(asked("Policy")).map_err(|words| s3_error!(MalformedPolicy, "Policy: {words}"))?;
        let mut rng = StdRng::from_os_rng();
        let mut secret = || format!("{:032x}{:032x}", rng.random::<u128>(), rng.random::<u128>());
        let (secret_key, token) = (secret(), secret());
        let access_key = format!("SESSION{:016X}", rng.random::<u64>());
        let ends = SystemTime::now() + Duration::from_secs(seconds);
        let mut expiration = Vec::new();
        Timestamp::from(ends)
            .format(TimestampFormat::DateTime, &mut expiration)
            .map_err(s3s::S3Error::internal_error)?;
        let expiration = String::from_utf8_lossy(&expiration);
        let answer = format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
             <AccessKeyId>{access_key}</AccessKeyId><SecretAccessKey>{secret_key}</SecretAccessKey>\
             <SessionToken>{token}</SessionToken><Expiration>{expiration}</Expiration>\
             </Credentials></AssumeRoleResult></AssumeRoleResponse>"
        );
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.ends > SystemTime::now());
        if sessions.len() >= SESSIONS_MAX {
            return Err(s3_error!(SlowDown, "there are too many sessions"));
        }
        sessions.insert(access_key, Session { secret_key, token, ends, policy });
        Ok(answer)
    }

    /// Whether a signed request of a session may go on.
    fn check_session(&self, access_key: &str, cx: &S3AccessContext<'_>) -> S3Result<()> {
        let session = self.sessions().get(access_key).cloned();
        let session = session.ok_or_else(|| s3_error!(InvalidAccessKeyId))?;
        let query: HashMap<String, String> =
            form_urlencoded::parse(cx.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        let in_headers = cx.headers().get("x-amz-security-token").and_then(|value| value.to_str().ok());
        let token = in_headers.or_else(|| query.get("X-Amz-Security-Token").map(String::as_str));
        if token != Some(&*session.token) {
            return Err(s3_error!(InvalidToken));
        }
        if SystemTime::now() >= session.ends {
            return Err(s3_error!(ExpiredToken));
        }
        let action = match cx.s3_op().name() {
            "GetObject" | "HeadObject" => "s3:GetObject",
            "PutObject" => "s3:PutObject",
            "DeleteObject" => "s3:DeleteObject",
            "ListObjects" | "ListObjectsV2" => "s3:ListBucket",
            other => return Err(s3_error!(AccessDenied, "a session may not {other}")),
        };
        let resource = match cx.s3_path() {
            S3Path::Root => return Err(s3_error!(AccessDenied)),
            S3Path::Bucket { bucket } => format!("arn:aws:s3:::{bucket}"),
            S3Path::Object { bucket, key } => format!("arn:aws:s3:::{bucket}/{key}"),
        };
        match session.policy.allows(action, &resource, query.get("prefix").map(String::as_str)) {
            true => Ok(()),
            false => Err(s3_error!(AccessDenied, "the session's policy does not allow {action} on {resource}")),
        }
    }
}

#[async_trait::async_trait]
impl S3Auth for Sessions {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.0.access_key {
            return Ok(self.0.secret_key.clone());
        }
        match self.sessions().get(access_key) {
            Some(session) => Ok(SecretKey::from(session.secret_key.as_str())),
            None => Err(s3_error!(InvalidAccessKeyId)),
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Sessions {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = cx.credentials() else { return Err(s3_error!(AccessDenied, "Signature is required")) };
        if credentials.access_key == self.0.access_key {
            return Ok(());
        }
        let access_key = credentials.access_key.clone();
        self.check_session(&access_key, cx)
    }
}

#[async_trait::async_trait]
impl S3Route for Sessions {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        method == Method::POST && uri.path() == "/" && kind.starts_with("application/x-www-form-urlencoded")
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        // A session makes no sessions, and no signature for another service counts.
        let is_own = request.credentials.as_ref().is_some_and(|known| known.access_key == self.0.access_key);
        let is_sts = request.service.as_deref() == Some("sts");
        if is_own && is_sts { Ok(()) } else { Err(s3_error!(AccessDenied, "sign by the server's own key, for sts")) }
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let form = Limited::new(request.input, FORM_BYTES_MAX).collect().await;
        let form = form.map_err(|_| s3_error!(InvalidArgument, "the form is too long, or was not sent whole"))?;
        let form = form_urlencoded::parse(&form.to_bytes()).into_owned().collect();
        let mut answer = S3Response::new(Body::from(self.assume(&form)?));
        answer.headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/xml"));
        Ok(answer)
    }
}
