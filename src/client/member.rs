//! One member of a group, as this client reaches it: connections, the shard's port, whether it lives.
//!
//! Called by `read`, `write` and `probe`. The certificate is verified against the member's TLS name, whatever its address. A request whose answer does not
//! come soon is not given up but checked on by a ping, so that a slow store and a dead member are told apart within two seconds. Everything has
//! a deadline; what came of it goes to the member's circuit breaker.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::ClientError;
use crate::breaker::{Breaker, BreakerSettings, Change, Leave};
use crate::follow::bearer::Bearer;
use crate::follow::https::{SetupError, certificates, words};
use crate::placement::{self, shard_of};
use crate::routing::RoutedMember;

/// For a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// So long an answer may take before the member is pinged.
const PATIENCE: Duration = Duration::from_millis(700);
/// A ping without an answer for so long is none.
pub const PING_TIMEOUT: Duration = Duration::from_millis(1_000);
/// A body without a byte for so long has ended.
const STALL: Duration = Duration::from_secs(5);
/// Topology and problem documents are cut here.
const SMALL_BODY_BYTES_MAX: usize = 1 << 20;
/// What stands in a path as it is. Slashes too, unless a URL library would take what is between them for a dot segment.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
const NO_SLASH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 1_024;

/// No answer.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// For people.
    pub words: String,
    /// Whether the request may have taken effect.
    pub was_sent: bool,
}

/// What a member needs to be reached.
#[derive(Clone)]
pub struct Reach {
    /// PEM file of the authority to trust instead of the system's.
    pub ca: Option<std::path::PathBuf>,
    /// The token.
    pub bearer: Arc<Bearer>,
    /// Told when a member's circuit opens or closes.
    pub trouble: Arc<Notify>,
    /// The volume, for paths and shards.
    pub volume: Arc<str>,
}

/// One member.
pub struct Member {
    /// As the routing says.
    pub routed: RoutedMember,
    /// For ranking.
    pub ranked: placement::Member,
    reach: Reach,
    http: Client,
    /// The host in URLs: the TLS name.
    host: String,
    port: u16,
    started: Instant,
    breaker: Mutex<Breaker>,
    shard_ports: Mutex<Option<Vec<u16>>>,
}

/// Resolves every name to the address that the routing says.
struct Fixed(String);

impl Resolve for Fixed {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let addresses: Vec<_> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

impl Member {
    /// A member that nobody has talked to yet. One whose address leads nowhere is one that never answers: it may hold blocks all the same.
    ///
    /// # Errors
    /// HTTPS can't be set up, or the id can't be ranked.
    pub fn new(routed: RoutedMember, reach: Reach) -> Result<Member, SetupError> {
        let bad_id = || SetupError::Http(format!("member {} has the malformed id {:?}", routed.name, routed.id));
        let ranked = routed.ranked().ok_or_else(bad_id)?;
        let (address, port) = split_address(&routed.address).unwrap_or_else(|| (routed.address.clone(), 0));
        let http = client(reach.ca.as_deref(), &address)?;
        // An address in the place of a name would be connected to, instead of being resolved to the member's.
        let is_other_address = routed.tls_name.parse::<IpAddr>().is_ok() && routed.tls_name != address;
        let name = if routed.tls_name.is_empty() || is_other_address { &address } else { &routed.tls_name };
        let host = if name.parse::<Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.clone() };
        Ok(Member {
            ranked,
            reach,
            http,
            host,
            port,
            started: Instant::now(),
            breaker: Mutex::new(Breaker::new(BreakerSettings::default())),
            shard_ports: Mutex::default(),
            routed,
        })
    }

    /// Whether it is worth a request.
    pub fn leave(&self) -> Leave {
        locked(&self.breaker).leave(self.now())
    }

    /// Whether it is passed by at the moment.
    pub fn is_passed_by(&self) -> bool {
        locked(&self.breaker).is_open()
    }

    /// A request about `key`, to the port of the shard that owns it; `suffix` follows the volume's path.
    pub fn block_request(&self, method: Method, key: &str) -> Result<RequestBuilder, ClientError> {
        let path = format!("/v1/volumes/{}/blocks/{}", self.reach.volume, encoded(key)?);
        Ok(self.request(method, self.port_of(key), &path))
    }

    /// A request that drops what this member has of `key` unless it is dirty.
    pub fn purge_request(&self, key: &str) -> RequestBuilder {
        let key_text = utf8_percent_encode(key, NO_SLASH);
        let path = format!("/v1/volumes/{}/purge?key={key_text}", self.reach.volume);
        self.request(Method::POST, self.port_of(key), &path)
    }

    fn request(&self, method: Method, port: u16, path: &str) -> RequestBuilder {
        self.http.request(method, format!("https://{}:{port}{path}", self.host)).bearer_auth(self.reach.bearer.token())
    }

