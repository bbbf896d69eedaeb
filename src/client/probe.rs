//! Probing: how far every group is, again and again, and which is selected by that.
//!
//! A task of `client`. Every 30 s with jitter; at once when a member's circuit opens or closes or the routing changed; every 2 s while a group is
//! unreachable or another one is about to be selected, so that a client comes back soon after its near group did. Also called once by a command that shows it.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tokio::task::JoinSet;

use super::Inner;
use super::member::{Member, locked};
use super::net::Net;
use super::select::{Seen, group_rtt};
use crate::resource::MemberState;

const SAMPLES: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(30);
const INTERVAL_SOON: Duration = Duration::from_secs(2);
/// However much trouble there is, probes are no more frequent.
const INTERVAL_MIN: Duration = Duration::from_millis(300);

/// What a probe found of a group.
#[derive(Debug, Clone, Serialize)]
pub struct GroupProbe {
    /// Its name.
    pub name: String,
    /// Where it is, for people.
    pub region: String,
    /// Median of its members that answered, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Whether at least half of its members answered.
    pub reachable: bool,
    /// Whether this client uses it.
    pub selected: bool,
    /// Whether it holds what is dirty.
    pub home: bool,
    /// Its members, whatever their states.
    pub members: Vec<MemberProbe>,
}

/// What a probe found of a member.
#[derive(Debug, Clone, Serialize)]
pub struct MemberProbe {
    /// Its name.
    pub name: String,
    /// What placement knows it by.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// As the routing says.
    pub state: MemberState,
    /// Its share of the keys.
    pub weight: u32,
    /// The least of the samples, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Whether it answered.
    pub reachable: bool,
    /// Why it did not.
    pub error: Option<String>,
}

/// Probes for as long as the client lives.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut routing = inner.follower.documents();
    loop {
        let groups = probe(&inner).await;
        let is_unsettled = locked(&inner.selector).is_challenged() || groups.iter().any(|group| !group.reachable);
        let interval = if is_unsettled { INTERVAL_SOON } else { INTERVAL };
        let jitter = 0.8 + 0.4 * SmallRng::from_os_rng().random::<f64>();
        tokio::select! {
            () = tokio::time::sleep(interval.mul_f64(jitter)) => {}
            () = inner.reach.trouble.notified() => tokio::time::sleep(INTERVAL_MIN).await,
            changed = routing.changed() => {
                if changed.is_err() {
                    return;
                }
                inner.adopt(Arc::clone(&routing.borrow_and_update()));
            }
        }
    }
}

/// Probes every group once and lets the selector judge.
pub(super) async fn probe(inner: &Arc<Inner>) -> Vec<GroupProbe> {
    let net = inner.net();
    let mut groups = found(&net).await;
    let mut selector = locked(&inner.selector);
    let seen: Vec<Seen> = groups
        .iter()
        .map(|group| Seen { name: group.name.clone(), rtt: group.rtt_ms.map(|ms| Duration::from_secs_f64(ms / 1e3)) })
        .collect();
    if selector.probed(&seen) {
        tracing::info!(group = selector.current(), "another group is selected");
    }
    for group in &mut groups {
        group.selected = selector.current() == Some(group.name.as_str());
    }
    inner.probed.send_replace(true);
    groups
}

async fn found(net: &Net) -> Vec<GroupProbe> {
    let mut tasks = JoinSet::new();
    for (at, members) in net.members.iter().enumerate() {
        for (position, member) in members.iter().enumerate() {
            let member = Arc::clone(member);
            tasks.spawn(async move { (at, position, member.probe(SAMPLES).await) });
        }
    }
    let mut outcomes: Vec<Vec<Option<Result<Duration, String>>>> =
        net.members.iter().map(|members| members.iter().map(|_| None).collect()).collect();
    while let Some(done) = tasks.join_next().await {
        if let Ok((at, position, outcome)) = done {
            outcomes[at][position] = Some(outcome);
        }
    }
    let mut groups = Vec::new();
    for ((at, members), outcomes) in net.members.iter().enumerate().zip(outcomes) {
        let states: Vec<MemberState> = net.groups[at].members.iter().map(|member| member.state).collect();
        // Who joins or is absent is not expected to answer.
        let serving = |state: MemberState| matches!(state, MemberState::Up | MemberState::Draining);
        let rtts: Vec<Option<Duration>> = states
            .iter()
            .zip(&outcomes)
            .filter(|(state, _)| serving(**state))
            .map(|(_, outcome)| outcome.as_ref().and_then(|outcome| outcome.as_ref().ok().copied()))
            .collect();
        let rtt = group_rtt(&rtts);
        let probes = members.iter().zip(states).zip(outcomes);
        groups.push(GroupProbe {
            name: net.groups[at].name.clone(),
            region: net.routing.groups.get(at).map(|group| group.region.clone()).unwrap_or_default(),
            rtt_ms: rtt.map(ms),
            reachable: rtt.is_some(),
            selected: false,
            home: net.volume.home == Some(at),
            members: probes.map(|((member, state), outcome)| member_probe(member, state, outcome)).collect(),
        });
    }
    groups
}

fn member_probe(member: &Member, state: MemberState, outcome: Option<Result<Duration, String>>) -> MemberProbe {
    let outcome = outcome.unwrap_or_else(|| Err("it was not asked".to_owned()));
    MemberProbe {
        name: member.routed.name.clone(),
        id: member.routed.id.clone(),
        address: member.routed.address.clone(),
        state,
        weight: member.routed.weight.get(),
        rtt_ms: outcome.as_ref().ok().copied().map(ms),
        reachable: outcome.is_ok(),
        error: outcome.err(),
    }
}

/// Milliseconds, to the microsecond.
fn ms(rtt: Duration) -> f64 {
    rtt.as_micros() as f64 / 1e3
}
