//! Line charts as SVG.

use std::fmt::Write as _;

use super::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 62.0;
/// Where a logarithmic axis begins: what is faster is drawn there.
const LOG_FLOOR: f64 = 1.0;

/// How values are laid along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// By tenfolds, from 1.
    Log,
}

/// One axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: &'static str,
    /// How.
    pub scale: Scale,
    /// How its numbers are written.
    pub number: fn(f64) -> String,
}

/// Whose line it is, and so its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What is shipped, in the compared model.
    Ours,
    /// What is shipped, in another model.
    OursToo,
    /// Without the part under test.
    Plain,
    /// Another's.
    Peer,
    /// What is bad.
    Bad,
}

impl Look {
    fn style(self) -> &'static str {
        match self {
            Look::Ours => "stroke: var(--ours)",
            Look::OursToo => "stroke: var(--ours2)",
            Look::Plain => "stroke: var(--plain); stroke-dasharray: 5 3",
            Look::Peer => "stroke: var(--peer)",
            Look::Bad => "stroke: var(--bad)",
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its colour.
    pub look: Look,
    /// Its points, by rising x.
    pub points: Vec<(f64, f64)>,
    /// Whether it keeps its height until the next point.
    pub steps: bool,
}

impl Series {
    /// The share of values up to each, in percent: values are sorted.
    pub fn shares(name: impl Into<String>, look: Look, sorted: &[f64]) -> Series {
        let total = sorted.len().max(1) as f64;
        let share = |(at, value): (usize, &f64)| (*value, (at + 1) as f64 * 100.0 / total);
        let first = sorted.first().map(|first| (*first, 0.0));
        let points = first.into_iter().chain(sorted.iter().enumerate().map(share)).collect();
        Series { name: name.into(), look, points, steps: true }
    }

    /// Straight from point to point.
    pub fn line(name: impl Into<String>, look: Look, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), look, points, steps: false }
    }
}

/// A chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// Its lines.
    pub series: Vec<Series>,
}

impl Chart {
    /// The drawing.
    pub fn svg(&self) -> String {
        let top = |of: fn(&(f64, f64)) -> f64| {
            self.series.iter().flat_map(|series| &series.points).map(of).fold(0.0, f64::max)
        };
        let x = Ruler::new(self.x.scale, top(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Ruler::new(self.y.scale, top(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" xmlns=\"http://www.w3.org/2000/svg\" role=\"img\">\
             <text class=\"title\" x=\"{LEFT}\" y=\"20\">{}</text>",
            escape(&self.title)
        );
        self.grid(&mut svg, &x, &y);
        for series in &self.series {
            let _ = write!(
                svg,
                "<path class=\"series\" style=\"{}\" d=\"{}\"><title>{}</title></path>",
                series.look.style(),
                path(series, &x, &y),
                escape(&series.name)
            );
        }
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, svg: &mut String, x: &Ruler, y: &Ruler) {
        let floor = HEIGHT - BOTTOM;
        for tick in y.ticks() {
            let (at, number) = (y.at(tick), (self.y.number)(tick));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{number}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            );
        }
        for tick in x.ticks() {
            let (at, number) = (x.at(tick), (self.x.number)(tick));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{floor}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{number}</text>",
                floor + 16.0
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><text x=\"16\" y=\"{}\">{}</text>",
            WIDTH - RIGHT,
            floor + 32.0,
            escape(self.x.label),
            TOP - 14.0,
            escape(self.y.label)
        );
    }

    fn legend(&self, svg: &mut String) {
        let (mut at, y) = (LEFT, HEIGHT - 12.0);
        for series in &self.series {
            let _ = write!(
                svg,
                "<line class=\"series\" style=\"{}\" x1=\"{at:.0}\" y1=\"{}\" x2=\"{:.0}\" y2=\"{}\"/>\
                 <text class=\"legend\" x=\"{:.0}\" y=\"{y}\">{}</text>",
                series.look.style(),
                y - 4.0,
                at + 18.0,
                y - 4.0,
                at + 23.0,
                escape(&series.name)
            );
            at += 23.0 + 7.0 * series.name.chars().count() as f64 + 14.0;
        }
    }
}

fn path(series: &Series, x: &Ruler, y: &Ruler) -> String {
    let mut path = String::new();
    for (number, &(to_x, to_y)) in series.points.iter().enumerate() {
        let (to_x, to_y) = (x.at(to_x), y.at(to_y));
        let _ = match (number, series.steps) {
            (0, _) => write!(path, "M{to_x:.1} {to_y:.1}"),
            (_, true) => write!(path, "H{to_x:.1}V{to_y:.1}"),
            (_, false) => write!(path, "L{to_x:.1} {to_y:.1}"),
        };
    }
    // A share that is reached stays so.
    if series.steps && !series.points.is_empty() {
        let _ = write!(path, "H{:.1}", x.end);
    }
    path
}

/// From values to places in the drawing.
struct Ruler {
    scale: Scale,
    top: f64,
    begin: f64,
    end: f64,
}

impl Ruler {
    /// From 0 to at least `top`, laid from `begin` to `end`.
    fn new(scale: Scale, top: f64, begin: f64, end: f64) -> Ruler {
        let top = match scale {
            Scale::Linear => nice(top),
            Scale::Log => 10f64.powf(top.max(10.0 * LOG_FLOOR).log10().ceil()),
        };
        Ruler { scale, top, begin, end }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => value / self.top,
            Scale::Log => value.max(LOG_FLOOR).log10() / self.top.log10(),
        };
        self.begin + share * (self.end - self.begin)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (0..=5).map(|fifth| self.top * f64::from(fifth) / 5.0).collect(),
            Scale::Log => (0..=self.top.log10() as i32).map(|power| 10f64.powi(power)).collect(),
        }
    }
}

/// The next number above that people count by.
fn nice(top: f64) -> f64 {
    let power = 10f64.powf(top.max(1e-9).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|nice| *nice >= top * 0.999)
        .unwrap_or(top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_numbers_people_count_by() {
        assert_eq!([0.7, 100.0, 101.0, 23.0, 4100.0].map(nice), [1.0, 100.0, 200.0, 25.0, 5000.0]);
    }

    #[test]
    fn places_rise_with_values_on_both_scales() {
        for scale in [Scale::Linear, Scale::Log] {
            let ruler = Ruler::new(scale, 800.0, 0.0, 300.0);
            let places = [0.0, 1.0, 10.0, 100.0, 800.0].map(|value| ruler.at(value));
            assert!(places.is_sorted() && places[0] == 0.0 && places[4] <= 300.0, "{scale:?} {places:?}");
            assert_eq!(ruler.at(*ruler.ticks().last().unwrap()), 300.0);
        }
    }

    #[test]
    fn shares_rise_to_all_of_them() {
        let series = Series::shares("ours", Look::Ours, &[6.0, 6.0, 8.0, 9.0]);
        assert_eq!(series.points, [(6.0, 0.0), (6.0, 25.0), (6.0, 50.0), (8.0, 75.0), (9.0, 100.0)]);
    }
}
