//! Distributions as a picture.

use std::fmt::Write as _;
use std::time::Duration;

use crate::report::ms;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 2] = ["#2f6f9f", "#d9822b"];

/// A line for each side (SVG): which part of its containers was there after so many milliseconds.
pub fn distributions(titles: &[&str; 2], samples: &[Vec<Duration>; 2]) -> String {
    let most = samples.iter().flatten().copied().map(ms).fold(1.0, f64::max);
    let (across, down) = (WIDTH - LEFT - 30.0, HEIGHT - TOP - BOTTOM);
    let at =
        |time: f64, part: f64| format!("{:.1},{:.1}", LEFT + time / most * across, TOP + (1.0 - part) * down);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"10\" y=\"20\" font-size=\"15\">docker run to the first byte by name on another host, ms</text>\
         <polyline points=\"{} {} {}\" fill=\"none\" stroke=\"#888\"/>",
        at(0.0, 1.0),
        at(0.0, 0.0),
        at(most, 0.0)
    );
    for tick in 0..=4 {
        let (time, part) = (most * f64::from(tick) / 4.0, f64::from(tick) / 4.0);
        let x = LEFT + time / most * across;
        let _ = write!(
            svg,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{time:.0}</text>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            HEIGHT - 18.0,
            LEFT - 6.0,
            TOP + (1.0 - part) * down + 4.0,
            part * 100.0
        );
    }
    for (n, ((title, samples), colour)) in titles.iter().zip(samples).zip(COLOURS).enumerate() {
        let mut times: Vec<f64> = samples.iter().copied().map(ms).collect();
        times.sort_by(f64::total_cmp);
        let count = times.len() as f64;
        let points: Vec<String> =
            times.iter().zip(1..).map(|(time, n)| at(*time, f64::from(n) / count)).collect();
        let x = LEFT + 300.0 * n as f64;
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"42\">{title}</text>",
            points.join(" "),
            x + 18.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
