//! The costs as a picture.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const LABEL: f64 = 130.0;
const BAR: f64 = 14.0;
const GAP: f64 = 26.0;
const COLOURS: [&str; 3] = ["#2f6f9f", "#d9822b", "#6b9a3e"];

/// Bars (SVG): for each server one for each kind, in nanoseconds.
pub fn bars(servers: &[&str], kinds: &[&str], costs: &[Vec<f64>]) -> String {
    let most = costs.iter().flatten().copied().fold(1.0, f64::max);
    let group = BAR * kinds.len() as f64 + GAP;
    let height = 70.0 + group * servers.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"10\" y=\"20\" font-size=\"15\">Server CPU per query, ns (one thread; less is better)</text>"
    );
    for (n, (kind, colour)) in kinds.iter().zip(COLOURS).enumerate() {
        let x = LABEL + 140.0 * n as f64;
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"42\">{kind}</text>",
            x + 18.0
        );
    }
    for (n, (server, costs)) in servers.iter().zip(costs).enumerate() {
        let top = 60.0 + group * n as f64;
        let _ = write!(svg, "<text x=\"10\" y=\"{}\">{server}</text>", top + BAR * 1.8);
        for (row, (cost, colour)) in costs.iter().zip(COLOURS).enumerate() {
            let (y, width) = (top + BAR * row as f64, cost / most * (WIDTH - LABEL - 70.0));
            let _ = write!(
                svg,
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{cost:.0}</text>",
                BAR - 2.0,
                LABEL + width + 6.0,
                y + BAR - 3.5
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
