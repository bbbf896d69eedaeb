//! Figures beside their bounds, as a table that people read and that can stand in a document.
//!
//! Made by `commit`, `restart` and `cost`, printed by the main function. A figure without a bound is there to be understood
//! by; one with a bound is kept or missed, and a missed one makes the command fail.

use std::fmt;

/// What a figure has to keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    None,
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug, Clone)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub bound: Bound,
}

/// A heading and its figures, several times.
#[derive(Debug, Clone, Default)]
pub struct Table {
    parts: Vec<(String, Vec<Figure>)>,
}

impl Table {
    pub fn new(heading: impl Into<String>) -> Table {
        Table { parts: vec![(heading.into(), Vec::new())] }
    }

    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, bound: Bound) {
        let (_, figures) = self.parts.last_mut().expect("a table begins with a heading");
        figures.push(Figure { name: name.into(), value, unit, bound });
    }

    pub fn append(&mut self, other: Table) {
        self.parts.extend(other.parts);
    }

    /// Whether every bound is kept.
    pub fn is_kept(&self) -> bool {
        self.parts.iter().flat_map(|(_, figures)| figures).all(Figure::is_kept)
    }
}

impl Figure {
    fn is_kept(&self) -> bool {
        match self.bound {
            Bound::None => true,
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (heading, figures) in &self.parts {
            writeln!(out, "\n{heading}\n\n| | measured | required | |\n|---|---|---|---|")?;
            for figure in figures {
                let (required, verdict) = match figure.bound {
                    Bound::None => (String::new(), ""),
                    Bound::AtMost(most) => (format!("at most {} {}", shown(most), figure.unit), figure.verdict()),
                    Bound::AtLeast(least) => (format!("at least {} {}", shown(least), figure.unit), figure.verdict()),
                };
                let (name, value, unit) = (&figure.name, shown(figure.value), figure.unit);
                writeln!(out, "| {name} | {value} {unit} | {required} | {verdict} |")?;
            }
        }
        Ok(())
    }
}

impl Figure {
    fn verdict(&self) -> &'static str {
        if self.is_kept() { "kept" } else { "**missed**" }
    }
}

/// Three digits that count.
fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 || large == 0.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
