//! Names of hosts, networks, apps and members, checked where they enter.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use blake2::{Blake2b512, Digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a name was refused: what it is, the text, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is malformed: expected {expected}")]
pub struct MalformedId {
    kind: &'static str,
    text: String,
    expected: &'static str,
}

// A view is copied at each change with thousands of names in it: a copy is a count.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;
            fn from_str(text: &str) -> Result<Self, MalformedId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(MalformedId { kind: $kind, text: text.to_owned(), expected: $expected })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = MalformedId;
            fn try_from(text: String) -> Result<Self, MalformedId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// A new random id (UUID version 4).
            pub fn random() -> Self {
                Self(Uuid::from_bytes(uuid::Builder::from_random_bytes(rand::random()).into_uuid().into_bytes()))
            }

            /// The id without its prefix, as 16 bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;
            fn from_str(text: &str) -> Result<Self, MalformedId> {
                let malformed = || MalformedId {
                    kind: $kind,
                    text: text.to_owned(),
                    expected: concat!($prefix, "<uuid>, lower case, for example ", $prefix, "ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c"),
                };
                let digits = text.strip_prefix($prefix).ok_or_else(malformed)?;
                let id = Uuid::try_parse(digits).map_err(|_| malformed())?;
                // One spelling only: the text is a DNS label and a key.
                let spelling = &mut Uuid::encode_buffer();
                if *id.hyphenated().encode_lower(spelling) == *digits { Ok(Self(id)) } else { Err(malformed()) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = MalformedId;
            fn try_from(text: String) -> Result<Self, MalformedId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.hyphenated())
            }
        }
    };
}

text_id!(
    /// A machine with an agent; the name its certificate carries.
    HostId, "host name", "1 to 63 characters of a-z, A-Z, 0-9, '.', '-' and '_'",
    |text| !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
);

text_id!(
    /// One gossip cluster.
    Region, "region", "1 to 63 characters of a-z, 0-9 and '-'",
    |text| !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);

text_id!(
    /// One container's attachment to one network: 16 hexadecimal digits, new at each attach.
    MemberId, "member id", "16 hexadecimal digits, lower case",
    |text| text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
);

text_id!(
    /// A process type such as `web`: one DNS label.
    ProcessType, "process type",
    "1 to 63 characters of a-z, 0-9 and '-', not starting or ending with '-', not only digits",
    |text| !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        // `1.web` and `web` must not be confused with a type named `1`.
        && !text.bytes().all(|b| b.is_ascii_digit())
);

uuid_id!(
    /// A private network: `pn-<uuid>`.
    NetworkId, "network id", "pn-"
);
uuid_id!(
    /// An application: `ap-<uuid>`.
    AppId, "app id", "ap-"
);

impl MemberId {
    /// A new random id.
    pub fn random() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()).into())
    }
}

impl HostId {
    /// The gossip node id: the name itself, or 12 hexadecimal digits of its hash when it is longer
    /// than 16 bytes. Every host's id is in every digest, and chitchat panics when a digest
    /// outgrows a datagram.
    pub fn node_id(&self) -> String {
        if self.0.len() <= 16 {
            return self.0.as_ref().to_owned();
        }
        Blake2b512::digest(self.as_str()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        fn check<T: FromStr>(good: &[&str], bad: &[&str]) {
            for text in good {
                assert!(text.parse::<T>().is_ok(), "{text:?} is refused");
            }
            for text in bad {
                assert!(text.parse::<T>().is_err(), "{text:?} is accepted");
            }
        }
        check::<HostId>(&["a", "host-a.Example_1"], &["", "a b", "a/b", "h\u{e9}", &"x".repeat(64)]);
        check::<Region>(&["osc-fr1"], &["", "Osc", "a.b", &"x".repeat(64)]);
        check::<MemberId>(&["0123456789abcdef"], &["", "0123456789ABCDEF", "0123456789abcde"]);
        check::<ProcessType>(&["web", "web-1"], &["", "1", "-web", "web-", "Web", "a.b"]);
        check::<NetworkId>(
            &["pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c"],
            &[
                "ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c",
                "pn-AD0FD6A1-d05e-40ea-bf63-c4f8a75a9d8c",
                "pn-ad0fd6a1d05e40eabf63c4f8a75a9d8c",
            ],
        );
        check::<AppId>(
            &["ap-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c"],
            &["pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c"],
        );
    }

    #[test]
    fn a_long_name_has_a_short_node_id() {
        let check =
            |name: &str, node_id: &str| assert_eq!(name.parse::<HostId>().unwrap().node_id(), node_id);
        check("host-a", "host-a");
        check("exactly-16-bytes", "exactly-16-bytes");
        check("host-00001.eu-west-1.example.internal", "c9e1978f3fb2");
    }
}
