//! A binary that is shipped has no canaries in it; one that was built with them says so before anything else.
//! That each of them is caught is the simulator's to prove (`ci/canaries`). Run with and without the feature, this asks
//! the one question or the other.
#![allow(clippy::unwrap_used)]

const BINARY: &str = env!("CARGO_BIN_EXE_forebay");

#[cfg(not(feature = "canaries"))]
#[test]
fn a_normal_build_has_no_trace_of_canaries() {
    let bytes = std::fs::read(BINARY).unwrap();
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(holds(b"FOREBAY_CONFIG"), "the names of variables are found in this binary");
    // Two pieces, so that nothing but a canary build has them in one.
    assert!(!holds(&[&b"FOREBAY_"[..], b"CANARY"].concat()), "{BINARY} was built with the feature `canaries`");
    assert!(!holds(b"ack-before-sync"));
}

#[cfg(feature = "canaries")]
#[test]
fn a_build_with_canaries_says_so_and_knows_their_names() {
    let run = |name: Option<&str>| {
        let mut command = std::process::Command::new(BINARY);
        command.arg("--version").env_remove("FOREBAY_CANARY").envs(name.map(|name| ("FOREBAY_CANARY", name)));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(None);
    assert!(code == Some(0) && said.contains("names none"), "{said}");
    let (code, said) = run(Some("evict-dirty"));
    assert!(code == Some(0) && said.contains("LOSES DATA ON PURPOSE") && said.contains("evict-dirty"), "{said}");
    let (code, said) = run(Some("evict-durty"));
    assert!(code == Some(2) && said.contains("evict-dirty"), "{said}");
}
