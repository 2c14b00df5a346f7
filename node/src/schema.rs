//! How values of the other crates are written in JSON, for the description of the API: those crates know of no schemas.

use std::borrow::Cow;

use gossip::record::MemberState as State;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

macro_rules! text {
    ($name:ident, $what:literal, $pattern:expr) => {
        #[doc = $what]
        pub enum $name {}

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $what, "pattern": $pattern })
            }
        }
    };
}

macro_rules! uuid {
    ($prefix:literal) => {
        concat!("^", $prefix, "-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
    };
}

text!(HostId, "A host's name.", "^[A-Za-z0-9._-]{1,63}$");
text!(NetworkId, "A private network.", uuid!("pn"));
text!(AppId, "An app.", uuid!("ap"));
text!(MemberId, "A member.", "^[0-9a-f]{16}$");
text!(ProcessType, "A process type: one DNS label.", "^(?!-)(?![0-9]+$)[a-z0-9-]{1,63}(?<!-)$");
text!(Port, "A published port, `tcp/3000:http`.", "^(tcp|udp)/[0-9]{1,5}(:[a-z0-9-]{1,15})?$");
text!(Ipv4Net, "An IPv4 subnet.", "^[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}$");
text!(Ipv6Net, "An IPv6 prefix.", "^[0-9a-f:]+/[0-9]{1,3}$");

/// Where in its life a member is.
pub enum MemberState {}

impl JsonSchema for MemberState {
    fn schema_name() -> Cow<'static, str> {
        "MemberState".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Where in its life a member is.",
            "enum": [State::Joining, State::Ready, State::Released],
        })
    }
}

#[cfg(test)]
mod tests {
    use gossip::id;
    use gossip::port;

    use super::*;

    /// Schema and parser agree on what is good and what is not.
    #[track_caller]
    fn check<T: JsonSchema, V: std::str::FromStr>(good: &[&str], bad: &[&str]) {
        let schema = schemars::schema_for!(T);
        let validator = jsonschema::validator_for(schema.as_value()).unwrap();
        for (texts, holds) in [(good, true), (bad, false)] {
            for text in texts {
                assert_eq!(text.parse::<V>().is_ok(), holds, "{text:?} is read otherwise");
                assert_eq!(validator.is_valid(&(*text).into()), holds, "{text:?} is described otherwise");
            }
        }
    }

    #[test]
    fn a_description_is_as_strict_as_what_reads() {
        let uuid = "ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
        let (network, app) = (format!("pn-{uuid}"), format!("ap-{uuid}"));
        let upper = network.to_uppercase();
        check::<NetworkId, id::NetworkId>(&[&network], &[&app, &upper, "pn-", uuid]);
        check::<AppId, id::AppId>(&[&app], &[&network, "ap-1"]);
        check::<HostId, id::HostId>(&["host-a", "A.b_c"], &["", "a b", &"x".repeat(64)]);
        check::<MemberId, id::MemberId>(&["0123456789abcdef"], &["0123456789ABCDEF", "0123"]);
        check::<ProcessType, id::ProcessType>(&["web", "1a", "a-b"], &["", "-a", "a-", "12", "Web", "a.b"]);
        check::<Port, port::Port>(&["tcp/3000", "udp/53:dns"], &["tcp/", "sctp/1", "tcp/1:", "tcp/1:HTTP"]);
        check::<Ipv4Net, ipnet::Ipv4Net>(&["10.240.0.0/22"], &["10.240.0.0", "10.240/22"]);
        check::<Ipv6Net, ipnet::Ipv6Net>(&["fd00::/48"], &["fd00::", "10.0.0.0/8"]);
    }
}
