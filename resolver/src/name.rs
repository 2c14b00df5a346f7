//! Domain names in wire form (RFC 1035 §3.1), always lower-cased, so that comparing bytes compares names.

use std::sync::Arc;

/// Longest wire name, its root byte included (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// Longest label (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// A 255-byte name has at most 127 labels of one byte each.
const LABELS_MAX: usize = 127;

/// Labels in wire form without what they stand below; shared by all that have the name.
pub(crate) type Labels = Arc<[u8]>;

/// The name of a question and where each of its labels starts; lives on the stack.
pub(crate) struct QuestionName {
    wire: [u8; NAME_BYTES_MAX],
    len: usize,
    starts: [u8; LABELS_MAX],
    labels: usize,
}

impl QuestionName {
    /// Reads the name `bytes` start with. `None` if it is cut, too long or compressed: nothing stands before the
    /// first question that a pointer could name.
    pub(crate) fn read(bytes: &[u8]) -> Option<QuestionName> {
        let mut name = QuestionName { wire: [0; NAME_BYTES_MAX], len: 0, starts: [0; LABELS_MAX], labels: 0 };
        loop {
            let length = usize::from(*bytes.get(name.len)?);
            if length == 0 {
                name.len += 1;
                return (name.len <= NAME_BYTES_MAX).then_some(name);
            }
            let end = name.len + 1 + length;
            if length > LABEL_BYTES_MAX || end >= NAME_BYTES_MAX {
                return None;
            }
            let label = bytes.get(name.len..end)?;
            name.wire[name.len..end].copy_from_slice(label);
            name.wire[name.len + 1..end].make_ascii_lowercase();
            name.starts[name.labels] = name.len as u8;
            name.labels += 1;
            name.len = end;
        }
    }

    /// Its length in bytes, the root byte included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many labels the name has, the root not counted.
    pub(crate) fn labels(&self) -> usize {
        self.labels
    }

    /// The `index`th label from the right, 0 being the one before the root.
    pub(crate) fn label_from_right(&self, index: usize) -> Option<&[u8]> {
        let start = self.start_of_last(index.checked_add(1)?)?;
        let length = usize::from(self.wire[start]);
        Some(&self.wire[start + 1..start + 1 + length])
    }

    /// Where the last `labels` labels start, in bytes from the start of the name.
    pub(crate) fn start_of_last(&self, labels: usize) -> Option<usize> {
        match labels {
            0 => Some(self.len - 1),
            _ => self.labels.checked_sub(labels).map(|index| usize::from(self.starts[index])),
        }
    }

    /// The labels before `suffix`, if the name ends in it.
    pub(crate) fn strip(&self, suffix: &Suffix) -> Option<&[u8]> {
        let start = self.start_of_last(suffix.labels)?;
        (self.wire[start..self.len] == *suffix.wire).then(|| &self.wire[..start])
    }
}

/// A name that other names end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suffix {
    wire: Box<[u8]>,
    labels: usize,
}

impl Suffix {
    /// Reads dotted text, with or without the final dot. `None` if it is not a host name: labels of 1 to 63
    /// letters, digits, `-` or `_`, 255 bytes in all.
    pub(crate) fn parse(text: &str) -> Option<Suffix> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut labels = 0;
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            push_label(&mut wire, label)?;
            labels += 1;
        }
        wire.push(0);
        (wire.len() <= NAME_BYTES_MAX).then(|| Suffix { wire: wire.into_boxed_slice(), labels })
    }

    /// The whole name, its root byte included.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// Whether this name ends in `name`.
    pub(crate) fn is_below(&self, name: &QuestionName) -> bool {
        let mut wire = &self.wire[..];
        for _ in name.labels..self.labels {
            wire = &wire[1 + usize::from(wire[0])..];
        }
        *wire == name.wire[..name.len]
    }

    /// Whether a name may have these labels before this one.
    pub(crate) fn has_room(&self, labels: &[u8]) -> bool {
        labels.len() + self.wire.len() <= NAME_BYTES_MAX
    }
}

