//! DELETE, what is asked of a block of this cache by POST (purge, pin, unpin), and requests that ask for nothing there is.
//!
//! Part of the handler's tests, over the same shelf.

use super::*;

#[test]
fn deletes_and_purges_are_answered() {
    let bench = Bench::new();
    bench.put("a?b", &[], b"x");
    assert_eq!(bench.put("a%3Fb", &[], b"x").status, StatusCode::CREATED);
    assert_eq!(bench.ask("POST", "/v1/volumes/v/purge?key=a%3Fb", &[], b"").problem(), "block-dirty");
    assert_eq!(bench.ask("DELETE", "/v1/volumes/v/blocks/a%3Fb", &[], b"").status, StatusCode::NO_CONTENT);
    assert_eq!(bench.get("a%3Fb", &[]).problem(), "no-such-block");
    assert_eq!(bench.ask("POST", "/v1/volumes/v/purge?key=a%3Fb", &[], b"").status, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask("POST", "/v1/volumes/v/purge", &[], b"").problem(), "bad-key");
}

#[test]
fn pins_are_answered_and_need_the_right_to_write() {
    let bench = Bench::new();
    let pin = |key: &str| bench.ask("POST", &format!("/v1/volumes/v/pin?key={key}"), &[], b"");
    assert_eq!(pin("k").problem(), "no-such-block");
    bench.place("k", Place::Memory(Bytes::from_static(b"x"), Etag::Origin("x".into())));
    assert_eq!(pin("k").status, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask("POST", "/v1/volumes/v/unpin?key=k", &[], b"").status, StatusCode::NO_CONTENT);
    // The shelf has no other way to say that too much is pinned.
    bench.place("full", Place::Failed(OriginErrorKind::Busy));
    let full = pin("full");
    assert_eq!((full.status, full.problem().as_str()), (StatusCode::INSUFFICIENT_STORAGE, "pins-full"));
    let reader = format!("Bearer {}", bench.token_for(&["v"], Right::Read, 60));
    for order in ["pin", "unpin"] {
        let path = format!("/v1/volumes/v/{order}?key=k");
        assert_eq!(bench.ask("POST", &path, &[("authorization", &reader)], b"").problem(), "forbidden");
        assert_eq!(bench.ask("GET", &path, &[], b"").text(ALLOW), "POST");
        assert_eq!(bench.ask("POST", &format!("/v1/volumes/v/{order}"), &[], b"").problem(), "bad-key");
    }
    let counts = bench.metrics.snapshot();
    assert_eq!((counts.count(Outcome::Pin), counts.count(Outcome::Unpin)), (1, 1));
}

#[test]
fn bad_requests_get_their_problem() {
    let bench = Bench::new();
    let post = bench.ask("POST", "/v1/volumes/v/blocks/k", &[], b"");
    assert_eq!((post.problem().as_str(), post.text(ALLOW)), ("method-not-allowed", "GET, HEAD, PUT, DELETE"));
    assert_eq!(bench.ask("GET", "/v1/volumes/v/purge", &[], b"").text(ALLOW), "POST");
    assert_eq!(bench.ask("DELETE", "/metrics", &[], b"").status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(bench.ask("GET", "/v2", &[], b"").problem(), "no-such-path");
    for bad in ["", "%", "%ff", &"k".repeat(1025), &"k".repeat(1020), &"../".repeat(200), "k?query"] {
        assert_eq!(bench.get(bad, &[]).problem(), "bad-key", "{bad}");
    }
    bench.place("full", Place::Declined(DeclinedReason::FillsFull));
    let full = bench.get("full", &[]);
    assert_eq!((full.problem().as_str(), full.text("retry-after")), ("fills-full", "2"));
    bench.place("down", Place::Failed(OriginErrorKind::Timeout));
    let down = bench.get("down", &[]);
    assert_eq!((down.status, down.problem().as_str()), (StatusCode::GATEWAY_TIMEOUT, "origin-timeout"));
}

#[test]
fn the_node_tells_about_itself() {
    let bench = Bench::new();
    bench.get("absent", &[]);
    let open = [("authorization", "")];
    assert_eq!(bench.ask("HEAD", "/v1/ping", &open, b"").status, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask("GET", "/healthz", &open, b"").status, StatusCode::OK);
    assert_eq!(bench.ask("GET", "/readyz", &open, b"").status, StatusCode::OK);
    let topology: serde_json::Value =
        serde_json::from_slice(bench.ask("GET", "/v1/topology", &open, b"").bytes()).unwrap();
    assert_eq!((&topology["shards"][1]["port"], &topology["shard_count"]), (&7411.into(), &2.into()));
    let status: serde_json::Value = serde_json::from_slice(bench.ask("GET", "/v1/status", &open, b"").bytes()).unwrap();
    assert_eq!((&status["hits"], &status["node"]["name"]), (&0.into(), &"node".into()));
    assert!(status["sync"] == false && status["warnings"][0].as_str().unwrap().contains("power cut"), "{status}");
    let metrics = bench.ask("GET", "/metrics", &open, b"");
    assert!(metrics.text(CONTENT_TYPE).starts_with("application/openmetrics-text"));
    let text = std::str::from_utf8(metrics.bytes()).unwrap();
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "# TYPE forebay_request_duration_seconds histogram",
        "forebay_request_duration_seconds_bucket{le=\"+Inf\",outcome=\"hit-memory\"} 0",
        "forebay_dirty_bytes 0",
        "forebay_memory_bytes{use=\"tier\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    bench.handler.readiness.set(Stage::Draining);
    assert_eq!(bench.ask("GET", "/readyz", &open, b"").problem(), "not-ready");
}
