//! What the members of a group are told: who may hear it, what is in it, and that every change that concerns them is heard.
//!
//! Part of the tests of `api`: over a real database, without a network.
//! The same with real proxies is `ci/tests/routing.rs`.

use super::*;
use crate::routing::GroupRouting;

const PATH: &str = "/v1/groups/near/routing";

pub(super) fn proxy_token(bench: &Bench, group: &str) -> String {
    let wish = Wish {
        subject: "a".to_owned(),
        role: Some(Role::Proxy),
        group: Some(group.to_owned()),
        volumes: Default::default(),
        ttl_seconds: 600,
    };
    keys::issue(&*bench.registry, &wish, &by()).unwrap().1
}

pub(super) async fn told(bench: &Bench, token: &str) -> GroupRouting {
    let reply = bench.ask_as(token, "GET", PATH, Value::Null, None).await;
    assert_eq!((reply.status.as_u16(), reply.media_type), (200, crate::routing::MEDIA_TYPE), "{}", text(&reply));
    let document = GroupRouting::open(&text(&reply), &bench.keys()).unwrap();
    assert_eq!(tag(&reply), format!("\"{}\"", document.revision));
    document
}

#[test]
fn a_groups_members_are_told_what_they_need_and_nobody_else_is() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        assert_eq!(bench.ask("POST", "/v1/groups", json!({"name": "far"})).await.status, 201);
        let proxy = proxy_token(&bench, "near");
        let document = told(&bench, &proxy).await;
        let [volume] = &document.volumes[..] else { panic!("one volume") };
        assert_eq!((&*volume.volume.name, volume.revoked.len()), ("pictures", 0));
        assert!(volume.made > 0);
        let [store] = &document.stores[..] else { panic!("one store") };
        assert_eq!((&*store.store.name, store.credentials.as_deref()), ("main", Some("env")));
        assert_eq!(document.groups.iter().map(|group| &*group.name).collect::<Vec<_>>(), ["near"]);
        let member = document.member("b").unwrap();
        assert_eq!(document.member(&member.id), Some(member));
        assert!(document.member("c").is_none());

        // References to credentials are for proxies of the group alone.
        let reader = issue(&bench.registry, None, &[("pictures", Right::Read)]);
        let viewer = issue(&bench.registry, Some(Role::Viewer), &[]);
        let stranger = proxy_token(&bench, "far");
        for token in [&bench.operator, &reader, &viewer, &stranger] {
            problem(&bench.ask_as(token, "GET", PATH, Value::Null, None).await, 403, "forbidden");
        }
        // And a proxy's token opens nothing else.
        for path in ["/v1/stores", "/v1/tokens", "/v1/volumes/pictures/routing", "/v1/groups/far/routing", "/v1/audit"]
        {
            problem(&bench.ask_as(&proxy, "GET", path, Value::Null, None).await, 403, "forbidden");
        }
        problem(&bench.ask_as(&proxy, "POST", "/v1/groups", json!({"name": "x"}), None).await, 403, "forbidden");
        assert_eq!(bench.ask_as(&proxy, "GET", "/v1/keys", Value::Null, None).await.status, 200);
        let volumes = text(&bench.ask("GET", "/v1/volumes/pictures/routing", Value::Null).await);
        assert!(GroupRouting::open(&volumes, &bench.keys()).is_err(), "neither document is taken for the other");
        assert!(Routing::open(&document.sign(&current(&bench)).unwrap(), &bench.keys()).is_err());

        // A group that was deleted is another one when it is made again.
        assert_eq!(bench.ask("DELETE", "/v1/groups/far", Value::Null).await.status, 204);
        problem(
            &bench.ask_as(&stranger, "GET", "/v1/groups/far/routing", Value::Null, None).await,
            404,
            "no-such-record",
        );
        assert_eq!(bench.ask("POST", "/v1/groups", json!({"name": "far"})).await.status, 201);
        let refused = bench.ask_as(&stranger, "GET", "/v1/groups/far/routing", Value::Null, None).await;
        assert!(problem(&refused, 403, "forbidden").contains("made again"));
    });
}

fn current(bench: &Bench) -> SigningKey {
    looked(&*bench.registry, |view| keys::current(view)).unwrap()
}