/// Appends one label in wire form, lower-cased; `None` if it is not a label of a host name.
pub(crate) fn push_label(wire: &mut Vec<u8>, label: &str) -> Option<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.bytes().all(plain) {
        return None;
    }
    wire.push(label.len() as u8);
    wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    Some(())
}

/// The labels of a name made by [`push_label`], outermost last.
pub(crate) fn labels(mut wire: &[u8]) -> Vec<&str> {
    let mut labels = Vec::new();
    while let Some((&length, rest)) = wire.split_first().filter(|(length, _)| **length > 0) {
        let (label, rest) = rest.split_at(usize::from(length).min(rest.len()));
        labels.push(std::str::from_utf8(label).unwrap_or_default());
        wire = rest;
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_names_are_read_or_refused() {
        let long_label = [&[63u8][..], &[b'a'; 63]].concat();
        let check = |bytes: &[u8], expected: Option<&[u8]>| {
            let name = QuestionName::read(bytes);
            assert_eq!(name.as_ref().map(|name| &name.wire[..name.len]), expected, "{bytes:?}");
        };
        check(b"\0", Some(b"\0"));
        check(b"\x03WeB\x02aP\0rest", Some(b"\x03web\x02ap\0"));
        check(b"", None);
        check(b"\x03we", None);
        check(b"\x03web", None);
        check(b"\xc0\x0c", None);
        check(b"\x40aaaa", None);
        // 3 * 64 + 62 + 1 = 255 bytes is the longest name; one more is refused.
        let longest = [&long_label[..], &long_label, &long_label, &[61], &[b'a'; 61], &[0]].concat();
        assert_eq!(longest.len(), 255);
        check(&longest, Some(&longest));
        let longer = [&long_label[..], &long_label, &long_label, &[62], &[b'a'; 62], &[0]].concat();
        check(&longer, None);
        let most_labels = [&b"\x01a".repeat(127)[..], &[0]].concat();
        check(&most_labels, Some(&most_labels));
        check(&[&b"\x01a".repeat(128)[..], &[0]].concat(), None);
    }

    #[test]
    fn suffixes_match_on_label_boundaries_only() {
        let zone = Suffix::parse("Private-Network.internal.").unwrap();
        let check = |text: &str, expected: Option<&[u8]>| {
            let wire = Suffix::parse(text).unwrap();
            let name = QuestionName::read(wire.wire()).unwrap();
            assert_eq!(name.strip(&zone), expected, "{text}");
        };
        check("private-network.internal", Some(b""));
        check("a.B.private-network.internal", Some(b"\x01a\x01b"));
        check("xprivate-network.internal", None);
        check("internal", None);
        check("private-network.internal.example", None);
        // The suffix's bytes inside a longer label are not the suffix.
        let inside = [&[26u8][..], zone.wire()].concat();
        let name = QuestionName::read(&[&inside[..26], b"x", b"\0"].concat()).unwrap();
        assert_eq!(name.strip(&zone), None);
    }

    #[test]
    fn text_that_is_no_host_name_is_refused() {
        for text in ["", ".", "a..b", "a b", "é", &"a".repeat(64), &["a"; 128].join(".")] {
            assert_eq!(Suffix::parse(text), None, "{text:?}");
        }
        assert_eq!(Suffix::parse("ns.A_b").unwrap().wire(), b"\x02ns\x03a_b\0");
        assert_eq!(labels(b"\x02ns\x03a_b\0"), ["ns", "a_b"]);
    }

    #[test]
    fn labels_count_from_the_right() {
        let name = QuestionName::read(b"\x011\x07in-addr\x04arpa\0").unwrap();
        assert_eq!(name.label_from_right(0), Some(&b"arpa"[..]));
        assert_eq!(name.label_from_right(2), Some(&b"1"[..]));
        assert_eq!(name.label_from_right(3), None);
        assert_eq!(name.start_of_last(0), Some(15));
        assert_eq!(name.start_of_last(2), Some(2));
    }
}
