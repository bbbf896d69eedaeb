//! The busiest member's load over the size of the group, one line for each way. Called by `simulate`.
//!
//! SVG, so that it can be kept beside the tables and looked at in a browser.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::Row;
use super::group::Way;

const SIZE: (u32, u32) = (900, 540);
const COLOURS: [RGBColor; 4] =
    [RGBColor(200, 60, 50), RGBColor(220, 150, 30), RGBColor(50, 130, 190), RGBColor(40, 140, 90)];
/// What a group may be asked for: no member busier than this multiple of the mean.
const GOAL: f64 = 1.5;

/// Draws `rows` into `file`.
///
/// # Errors
/// The file cannot be written.
pub fn draw(file: &Path, rows: &[Row], title: &str) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("--plot {}: {error}", file.display());
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let sizes = || rows.iter().map(|row| f64::from(row.members));
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(1.0, f64::max));
    let highest = rows.iter().map(|row| row.seen.busiest).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Load of the busiest member: {title}"), ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), (0.9..highest * 1.2).log_scale())
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("members")
        .y_desc("busiest ÷ mean")
        .label_style(("sans-serif", 14))
        .x_label_formatter(&|members| format!("{members:.0}"))
        .y_label_formatter(&|load| format!("{load:.1}"))
        .draw()
        .map_err(|error| failed(&error))?;
    for (way, colour) in Way::ALL.into_iter().zip(COLOURS) {
        let points =
            || rows.iter().filter(move |row| row.way == way).map(|row| (f64::from(row.members), row.seen.busiest));
        chart
            .draw_series(LineSeries::new(points(), colour.stroke_width(2)))
            .map_err(|error| failed(&error))?
            .label(way.title())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart
            .draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))
            .map_err(|error| failed(&error))?;
    }
    chart
        .draw_series(LineSeries::new([(least * 0.9, GOAL), (most * 1.1, GOAL)], BLACK.mix(0.4)))
        .map_err(|error| failed(&error))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}
