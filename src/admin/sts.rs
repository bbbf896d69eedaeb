//! Asking a store's STS for session credentials: AssumeRole with a policy that narrows the role to one volume.
//!
//! Called by `api/sessions`. A form by POST, signed by SigV4 with the keys that the store's record refers to. Nothing that is secret is logged or part of an error.
//! Source: AWS, "AssumeRole" (STS API 2011-06-15) and "Create a signed AWS API request".

use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::origin::Keys;
use crate::routing::session::SessionCredentials;
use crate::token::Right;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 << 10;
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// The longest name of a session, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A session to ask for.
pub struct Wish<'a> {
    /// The service's URL.
    pub endpoint: &'a str,
    /// What requests are signed for.
    pub region: &'a str,
    /// The role's ARN.
    pub role: &'a str,
    /// How long.
    pub seconds: u32,
    /// For the store's own logs: to whom.
    pub name: &'a str,
    /// What the role is narrowed to.
    pub policy: &'a Value,
    /// What that amounts to.
    pub right: Right,
}

/// The HTTP clients, made when they are needed.
#[derive(Default)]
pub struct Sts {
    plain: OnceLock<Client>,
    tls: OnceLock<Client>,
}

impl Sts {
    /// Has a session made; `now` in unix seconds.
    ///
    /// # Errors
    /// In words: it can't be reached, or refuses.
    pub async fn assume(&self, wish: &Wish<'_>, keys: &Keys, now: u64) -> Result<SessionCredentials, String> {
        let url = Url::parse(wish.endpoint).map_err(|error| format!("the STS's URL: {error}"))?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "AssumeRole")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", wish.role)
            .append_pair("RoleSessionName", &session_name(wish.name))
            .append_pair("DurationSeconds", &wish.seconds.to_string())
            .append_pair("Policy", &wish.policy.to_string())
            .finish();
        let mut request = self.client(&url)?.post(url.clone()).header("content-type", FORM);
        for (name, value) in signed(&url, wish.region, keys, &form, now) {
            request = request.header(name, value);
        }
        let fail = |error: reqwest::Error| {
            let error = error.without_url();
            format!("the STS can't be reached: {}", crate::follow::https::words(&error))
        };
        let mut answer = request.body(form).send().await.map_err(fail)?;
        let (status, mut body) = (answer.status(), Vec::new());
        while let Some(bytes) = answer.chunk().await.map_err(fail)? {
            body.extend_from_slice(&bytes);
            if body.len() > ANSWER_BYTES_MAX {
                return Err("the STS's answer is too long".to_owned());
            }
        }
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            return Err(format!("the STS answers {status}{}", refusal(&text)));
        }
        let answer: Answer =
            quick_xml::de::from_str(&text).map_err(|_| "the STS's answer makes no sense".to_owned())?;
        let given = answer.assume_role_result.credentials;
        let expires_at = unix_seconds(&given.expiration).ok_or("the STS's answer has no Expiration")?;
        if expires_at <= now {
            return Err("the STS gives a session that has ended: is this machine's clock right?".to_owned());
        }
        Ok(SessionCredentials {
            access_key: given.access_key_id,
            secret_key: given.secret_access_key,
            session_token: given.session_token,
            expires_at,
            lasts_seconds: expires_at.saturating_sub(now),
            right: wish.right,
        })
    }

    fn client(&self, url: &Url) -> Result<Client, String> {
        let is_plain = url.scheme() == "http";
        let kept = if is_plain { &self.plain } else { &self.tls };
        if let Some(client) = kept.get() {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT);
        if is_plain {
            // No TLS will be spoken, and no proxy is to see the answer.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build().map_err(|error| format!("an HTTP client: {error}"))?;
        Ok(kept.get_or_init(|| client).clone())
    }
}

/// The policy for the objects of `bucket` whose names begin with `prefix`.
#[must_use]
pub fn policy(bucket: &str, prefix: &str, right: Right, deletes: Deletes) -> Value {
    let mut actions = vec!["s3:GetObject"];
    if right == Right::ReadWrite {
        actions.push("s3:PutObject");
        if deletes == Deletes::Allowed {
            actions.push("s3:DeleteObject");
        }
    }
    let prefix = escaped(prefix);
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": format!("arn:aws:s3:::{bucket}/{prefix}*")},
            {
                "Effect": "Allow", "Action": "s3:ListBucket", "Resource": format!("arn:aws:s3:::{bucket}"),
                "Condition": {"StringLike": {"s3:prefix": format!("{prefix}*")}},
            },
        ],
    })
}

/// Whether a session that writes deletes, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletes {
    /// It does.
    Allowed,
    /// It does not: a member's dirty block would come back.
    Refused,
}

