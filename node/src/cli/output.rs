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
            Format::Json => self.json(&values),
            Format::Name => values.iter().for_each(|v| self.line(&row(v)[0])),
            Format::Table => {
                let rows: Vec<Vec<String>> = values.iter().map(row).collect();
                self.table(head, &rows);
            }
        }
    }

    /// Prints one value: `text` for people, the value itself, or its name.
    pub fn one<T: Serialize>(&self, value: &T, name: &str, text: impl FnOnce() -> String) {
        match self.format {
            Format::Json => self.json(value),
            Format::Name => self.line(name),
            Format::Table => self.line(&text()),
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

    fn json<T: Serialize>(&self, value: &T) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(&text),
            Err(error) => self.line(&format!("{{\"error\":\"{error}\"}}")),
        }
    }

    fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let print = |cells: Vec<&str>| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            self.line(padded.join("  ").trim_end());
        };
        print(head.to_vec());
        rows.iter().for_each(|row| print(row.iter().map(String::as_str).collect()));
    }
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
