//! One HTML page that a person looks at and understands: drawings as inline SVG, nothing from elsewhere.

pub mod chart;
mod style;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::history::Fingerprint;

/// The commit this program was built from.
pub const COMMIT: &str = env!("SIMULATION_COMMIT");

/// A hash of this program: one seed is one history of one binary.
pub fn binary_hash() -> String {
    let bytes = std::env::current_exe().and_then(fs::read);
    bytes.map_or("unknown".into(), |bytes| {
        let mut hash = Fingerprint::default();
        hash.add(&bytes);
        format!("{:016x}", hash.0)
    })
}

/// A page under construction.
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with a title and the command that makes it again.
    pub fn new(title: &str, command: &str) -> Page {
        let mut body = format!("<h1>{}</h1>\n<p class=\"how\">", escape(title));
        for (name, value) in [("again", command), ("commit", COMMIT), ("binary", &binary_hash())] {
            let _ = write!(body, "{name} <code>{}</code> ", escape(value));
        }
        body.push_str("</p>\n");
        Page { title: title.to_owned(), body }
    }

    /// What matters most, in large type: each a figure and what it is.
    pub fn headlines(&mut self, headlines: &[(String, String)]) {
        self.body.push_str("<div class=\"headlines\">");
        for (figure, what) in headlines {
            let _ = write!(self.body, "<div><b>{}</b><span>{}</span></div>", escape(figure), escape(what));
        }
        self.body.push_str("</div>\n");
    }

    /// A heading and what there is to know before looking.
    pub fn section(&mut self, heading: &str, text: &str) {
        let _ = write!(self.body, "<h2>{}</h2>\n<p>{}</p>\n", escape(heading), escape(text));
    }

    /// Something broken, before everything else.
    pub fn alarm(&mut self, text: &str) {
        let _ = writeln!(self.body, "<pre class=\"alarm\">{}</pre>", escape(text));
    }

    /// Drawings side by side.
    pub fn charts(&mut self, charts: impl IntoIterator<Item = chart::Chart>) {
        self.body.push_str("<div class=\"charts\">");
        for chart in charts {
            self.body.push_str(&chart.svg());
        }
        self.body.push_str("</div>\n");
    }

    /// A table; numbers are told by their looks.
    pub fn table(&mut self, columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        self.body.push_str("<table><thead><tr>");
        for column in columns {
            let _ = write!(self.body, "<th>{}</th>", escape(column));
        }
        self.body.push_str("</tr></thead><tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for cell in row {
                let class =
                    if cell.starts_with(|c: char| c.is_ascii_digit()) { " class=\"number\"" } else { "" };
                let _ = write!(self.body, "<td{class}>{}</td>", escape(&cell));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table>\n");
    }

    /// A list of events with a field that narrows it down.
    pub fn timeline(&mut self, events: &[String]) {
        self.body.push_str(style::FILTER);
        self.body.push_str("<ol class=\"timeline\">\n");
        for event in events {
            let (at, what) = event.trim().split_once(" s  ").unwrap_or(("", event));
            let _ = writeln!(
                self.body,
                "<li class=\"{}\"><time>{}</time>{}</li>",
                kind(what),
                escape(at.trim()),
                escape(what)
            );
        }
        self.body.push_str("</ol>\n");
    }

    /// Writes the page.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let Page { title, body } = self;
        let page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{}</title>\n<style>{}</style>\n\
             <main>\n{body}</main>\n<script>{}</script>\n</html>\n",
            escape(title),
            style::CSS,
            style::SCRIPT
        );
        fs::write(file, page).with_context(|| format!("{} cannot be written", file.display()))
    }
}

/// What an event looks like in the timeline.
fn kind(what: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| what.contains(word));
    if has(&["law", "broken", "panic"]) {
        "broken"
    } else if has(&["now ", "crash", "boots", "stops", "scrapped", " starts"]) {
        "done"
    } else if has(&[" sees "]) {
        "seen"
    } else {
        "other"
    }
}

/// Text as it may stand in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Milliseconds for people: two digits that matter.
pub fn human_ms(ms: f64) -> String {
    match ms {
        ms if ms.is_nan() => "–".into(),
        ms if ms >= 9_950.0 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 1_000.0 => format!("{:.1} s", ms / 1e3),
        ms => format!("{ms:.0} ms"),
    }
}

/// Bytes for people.
pub fn human_bytes(bytes: f64) -> String {
    match bytes {
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes if bytes >= 1e4 => format!("{:.0} kB", bytes / 1e3),
        bytes if bytes >= 1e3 => format!("{:.1} kB", bytes / 1e3),
        bytes => format!("{bytes:.0} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_from_elsewhere_and_shows_text_as_it_is() {
        let mut page = Page::new("<seed> & all", "simulation --seed 1");
        page.table(&["a"], [vec!["<b>".to_owned()]]);
        page.timeline(&["    1.000000 s  host-1 <crashes>".to_owned()]);
        let file = tempfile::NamedTempFile::new().unwrap();
        page.write(file.path()).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!text.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
        for shown in ["&lt;seed&gt; &amp; all", "&lt;b&gt;", "<time>1.000000</time>host-1 &lt;crashes&gt;"] {
            assert!(text.contains(shown), "{shown}");
        }
    }

    #[test]
    fn figures_are_for_people() {
        assert_eq!([6.0, 999.0, 1581.0, 10_000.0].map(human_ms), ["6 ms", "999 ms", "1.6 s", "10 s"]);
        assert_eq!([12.0, 2345.0, 24_200.0, 3e6].map(human_bytes), ["12 B", "2.3 kB", "24 kB", "3.0 MB"]);
    }
}