/// As policies write what is no wildcard.
fn escaped(prefix: &str) -> String {
    let mut text = String::new();
    for c in prefix.chars() {
        match c {
            '*' | '?' | '$' => text.extend(['$', '{', c, '}']),
            other => text.push(other),
        }
    }
    text
}

/// What is left of a subject where the STS takes no other characters.
fn session_name(subject: &str) -> String {
    let lawful = |c: char| if c.is_ascii_alphanumeric() || "+=,.@_-".contains(c) { c } else { '-' };
    let name: String = subject.chars().map(lawful).take(NAME_BYTES_MAX - "forebay-".len()).collect();
    format!("forebay-{name}")
}

/// The headers that sign a POST of `form` to `url`.
fn signed(url: &Url, region: &str, keys: &Keys, form: &str, now: u64) -> Vec<(&'static str, String)> {
    let time = basic_time(now);
    let day = time[..8].to_owned();
    let host = match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let mut headers = vec![("content-type", FORM.to_owned()), ("host", host), ("x-amz-date", time.clone())];
    headers.extend(keys.session_token.clone().map(|token| ("x-amz-security-token", token)));
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let query = url.query().unwrap_or_default();
    let canonical =
        format!("POST\n{}\n{query}\n{lines}\n{names}\n{}", url.path(), hex(digest(&SHA256, form.as_bytes()).as_ref()));
    let scope = format!("{day}/{region}/sts/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let mut key = format!("AWS4{}", keys.secret_key).into_bytes();
    for part in [&*day, region, "sts", "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &to_sign));
    let credential = format!("{}/{scope}", keys.access_key);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
    // The HTTP client says content type and host itself.
    headers.retain(|(name, _)| name.starts_with("x-amz-"));
    headers.push(("authorization", authorization));
    headers
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Unix seconds as `20260131T235959Z`. Source of the calendar: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn basic_time(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

/// `2026-01-31T23:59:59Z`, perhaps with a fraction, in unix seconds.
fn unix_seconds(text: &str) -> Option<u64> {
    let text = text.trim().strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let numbers = |text: &str, separator: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(separator).map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.split('.').next()?, ':')?;
    let is_day = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_day || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    assume_role_result: Assumed,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assumed {
    credentials: Given,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: String,
}

/// Code and message of an STS's `ErrorResponse`, or of an S3 service's `Error`.
fn refusal(text: &str) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Said {
        code: String,
        message: String,
        error: Option<Box<Said>>,
    }
    let said: Said = quick_xml::de::from_str(text).unwrap_or_default();
    let said = said.error.map_or((said.code, said.message), |error| (error.code, error.message));
    match said {
        (code, _) if code.is_empty() => String::new(),
        (code, message) => format!(" {code}: {message}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        for (seconds, basic, extended) in [
            (0, "19700101T000000Z", "1970-01-01T00:00:00Z"),
            (951_782_400, "20000229T000000Z", "2000-02-29T00:00:00.000Z"),
            (1_795_418_999, "20261123T072959Z", "2026-11-23T07:29:59Z"),
            (4_107_542_399, "21000228T235959Z", "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!((basic_time(seconds).as_str(), unix_seconds(extended)), (basic, Some(seconds)));
        }
        let far = format!("2026-01-01T00:{}:00Z", u64::MAX);
        for bad in ["", "2026-01-01", "2026-13-01T00:00:00Z", "1969-12-31T00:00:00Z", "2026-01-01T00:00:00+01:00", &far]
        {
            assert_eq!(unix_seconds(bad), None, "{bad}");
        }
    }

    /// The example of "Create a signed AWS API request": a signing key for the day and service.
    #[test]
    fn a_signing_key_is_derived_as_in_the_example() {
        let mut key = b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec();
        for part in ["20120215", "us-east-1", "iam", "aws4_request"] {
            key = mac(&key, part);
        }
        assert_eq!(hex(&key), "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d");
    }

    #[test]
    fn a_policy_opens_the_prefix_and_no_wildcard_in_it_counts() {
        let policy = policy("bucket", "a*/$x?", Right::Read, Deletes::Refused);
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws:s3:::bucket/a${*}/${$}x${?}*");
        assert_eq!(policy["Statement"][0]["Action"], json!(["s3:GetObject"]));
        assert_eq!(policy["Statement"][1]["Condition"]["StringLike"]["s3:prefix"], "a${*}/${$}x${?}*");
    }

    #[test]
    fn refusals_are_told_in_the_services_words() {
        let sts = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>";
        assert_eq!(refusal(sts), " AccessDenied: no");
        assert_eq!(
            refusal("<?xml version=\"1.0\"?><Error><Code>InvalidToken</Code><Message>m</Message></Error>"),
            " InvalidToken: m"
        );
        assert_eq!(refusal("nonsense"), "");
        assert_eq!(session_name("Jo & co"), "forebay-Jo---co");
    }
}