    fn port_of(&self, key: &str) -> u16 {
        match &*locked(&self.shard_ports) {
            Some(ports) => {
                let shard_count = u16::try_from(ports.len()).unwrap_or(u16::MAX);
                ports[usize::from(shard_of(&self.reach.volume, key, shard_count))]
            }
            None => self.port,
        }
    }

    /// Sends and waits for the answer's head until `until`, for as long as the member lives.
    ///
    /// # Errors
    /// No answer.
    pub async fn send(&self, request: RequestBuilder, until: Instant) -> Result<Response, Trouble> {
        let began = Instant::now();
        let mut answer = Box::pin(request.send());
        loop {
            let answered = match timeout_at(until.min(Instant::now() + PATIENCE), &mut answer).await {
                Ok(answered) => answered,
                Err(_) if Instant::now() >= until => {
                    self.note(locked(&self.breaker).failed(self.now()));
                    return Err(self.trouble(format!("no answer within {:?}", began.elapsed()), true));
                }
                Err(_) => {
                    let pinged = tokio::select! {
                        answered = &mut answer => Err(answered),
                        pinged = self.ping(PING_TIMEOUT) => Ok(pinged),
                    };
                    match pinged {
                        Err(answered) => answered,
                        Ok(Ok(_)) => continue,
                        Ok(Err(_)) => {
                            self.died();
                            return Err(self.trouble("it answers neither this nor a ping".to_owned(), true));
                        }
                    }
                }
            };
            return match answered {
                Ok(response) => {
                    self.note(locked(&self.breaker).succeeded(began.elapsed(), self.now()));
                    Ok(response)
                }
                Err(error) => {
                    let was_sent = !error.is_connect();
                    self.note(locked(&self.breaker).failed(self.now()));
                    Err(self.trouble(words(&error.without_url()), was_sent))
                }
            };
        }
    }

    /// The next bytes of a body; `None` at its end.
    ///
    /// # Errors
    /// It broke off.
    pub async fn next_bytes(&self, response: &mut Response) -> Result<Option<Bytes>, Trouble> {
        let failed = match timeout(STALL, response.chunk()).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => words(&error.without_url()),
            Err(_) => format!("no byte for {STALL:?}"),
        };
        self.note(locked(&self.breaker).failed(self.now()));
        Err(self.trouble(failed, true))
    }

    /// All of a small body; what can't be had, or not soon, is left out.
    pub async fn small_body(&self, response: Response) -> Bytes {
        self.small_body_within(response, STALL).await
    }

    /// Each byte might come just before the stall: the whole has a bound as well.
    async fn small_body_within(&self, mut response: Response, bound: Duration) -> Bytes {
        let (mut body, until) = (Vec::new(), Instant::now() + bound);
        while let Ok(Ok(Some(bytes))) = timeout_at(until, self.next_bytes(&mut response)).await {
            body.extend_from_slice(&bytes);
            if body.len() > SMALL_BODY_BYTES_MAX {
                break;
            }
        }
        body.into()
    }

    /// One round trip over a kept connection, or a new one.
    ///
    /// # Errors
    /// No answer, or none of a member.
    pub async fn ping(&self, bound: Duration) -> Result<Duration, String> {
        let began = Instant::now();
        match timeout(bound, self.request(Method::HEAD, self.port, "/v1/ping").send()).await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(began.elapsed()),
            Ok(Ok(answer)) => Err(format!("it answers {} to a ping", answer.status())),
            Ok(Err(error)) => Err(words(&error.without_url())),
            Err(_) => Err(format!("no answer within {bound:?}")),
        }
    }

    /// The least of `samples` round trips; learns the shards' ports on the way.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn probe(&self, samples: u32) -> Result<Duration, String> {
        // The first may pay for a connection; of one that has not been answering little is expected.
        let first = if self.is_passed_by() { PING_TIMEOUT } else { PING_TIMEOUT * 2 };
        let mut outcome = self.ping(first).await;
        let mut least: Option<Duration> = None;
        for _ in 0..samples {
            match (self.ping(PING_TIMEOUT).await, &outcome) {
                (Ok(rtt), _) => {
                    least = Some(least.map_or(rtt, |least| least.min(rtt)));
                    outcome = Ok(rtt);
                }
                // One that is lost is no news, two in a row are.
                (Err(_), Ok(_)) => {}
                (Err(error), Err(_)) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let outcome = outcome.map(|only| least.unwrap_or(only));
        match &outcome {
            Ok(rtt) => {
                self.note(locked(&self.breaker).succeeded(*rtt, self.now()));
                self.learn_ports().await;
            }
            Err(_) => self.died(),
        }
        outcome
    }

    async fn learn_ports(&self) {
        #[derive(Deserialize)]
        struct Topology {
            port: u16,
            shard_count: u16,
            shards: Vec<Port>,
        }
        #[derive(Deserialize)]
        struct Port {
            shard: u16,
            port: u16,
        }
        let request = self.request(Method::GET, self.port, "/v1/topology");
        let Ok(Ok(answer)) = timeout(PING_TIMEOUT, request.send()).await else { return };
        let body = self.small_body(answer).await;
        let Ok(topology) = serde_json::from_slice::<Topology>(&body) else { return };
        let mut ports: Vec<(u16, u16)> = topology.shards.iter().map(|shard| (shard.shard, shard.port)).collect();
        ports.sort_unstable();
        let is_whole = ports.len() == usize::from(topology.shard_count)
            && (0..).zip(&ports).all(|(shard, (named, _)): (u16, _)| shard == *named)
            && !ports.is_empty();
        // Where another port than its own leads to it (a relay, a port mapping), the shards' ports lead nowhere.
        let is_direct = topology.port == self.port;
        *locked(&self.shard_ports) = (is_whole && is_direct).then(|| ports.into_iter().map(|(_, port)| port).collect());
    }

    fn died(&self) {
        *locked(&self.shard_ports) = None;
        self.note(locked(&self.breaker).died(self.now()));
    }

    fn note(&self, change: Change) {
        if change != Change::None {
            tracing::info!(member = %self.routed.name, address = %self.routed.address, ?change, "a member's circuit");
            self.reach.trouble.notify_one();
        }
    }

    fn trouble(&self, words: String, was_sent: bool) -> Trouble {
        Trouble { words: format!("member {} at {}: {words}", self.routed.name, self.routed.address), was_sent }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

fn client(ca: Option<&Path>, address: &str) -> Result<Client, SetupError> {
    let mut builder = Client::builder()
        .https_only(true)
        .http1_only()
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(60))
        .dns_resolver(Fixed(address.to_owned()));
    if let Some(path) = ca {
        builder = builder.tls_certs_only(certificates(path)?);
    }
    builder.build().map_err(|error| SetupError::Http(error.to_string()))
}

/// `host:port`, the host of IPv6 in brackets.
fn split_address(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), port.parse().ok()?))
}

