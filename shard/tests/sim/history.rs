//! What happened in a run: every verb's beginning and end, crashes, recoveries; and the digest over all of it.
//!
//! One history per thread, so that it outlives the panic by which a violation is told. Written by the clients and the
//! director, read by `campaign` when a run has failed. Notes are static words and numbers: a run notes thousands.

use std::cell::RefCell;
use std::fmt::Write;

use forebay_io::Nanos;
use forebay_io::checksum::Digester;

/// Who notes something that concerns no key.
pub const NO_KEY: usize = usize::MAX;

#[derive(Clone, Copy)]
struct Event {
    at: Nanos,
    who: u16,
    key: usize,
    what: &'static str,
    number: u64,
}

#[derive(Default)]
struct History {
    events: Vec<Event>,
    digester: Digester,
    blamed: Option<usize>,
}

thread_local! {
    static HISTORY: RefCell<History> = RefCell::default();
}

/// A run begins.
pub fn begin() {
    HISTORY.with_borrow_mut(|history| *history = History::default());
}

/// Notes one event; `who` is a client's number or one of the names in [`who`].
pub fn note(at: Nanos, who: u16, key: usize, what: &'static str, number: u64) {
    HISTORY.with_borrow_mut(|history| {
        history.events.push(Event { at, who, key, what, number });
        let digester = &mut history.digester;
        digester.update(&at.0.to_le_bytes());
        digester.update(&[who as u8, key as u8]);
        digester.update(what.as_bytes());
        digester.update(&number.to_le_bytes());
    });
}

/// The director's number among the clients.
pub const DIRECTOR: u16 = u16::MAX;

/// The digest of everything noted since the run began.
pub fn digest() -> u128 {
    HISTORY.with_borrow(|history| history.digester.finish().0)
}

/// Ends the run with a violation that concerns this key.
pub fn violation(key: usize, words: &str) -> ! {
    HISTORY.with_borrow_mut(|history| history.blamed = Some(key));
    panic!("{words}");
}

/// The events of the key that the violation concerns, or of all keys, a line each.
pub fn tell() -> String {
    HISTORY.with_borrow(|history| {
        let concerns = |event: &&Event| history.blamed.is_none_or(|key| event.key == key || event.key == NO_KEY);
        let events: Vec<&Event> = history.events.iter().filter(concerns).collect();
        let mut text = match history.blamed {
            Some(key) => format!("history of key {key}, {} events:\n", events.len()),
            None => format!("history, {} events:\n", events.len()),
        };
        for event in &events {
            let who = if event.who == DIRECTOR { "     -".to_owned() } else { format!("client {}", event.who) };
            let key = if event.key == NO_KEY { "      ".to_owned() } else { format!("key {:<2}", event.key) };
            let at_us = event.at.0 / 1_000;
            writeln!(text, "  {at_us:>12} us  {who:<9} {key} {} {}", event.what, event.number)
                .expect("a String takes everything");
        }
        text
    })
}
