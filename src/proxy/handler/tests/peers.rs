//! What another member is told: what is here and nothing else, and only if both go by the same placement.
//!
//! Part of the handler's tests, over the same shelf. The same among real processes is `ci/tests/routing/moving.rs`.

use std::num::NonZeroU32;

use super::*;
use crate::placement::{KeyHash, Member, MemberId};
use crate::proxy::served::{Home, HomeMember, ServedVolume};
use crate::resource::{MemberState, Revision};
use crate::routing::{Holders, PlacedMember, Placement, RoutedGroup, RoutedMember};

const OWN: MemberId = MemberId(1);
const OTHER: MemberId = MemberId(2);

/// A group of this node and another, both settled, by the placement of revision `placed`.
fn home(placed: Revision) -> Home {
    let member = |id: MemberId| RoutedMember {
        id: id.to_string(),
        name: format!("m{}", id.0),
        address: "127.0.0.1:1".to_owned(),
        tls_name: "127.0.0.1".to_owned(),
        weight: NonZeroU32::MIN,
        state: MemberState::Up,
        settled: placed,
    };
    let placed_member = |id: MemberId| PlacedMember { id: id.to_string(), weight: NonZeroU32::MIN };
    let group = RoutedGroup {
        name: "near".to_owned(),
        provider: String::new(),
        region: String::new(),
        members: [OWN, OTHER].map(member).to_vec(),
        placements: vec![Placement { revision: placed, members: [OWN, OTHER].map(placed_member).to_vec() }],
    };
    let home_member = |routed: &RoutedMember| HomeMember {
        id: routed.id.parse().unwrap(),
        name: routed.name.clone(),
        address: routed.address.clone(),
        tls_name: routed.tls_name.clone(),
        may_hold: true,
    };
    Home {
        members: group.members.iter().map(home_member).collect(),
        up: group.members.iter().filter_map(RoutedMember::ranked).collect(),
        own: Some(OWN),
        holders: Holders::told(&group),
    }
}

/// This core serves `placed`; all of the node goes by `agreed`.
fn serve(bench: &Bench, placed: Revision, agreed: Revision) {
    let volume = VolumeConfig {
        name: "v".into(),
        block_bytes_max: 4 << 20,
        write_mode: WriteMode::Back,
        dirty_full: DirtyFull::Decline,
        access: Access::ReadWrite,
    };
    let mut served = Served::configured([]);
    served.volumes.push(ServedVolume { home: Some(Arc::new(home(placed))), ..ServedVolume::configured(volume) });
    served.agreed.set(agreed);
    bench.handler.serve(&Arc::new(served));
}

fn key_of(id: MemberId) -> String {
    let members = [OWN, OTHER].map(|id| Member { id, weight: NonZeroU32::MIN });
    let mut keys = (0..).map(|number| format!("k{number}"));
    keys.find(|key| members[KeyHash::of("v", key).first(&members).unwrap()].id == id).unwrap()
}

#[test]
fn another_member_is_told_what_is_here_and_never_what_the_store_has() {
    let bench = Bench::new();
    serve(&bench, 5, 5);
    let etag = || Etag::Origin("x".into());
    bench.place("here", Place::Memory(Bytes::from_static(b"x"), etag()));
    bench.place("filling", Place::Fill(vec![Ok(Bytes::from_static(b"x"))], 1, etag()));
    bench.place("down", Place::Failed(OriginErrorKind::Timeout));
    for peer in ["1", "5"] {
        assert_eq!(bench.get("here", &[("forebay-peer", peer)]).status, StatusCode::OK);
        for key in ["filling", "down", "nothing"] {
            for method in ["GET", "HEAD"] {
                let answer = bench.ask(method, &format!("/v1/volumes/v/blocks/{key}"), &[("forebay-peer", peer)], b"");
                assert_eq!(answer.status, StatusCode::NO_CONTENT, "{method} {key}");
            }
        }
    }
}

#[test]
fn members_that_go_by_different_placements_tell_and_take_nothing() {
    let bench = Bench::new();
    let path = |key: &str| format!("/v1/volumes/v/blocks/{key}");
    let (own, other) = (key_of(OWN), key_of(OTHER));
    for (placed, agreed, asked, is_same) in [
        (5, 5, "5", true),
        (5, 5, "4", false),
        (5, 5, "9", false),
        (9, 5, "9", false),
        (9, 5, "5", false),
        (5, 5, "x", false),
    ] {
        serve(&bench, placed, agreed);
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            for key in [&own, &other] {
                let (len, body): (_, &[u8]) = if method == "PUT" { ("1", b"x") } else { ("0", b"") };
                let headers = [("forebay-peer", asked), ("content-length", len)];
                let answer = bench.ask(method, &path(key), &headers, body);
                let expected = match (is_same, method) {
                    (false, _) => StatusCode::SERVICE_UNAVAILABLE,
                    (true, "GET" | "HEAD") => StatusCode::NO_CONTENT,
                    (true, _) if *key == other => StatusCode::MISDIRECTED_REQUEST,
                    (true, "PUT") => StatusCode::CREATED,
                    (true, _) => StatusCode::NO_CONTENT,
                };
                assert_eq!(answer.status, expected, "{method} {key}: {placed} {agreed} {asked}");
                if !is_same && method != "HEAD" {
                    assert_eq!(answer.problem(), "owner-unreachable");
                }
            }
        }
        bench.shelf.places.borrow_mut().clear();
    }
}