#[test]
fn a_proxys_token_names_its_group() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        for (request, field) in [
            (json!({"subject": "x", "role": "proxy"}), "group"),
            (json!({"subject": "x", "role": "viewer", "group": "near"}), "group"),
            (json!({"subject": "x", "volumes": {"pictures": "r"}, "group": "near"}), "group"),
        ] {
            let reply = bench.ask("POST", "/v1/tokens", request).await;
            problem(&reply, 400, "bad-body");
            assert_eq!(parsed(&reply)["field"], field);
        }
        let absent = bench.ask("POST", "/v1/tokens", json!({"subject": "x", "role": "proxy", "group": "absent"})).await;
        assert!(problem(&absent, 404, "no-such-record").contains("group absent"));
        let issued = bench.ask("POST", "/v1/tokens", json!({"subject": "x", "role": "proxy", "group": "near"})).await;
        assert_eq!(parsed(&issued)["record"]["group"], "near");
    });
}

#[test]
fn whatever_concerns_a_group_is_heard_by_who_waits_and_nothing_else_is() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        for name in ["far", "other"] {
            assert_eq!(bench.ask("POST", "/v1/groups", json!({"name": name})).await.status, 201);
        }
        let proxy = proxy_token(&bench, "near");
        let store = json!({"name": "second", "endpoint": "https://s3.example.net", "bucket": "others", "conditional_put": true});
        let back = json!({"name": "back", "store": "second", "write": "back"});
        let homed = json!({"name": "back", "store": "second", "write": "back", "home_group": "far"});
        let token =
            parsed(&bench.ask("POST", "/v1/tokens", json!({"subject": "x", "volumes": {"pictures": "r"}})).await);
        let revoke = format!("/v1/tokens/{}", token["record"]["id"].as_str().unwrap());
        let moved = json!({"name": "main", "endpoint": "https://s3.example.com", "bucket": "pictures"});
        for (method, path, body, concerns) in [
            ("PUT", "/v1/groups/near/members/a", json!({"name": "a", "address": "10.0.0.1:7400", "state": "up"}), true),
            ("POST", "/v1/groups/near/members", json!({"name": "c", "address": "10.0.0.3:7400"}), true),
            ("DELETE", "/v1/groups/near/members/c", Value::Null, true),
            ("POST", "/v1/groups/other/members", json!({"name": "o", "address": "10.1.0.1:7400"}), false),
            ("PUT", "/v1/stores/main", moved, true),
            ("POST", "/v1/stores", store, false),
            ("POST", "/v1/volumes", back, false),
            ("PUT", "/v1/volumes/back/groups/near", json!({}), true),
            ("PUT", "/v1/volumes/back/groups/far", json!({}), true),
            ("PUT", "/v1/volumes/back", homed, true),
            // The members of a home group are asked by those of the others.
            ("POST", "/v1/groups/far/members", json!({"name": "f", "address": "10.2.0.1:7400"}), true),
            ("DELETE", &revoke, Value::Null, true),
            ("PUT", "/v1/groups/other", json!({"name": "other", "region": "eu"}), false),
            ("PUT", "/v1/groups/near", json!({"name": "near", "region": "eu"}), true),
            ("DELETE", "/v1/volumes/back/groups/near", Value::Null, true),
            ("POST", "/v1/keys", json!({}), true),
        ] {
            let before = told(&bench, &proxy).await;
            let path_waiting = format!("{PATH}?since={}&wait=30s", before.revision);
            let wait = bench.ask_as(&proxy, "GET", &path_waiting, Value::Null, None);
            let change = async {
                let reply = bench.ask(method, path, body).await;
                assert!(reply.status.is_success(), "{method} {path}: {}", text(&reply));
            };
            if concerns {
                let both = async { tokio::join!(wait, change) };
                let (news, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
                let news = GroupRouting::open(&text(&news), &bench.keys()).unwrap();
                assert!(news.revision > before.revision, "{method} {path}");
                // Who else serves a volume is told when it is the volume's home: heard all the same.
                let is_silent = path.ends_with("/far");
                assert!(
                    is_silent || GroupRouting { revision: 0, ..news } != GroupRouting { revision: 0, ..before },
                    "{path}"
                );
            } else {
                change.await;
                assert_eq!(told(&bench, &proxy).await, before, "{method} {path}");
            }
        }
        let document = told(&bench, &proxy).await;
        assert_eq!(document.volumes.len(), 1, "detached");
        assert_eq!(document.volumes[0].revoked, [token["record"]["id"].as_str().unwrap()]);
    });
}
