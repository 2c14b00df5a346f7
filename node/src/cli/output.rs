//! What the commands print: tables for people, JSON for programs, names for shells.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use super::Failure;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    Table,
    /// One JSON document
    Json,
    /// One name a line
    Name,
}

/// Standard output in one format.
pub struct Output {
    format: Format,
}

impl Output {
    /// Prints in `format`.
    pub fn new(format: Format) -> Output {
        Output { format }
    }

    /// Prints rows: all columns, the values themselves, or the first column alone.
    pub fn rows<T: Serialize>(&self, values: &[T], head: &[&str], row: impl Fn(&T) -> Vec<String>) {
        match self.format {
            Format::Json => self.line(&json(&values)),
            Format::Name => values.iter().for_each(|v| self.line(&row(v)[0])),
            Format::Table => {
                let rows: Vec<Vec<String>> = values.iter().map(row).collect();
                columns(head, &rows).iter().for_each(|line| self.line(line));
            }
        }
    }

    /// Prints one value: `text` for people, the value itself, or its name.
    pub fn one<T: Serialize>(&self, value: &T, name: &str, text: impl FnOnce() -> String) {
        self.line(&self.text(value, name, text));
    }

    /// What [`one`](Self::one) prints.
    pub fn text<T: Serialize>(&self, value: &T, name: &str, text: impl FnOnce() -> String) -> String {
        match self.format {
            Format::Json => json(value),
            Format::Name => name.to_owned(),
            Format::Table => text(),
        }
    }

    /// Whether people read it.
    pub fn is_for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// Whether people read it, and colours are welcome.
    pub fn colours(&self) -> bool {
        self.format == Format::Table && std::io::stdout().is_terminal() && !no_color()
    }

    /// Prints one line.
    pub fn line(&self, line: &str) {
        // A reader that has seen enough closes the pipe; that is no failure.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// A head and rows as lines, each column as wide as its widest cell.
pub fn columns(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(rows).collect()
}

/// Whether colours are welcome on standard error (no-color.org).
fn colours() -> bool {
    std::io::stderr().is_terminal() && !no_color()
}

fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
}

/// Prints why a command failed, and what to do.
pub fn error(failure: &Failure) {
    let (red, cyan, plain) = if colours() { ("\x1b[31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    let mut text = format!("{red}error{plain}: {}\n", failure.message);
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("{cyan}hint{plain}: {hint}\n"));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}