/// `key` in a path, so that no URL library takes it for another.
fn encoded(key: &str) -> Result<String, ClientError> {
    match key {
        "" => return Err(ClientError::BadKey("the key is empty".to_owned())),
        "." | ".." => return Err(ClientError::BadKey(format!("the key {key:?} can't be sent in a URL"))),
        _ if key.len() > KEY_BYTES_MAX => {
            return Err(ClientError::BadKey(format!("the key is longer than {KEY_BYTES_MAX} bytes")));
        }
        _ => {}
    }
    let has_dots = key.split('/').any(|segment| matches!(segment.to_ascii_lowercase().as_str(), "." | ".."));
    Ok(utf8_percent_encode(key, if has_dots { NO_SLASH } else { PLAIN }).to_string())
}

/// What is behind a lock whose holders never panic half-way.
pub fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_a_url_is_the_same_key() {
        for key in [
            "a",
            "a/b",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "./x",
            "../..",
            "%2e%2e/x",
            "a\\b",
            "ü b+c?#&",
            "...",
            "a/.",
            "\t\n",
        ] {
            let url =
                reqwest::Url::parse(&format!("https://h:1/v1/volumes/v/blocks/{}", encoded(key).unwrap())).unwrap();
            let sent = url.path().strip_prefix("/v1/volumes/v/blocks/").unwrap();
            let decoded = percent_encoding::percent_decode_str(sent).decode_utf8().unwrap();
            assert_eq!((decoded.as_ref(), url.query()), (key, None), "{url}");
        }
        assert!(encoded("..").is_err() && encoded("").is_err() && encoded(&"x".repeat(1_025)).is_err());
    }

    fn member() -> Member {
        let reach = Reach {
            ca: None,
            bearer: Arc::new(Bearer::fixed("token").unwrap()),
            trouble: Arc::default(),
            volume: "v".into(),
        };
        let routed = RoutedMember {
            id: format!("{:032x}", 1),
            name: "a".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            tls_name: "localhost".to_owned(),
            weight: std::num::NonZeroU32::MIN,
            state: crate::resource::MemberState::Up,
            settled: 0,
        };
        Member::new(routed, reach).unwrap()
    }

    #[test]
    fn a_body_that_trickles_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (began, bound) = (std::time::Instant::now(), Duration::from_millis(200));
        let body = runtime.block_on(async {
            let trickle = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
            });
            let response = http::Response::new(reqwest::Body::wrap_stream(trickle)).into();
            timeout(Duration::from_secs(30), member().small_body_within(response, bound)).await
        });
        assert!(!body.unwrap().is_empty() && began.elapsed() >= bound);
    }

    #[test]
    fn addresses_are_split_at_their_port() {
        assert_eq!(split_address("a.example:7400"), Some(("a.example".to_owned(), 7400)));
        assert_eq!(split_address("[::1]:7400"), Some(("::1".to_owned(), 7400)));
        assert_eq!(split_address("nonsense"), None);
    }
}
